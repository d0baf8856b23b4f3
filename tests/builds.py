"""Builds that a test stands in for: a jobserver of make's, and what runs in its recipes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Optional, Union

from jobserver import Blocked, Jobserver, JobserverExecutor, LostResult
from tests.processes import check_slots, run_command
from tests.work import PATIENCE, Gate, await_file, die, touch, touch_and_pass_gate

STYLES = ("pipe", "fifo")


class Build:
    """The jobserver of a make that is busy with other things, but for these tokens."""

    def __init__(self, directory: Path, style: str, tokens: bytes, *, told: bool = True) -> None:
        if style == "pipe":
            self.read, self.write = os.pipe()
            auth = f"{self.read},{self.write}"
        else:
            path = str(directory / "make.fifo")
            os.mkfifo(path)
            self.read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.write = os.open(path, os.O_WRONLY)
            os.set_blocking(self.read, True)  # as make has it
            auth = f"fifo:{path}"
        for fd in self.descriptors:
            os.set_inheritable(fd, True)  # as they are in a recipe that make shares them with
        number = str(len(tokens) + 1) if told else ""
        self.makeflags = f" -j{number} --jobserver-auth={auth}"
        os.write(self.write, tokens)

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.read, self.write

    def tokens(self) -> bytes:
        """What is in the pipe, in any order; it is taken out."""
        os.write(self.write, b"\0")  # so that there is something to read
        found = os.read(self.read, 1 << 16)
        return bytes(sorted(found.replace(b"\0", b"", 1)))

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


@contextmanager
def build(directory: Path, style: str, tokens: bytes, *, told: bool = True) -> Iterator[Build]:
    """A `Build`; this process runs in a recipe of it, within."""
    sigterm = signal.getsignal(signal.SIGTERM)
    made = Build(directory, style, tokens, told=told)
    before = os.environ.get("MAKEFLAGS")
    os.environ["MAKEFLAGS"] = made.makeflags
    try:
        yield made
    finally:
        signal.signal(signal.SIGTERM, sigterm)
        if before is None:
            del os.environ["MAKEFLAGS"]
        else:
            os.environ["MAKEFLAGS"] = before
        made.close()


# What runs in workers.


def join_and_submit(js: Optional[Jobserver], method: str) -> tuple[str, int]:
    """What a Jobserver that a worker makes answers at once, and what it does without a timeout."""
    with Jobserver(method) as mine:
        try:
            at_once = str(mine.submit(abs, args=(-1,), timeout=0).result())
        except Blocked:
            at_once = "Blocked"
        return at_once, mine(abs, -2).result()


def descend(js: Jobserver, depth: int) -> int:
    """A chain of work, each piece of which waits for the next."""
    return 1 + js(descend, js, depth - 1).result() if depth else 0


def hold_two_below(js: Jobserver, marks: list[str], gate: str) -> None:
    """Two pieces of work on slots that this one has taken; then this one is killed."""
    futures = [js.submit(touch_and_pass_gate, args=(mark, gate)) for mark in marks]
    for mark in marks:
        await_file(mark)
    assert futures
    os.kill(os.getpid(), signal.SIGKILL)


def take_and_die(js: Jobserver) -> None:
    """Be killed with a byte that nobody has been put on."""
    from jobserver.server import share

    resources, _ = share(js)
    with resources.engine.lock:
        assert resources.engine.slots.take() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def outlive(mark: str, js: Optional[Jobserver], directory: str) -> None:
    """Outlive who submitted this; given a handle, find three slots then, those of others too."""
    touch(mark)
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(PATIENCE)
    if js is not None:
        check_slots(js, 3, Path(directory, "below"))
        touch(mark + "-done")


def meet(directory: str, number: int) -> None:
    """Note when it runs. Nobody ends before so many have begun: they are there at once."""
    begun = time.monotonic_ns()
    Path(directory, f"{os.getpid()}-{begun}.begun").touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(Path(directory).glob("*.begun"))) < number:
        assert time.monotonic() < deadline, f"no {number} meet"
        time.sleep(0.002)
    with Path(directory, "log").open("a") as log:
        log.write(f"{begun} {time.monotonic_ns()}\n")


def most_at_once(directory: Path) -> int:
    """How many `meet` at a time, by what they have noted."""
    changes: list[tuple[int, int]] = []
    for line in (directory / "log").read_text().splitlines():
        begun, ended = map(int, line.split())
        changes += (begun, 1), (ended, -1)
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


# Programs in a recipe.


def step(method: str, directory: str, jobs: int, number: int) -> None:
    """A step of a build that has so many jobs."""
    with Jobserver(method) as js:
        say("slots", js.slots)
        for _ in js.map(meet, [(directory, number)] * jobs):
            pass


def lossy_step(method: str, directory: str) -> None:
    """One of whose jobs are killed, with and without further slots."""
    with Jobserver(method) as js:
        futures = [js(die), js(take_and_die, js), js(die)]
        for future in futures:
            try:
                future.result()
            except LostResult:
                say("lost")


def run_recipe(
    outer: Build, program: Callable[..., None], *args: Union[str, int], status: int = 0
) -> tuple[str, str]:
    """Run a function in a process that the build starts: what it prints, and prints of errors.

    All is read to the end, which comes only when whoever inherited the output is gone.
    """
    source = f"from {__name__} import {program.__name__} as run; run(*{args!r})"
    done = run_command(
        [sys.executable, "-c", source],
        program.__name__,
        status=status,
        env={**os.environ, "MAKEFLAGS": outer.makeflags},
        pass_fds=outer.descriptors,
    )
    return done.stdout, done.stderr


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def await_all(directory: str, number: int) -> None:
    for each in range(number):
        await_file(f"{directory}/{each}")


def leave_work(method: str, directory: str, number: int) -> None:
    """End with work under way, and without having closed anything."""
    js = Jobserver(method)
    gate = Gate(Path(directory))
    futures = [
        js.submit(touch_and_pass_gate, args=(f"{directory}/{each}", gate.path))
        for each in range(number)
    ]
    await_all(directory, number)
    gate.open()
    sys.modules["kept"] = futures  # type: ignore[assignment]  # until the interpreter ends


def await_signal(js: Optional[Jobserver], mark: str) -> None:
    """Work that only a signal ends; given a handle, there is more of it below."""
    below = None if js is None else js(await_signal, None, mark + "-below")
    touch(mark)
    time.sleep(PATIENCE)
    assert below is None, "killed long before"


def be_signalled(method: str, directory: str, number: int, signum: int) -> None:
    """Get a signal with work under way, each in `number` processes on two slots."""
    js = Jobserver(method)
    futures = [js(await_signal, js, f"{directory}/{each}") for each in range(number)]
    await_all(directory, number)
    if signum == signal.SIGINT:  # Ctrl-C: all of them get it
        os.killpg(os.getpgrp(), signum)
    else:
        os.kill(os.getpid(), signum)
    futures[0].result()


def be_terminated_with_executor(method: str, directory: str, number: int) -> None:
    """The same, of work that an executor's thread has submitted; more of it is pending."""
    executor = JobserverExecutor(mp_context=method)
    futures = [executor.submit(await_signal, None, f"{directory}/{each}") for each in range(9)]
    await_all(directory, number)
    os.kill(os.getpid(), signal.SIGTERM)
    futures[0].result()


def be_killed(method: str, directory: str) -> None:
    """Leave work on the implicit slot, which has the handle, and on two others."""
    js = Jobserver(method)
    futures = [js(outlive, f"{directory}/0", js, directory)]
    futures += [js(outlive, f"{directory}/{each}", None, directory) for each in (1, 2)]
    await_all(directory, 3)
    os.kill(os.getpid(), signal.SIGKILL)
    assert futures, "not before"


def keep_own_handler(method: str, directory: str) -> None:
    """A program that minds SIGTERM itself."""
    signal.signal(signal.SIGTERM, lambda *_: touch(f"{directory}/handled"))
    with Jobserver(method) as js:
        os.kill(os.getpid(), signal.SIGTERM)
        assert js(abs, -1).result() == 1
    assert Path(directory, "handled").exists()


def show_handlers(method: str) -> None:
    """Whether SIGTERM is at its default: here, in a worker, and in a child that is forked here."""
    js = Jobserver(method)
    say(has_default(), js(has_default).result())
    if os.fork() == 0:
        say(has_default())
        os._exit(0)
    os.wait()


def has_default() -> bool:
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def warn_once(method: str) -> None:
    """Make three that cannot join, of which the first says so; they work."""
    warnings.simplefilter("always")  # not only once for each line
    for _ in range(3):
        with Jobserver(method) as js:
            say(js.slots, js(abs, -3).result())
