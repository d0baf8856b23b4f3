"""Programs with signal handling of their own, and work that tells what a worker has of it."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Optional

from jobserver import Jobserver, JobserverExecutor, LostResult
from tests.faces import face
from tests.work import PATIENCE

HANDLED = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)


def shout(signum: int, frame: Optional[FrameType]) -> None:
    os.write(1, b"the program's handler ran in %d\n" % os.getpid())


def look() -> tuple[dict[str, str], int, list[int], tuple[float, float]]:
    """Handlers, wakeup descriptor, blocked signals and timer of this process."""
    kinds = {
        signal.SIG_DFL: "default",
        signal.SIG_IGN: "ignored",
        signal.default_int_handler: "interrupt",
    }
    signums = (*HANDLED, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE)
    found = {each.name: kinds.get(signal.getsignal(each), "a handler") for each in signums}
    blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    return found, signal.set_wakeup_fd(-1), blocked, signal.getitimer(signal.ITIMER_REAL)


def start_as_new(name: str, method: str) -> None:
    """A worker has nothing of the program's handlers, wakeup descriptor, mask and timer."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    signal.set_wakeup_fd(ends[1])
    for signum in (*HANDLED, signal.SIGINT):
        signal.signal(signum, shout)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    faulthandler.register(signal.SIGHUP)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
    with face(name, method) as run:
        found, wakeup, blocked, timer = run(look)
    assert found == {
        **dict.fromkeys(("SIGHUP", "SIGTERM", "SIGUSR1", "SIGCHLD"), "default"),
        "SIGINT": "interrupt",
        "SIGQUIT": "ignored",
        "SIGPIPE": "ignored",
    }, found
    assert (wakeup, blocked, timer) == (-1, [], (0.0, 0.0))
    # The program's own are as they were.
    assert signal.getsignal(signal.SIGTERM) is shout
    # But multiprocessing itself unblocks SIGTERM, when it starts its resource tracker.
    assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def say_and_sleep(write: int) -> None:
    os.write(write, b"x")
    time.sleep(PATIENCE)


def cancel_beside_loop(reused: bool) -> None:
    """SIGTERM ends a worker of a program whose event loop handles SIGTERM."""

    async def run() -> None:
        told: list[str] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, "told")
        read, write = os.pipe()
        with Jobserver("fork", 1) as js:
            handle = js.replace_workers() if reused else js
            future = handle(say_and_sleep, write)
            os.read(read, 1)
            assert await asyncio.to_thread(future.wait, PATIENCE / 2, signal=signal.SIGTERM)
            await asyncio.sleep(0)
        assert not told

    asyncio.run(run())


def group_signalled() -> None:
    """A signal for the whole process group is handled by the program; its forker goes on."""
    signal.signal(signal.SIGTERM, shout)
    read, write = os.pipe()
    with JobserverExecutor(1, "fork") as executor:
        assert executor.submit(abs, -1).result(PATIENCE) == 1
        lost = executor.submit(say_and_sleep, write)
        os.read(read, 1)
        os.killpg(0, signal.SIGTERM)
        assert lost.exception(PATIENCE) is not None
        # A new worker is needed, and there is who forks it.
        assert executor.submit(abs, -2).result(PATIENCE) == 2


def install() -> None:
    signal.signal(signal.SIGTERM, shout)


def preexec_installs() -> None:
    """What preexec installs is there in the work."""
    with Jobserver("fork", 1) as js:
        assert js.replace_preexec(install)(look).result(PATIENCE)[0]["SIGTERM"] == "a handler"


def blocked_child_signal(name: str) -> None:
    """The forkserver, started while SIGCHLD is blocked, tells of its workers' ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    with face(name, "forkserver") as run:
        assert [run(abs, -1), run(abs, -2)] == [1, 2]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.SIGCHLD in mask
    with Jobserver("forkserver", 1) as js:
        future = js(os._exit, 3)
        assert future.wait(PATIENCE)
        lost = None
        try:
            future.result()
        except LostResult as error:
            lost = error
        assert lost is not None
        assert lost.exitcode == 3


def ignored_in_commands() -> None:
    """A command of `run`, in the main thread and in another, ignores what the program ignores."""
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, shout)
    command = ["grep", "SigIgn", "/proc/self/status"]
    with Jobserver("fork", 1) as js, ThreadPoolExecutor(1) as pool:
        here = js.run(command, capture_output=True).stdout
        there = pool.submit(js.run, command, capture_output=True).result(PATIENCE).stdout
    hosted = [sys.executable, "-m", "jobserver", "-j1", "--", *command]
    of_host = subprocess.run(hosted, capture_output=True, check=True).stdout
    alone = subprocess.run(command, capture_output=True, check=True).stdout
    expected = sum(1 << (signum - 1) for signum in ignored)
    # Without 32 and 33, which the C library ignores in what its posix_spawn starts.
    found = [int(each.split()[1], 16) & 0x7FFF_FFFF for each in (alone, here, there, of_host)]
    assert found == [expected] * 4
