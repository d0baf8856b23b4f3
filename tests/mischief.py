"""Work that fails, dies or misbehaves; without pytest, so that a spawned worker starts quickly."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Callable, NoReturn, Optional

from jobserver import Jobserver
from tests.work import (
    PATIENCE,
    await_file,
    die,
    pass_gate,
    raise_value_error,
    streamed_blob,
    touch,
)

# What may happen at any place: an error, an exit that unwinds, one that does not, and a crash.
KINDS = ("error", "exit", "_exit", "crash")


def strike(kind: Optional[str]) -> None:
    """Have that happen here and now; None: nothing."""
    if kind == "error":
        raise ValueError("struck")
    if kind == "exit":
        sys.exit("struck")
    if kind == "_exit":
        os._exit(3)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)


class StrikesWhenPickled:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> NoReturn:
        strike(self.kind)
        raise AssertionError("the strike missed")


class StrikesWhenUnpickled:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return strike, (self.kind,)


def strike_when_pickled(kind: str) -> StrikesWhenPickled:
    return StrikesWhenPickled(kind)


def strike_when_unpickled(kind: str) -> StrikesWhenUnpickled:
    return StrikesWhenUnpickled(kind)


@contextmanager
def striking(entering: Optional[str], leaving: Optional[str]) -> Iterator[None]:
    strike(entering)
    yield
    strike(leaving)


def ignore(*_: object) -> str:
    return "ignored"


def send_and_strike(mark: str, kind: str, size: int) -> bytes:
    """A result too large for any pipe, whose sending is struck by SIGUSR1."""

    def now(_signum: int, _frame: Optional[FrameType]) -> None:
        strike(kind)

    signal.signal(signal.SIGUSR1, now)
    touch(mark)
    return streamed_blob(size)


def close_all() -> str:
    """Close every descriptor, the result channel too: the answer cannot be sent."""
    os.closerange(3, 1024)
    return "unsent"


def close_all_and_hold(mark: str, gate: str) -> None:
    os.closerange(3, 1024)
    touch(mark)
    pass_gate(gate)


class DetailedError(Exception):
    """An exception with more to it than its arguments."""

    def __init__(self, code: int, hint: str = "") -> None:
        super().__init__(code)
        self.hint = hint


def raise_detailed(code: int, hint: str) -> NoReturn:
    raise DetailedError(code, hint)


def raise_from(first: str, second: str) -> NoReturn:
    try:
        raise KeyError(first)
    except KeyError as error:
        raise ValueError(second) from error


def raise_while(first: str, second: str) -> NoReturn:
    try:
        raise KeyError(first)
    except KeyError:
        raise_value_error(second)


class Abort(BaseException):
    """Neither an Exception nor one of Python's own."""


def raise_base(name: str) -> NoReturn:
    kinds: dict[str, type[BaseException]] = {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "GeneratorExit": GeneratorExit,
        "Abort": Abort,
    }
    raise kinds[name]("base of it")


class LockedError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raise_locked(text: str) -> NoReturn:
    raise LockedError(text)


class FussyError(Exception):
    """An exception that pickles, and cannot be rebuilt: it wants two arguments and keeps one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def raise_fussy() -> NoReturn:
    raise FussyError("one", "two")


class Unbuildable:
    """An object that pickles, and cannot be rebuilt."""

    def __reduce__(self) -> tuple[Callable[[str], NoReturn], tuple[str]]:
        return raise_value_error, ("no way back",)


def make_unbuildable() -> list[Unbuildable]:
    return [Unbuildable()]


class Closure:
    """An object that cannot be pickled."""

    def __init__(self) -> None:
        self.function = lambda: None


def make_closure() -> Closure:
    return Closure()


def make_deep() -> list[object]:
    """A list nested deeper than pickle goes."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def exec_program(*argv: str) -> NoReturn:
    os.execv(argv[0], argv)


def hold_program(gate: str) -> list[str]:
    """The command of a program that ends when the gate at `gate` does."""
    return ["/bin/sh", "-c", 'cat "$0" >/dev/null', gate]


def leave_program(mark: str, gate: str, signum: int) -> str:
    """Start a program that outlives this worker, then return or die."""
    command = hold_program(gate)
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    note_pid(mark, pid)
    if signum:
        die(signum)
    return "left"


def leave_grandchild(mark: str, gate: str, signum: int) -> str:
    """Fork a process that holds all that this worker has open, then return or die."""
    # Under numbers of its own: nothing that closes what it knows in forked children knows these.
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}"):
            os.dup(int(fd))
    pid = os.fork()
    if pid == 0:
        try:
            pass_gate(gate)
        finally:
            os._exit(0)
    note_pid(mark, pid)
    if signum:
        die(signum)
    return "left"


def note_pid(mark: str, pid: int) -> None:
    """Write the process id to the file, which appears complete."""
    with open(mark + ".new", "w") as file:
        file.write(str(pid))
    os.rename(mark + ".new", mark)


def clean_up_on(mark: str, signum: int) -> str:
    """Wait to be told by that signal to clean up and return."""

    class ToldError(Exception):
        pass

    def tell(_signum: int, _frame: Optional[FrameType]) -> None:
        raise ToldError

    try:
        signal.signal(signum, tell)
        touch(mark)
        threading.Event().wait(PATIENCE)
    except ToldError:
        return "cleaned up"
    return "never told"


def linger(gate: str, value: str) -> str:
    """Return at once, but leave a thread that keeps the process from ending before the gate."""
    threading.Thread(target=pass_gate, args=(gate,)).start()
    return value


def nested_die(js: Jobserver, mark: str) -> object:
    """Submit work that is killed, and let its loss be this work's failure."""
    note_pid(mark, os.getpid())
    return js.submit(die).result(PATIENCE)


def note_own_pid_and_pass(mark: str, gate: str) -> None:
    note_pid(mark, os.getpid())
    pass_gate(gate)


def ignore_all(**_: object) -> None:
    pass


def touch_late(mark: str, delay: float) -> None:
    """Leave the file after a while, in which whoever submitted this may have ended."""
    time.sleep(delay)
    touch(mark)


def leave_nested(js: Jobserver, gate: str, ending: str, depth: int) -> str:
    """Submit held work, nested so deep, and end without waiting for it."""
    if depth:
        _left.append(js.submit(leave_nested, args=(js, gate, ending, depth - 1)))
    else:
        _left.append(js.submit(pass_gate, args=(gate, "nobody asks")))
    if ending == "error":
        raise ValueError("left")
    return "left"


def leave_nested_blob(js: Jobserver, size: int) -> str:
    """Submit work with a large result, and end without reading it."""
    _left.append(js.submit(streamed_blob, args=(size,)))
    return "left"


def leave_nested_dead(js: Jobserver) -> str:
    _left.append(js.submit(die))
    return "left"


_left: list[object] = []  # Futures that a worker still has when it ends


def kill_newborn(parent: int, kills: int) -> None:
    """Kill processes that `parent` starts from now on, as soon as they are seen.

    Says "ready" when it looks. Ends with that many kills, or when its input ends.
    """
    children = Path(f"/proc/{parent}/task/{parent}/children")
    known = set(children.read_text().split())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while kills and not select.select([sys.stdin], [], [], 0)[0]:
        for pid in set(children.read_text().split()) - known:
            known.add(pid)
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
            kills -= 1


def die_before_nested(js: Jobserver, mark: str, gate: str) -> None:
    """Be killed while work that this work has submitted runs on."""
    _left.append(js.submit(note_own_pid_and_pass, args=(mark, gate)))
    await_file(mark)
    die()
