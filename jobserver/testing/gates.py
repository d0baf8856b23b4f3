"""Work that says when it has begun, and is held until it is told how to end.

Machines over real processes run it: each step has one outcome, since no work ends by itself. It
runs in workers, so it imports next to nothing. POSIX only.

    worker                       machine
    perform ── begun, pid ──>  notes, a FIFO
            <── an ending ───  a gate, a FIFO for each piece of work
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Set as AbstractSet
from typing import Callable, Final, NoReturn, Optional

_NOTES: Final = "notes"
_INITIALIZER: Final = "initializer"  # the gate that holds it
_LEFT: Final = 7  # exit status

_initialized = False


def perform(home: str, number: int, task: str, cargo: object = None) -> object:  # noqa: ARG001
    """Work: say that it has begun; when "held", end as told. `cargo` is for its way here.

    Of a chunk of calls the first speaks for all; the others, which "follow", return at once.
    """
    if task != "follows":
        _note(home, number)
    return ENDINGS[_pass(home, str(number), 64) if task == "held" else "returns"](number)


def _note(home: str, number: int) -> None:
    note = f"{number} {os.getpid()} {int(_initialized)}\n"
    fd = os.open(os.path.join(home, _NOTES), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, note.encode())  # at once: it is shorter than PIPE_BUF
    finally:
        os.close(fd)


def initialize(home: str, fails: bool) -> None:
    """An initializer; one that fails does so when it is told to."""
    global _initialized
    _initialized = True
    if fails:
        _pass(home, _INITIALIZER, 1)
        raise ValueError("the initializer")


def _pass(home: str, gate: str, size: int) -> str:
    """What is said at the gate, once something is."""
    # Opened both ways: so it never sees the end of the file, even when the machine has gone.
    fd = os.open(os.path.join(home, gate), os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.read(fd, size).decode()
    finally:
        os.close(fd)


class Cargo:
    """An argument or a result that does not arrive, as its name says."""

    def __init__(self, fate: str) -> None:
        self.fate = fate

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        if self.fate == "is not picklable":
            raise ValueError(self.fate)
        return _load, (self.fate,)


def _load(fate: str) -> None:
    if fate == "exits when loaded":
        sys.exit(_LEFT)
    if fate == "dies when loaded":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(fate)


def much(number: int) -> bytes:
    """More than a pipe holds."""
    return number.to_bytes(4, "big") * (1 << 15)


def _raise(number: int) -> NoReturn:
    raise ValueError(number)


def _raise_what_is_not_picklable(_: int) -> NoReturn:
    raise ValueError(Cargo("is not picklable"))


def _interrupt(_: int) -> NoReturn:
    raise KeyboardInterrupt


def _exit(_: int) -> NoReturn:
    sys.exit(_LEFT)


def _leave(_: int) -> NoReturn:
    os._exit(_LEFT)


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# How held work can end, simplest first.
ENDINGS: Final[dict[str, Callable[[int], object]]] = {
    "returns": int,
    "raises": _raise,
    "dies": _die,
    "leaves": _leave,
    "exits": _exit,
    "interrupts": _interrupt,
    "returns much": much,
    "returns an error": ValueError,
    "returns what is not picklable": lambda _: Cargo("is not picklable"),
    "raises what is not picklable": _raise_what_is_not_picklable,
    "returns what is not reconstructable": lambda _: Cargo("is not reconstructable"),
}


class Home:
    """The machine's half: a directory with the notes and the gates."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.begun: dict[int, tuple[int, bool]] = {}  # who, its process, and whether initialized
        self._gates: dict[str, int] = {}
        # Held open both ways: neither we nor a worker waits for the other to open it.
        self._notes = self._make(_NOTES)
        self.shut_initializer()

    def _make(self, name: str) -> int:
        path = os.path.join(self.path, name)
        os.mkfifo(path)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)

    def hold(self, number: int) -> None:
        """Make the gate of a piece of work that is to be held."""
        self._gates[str(number)] = self._make(str(number))

    def end(self, number: int, ending: str) -> None:
        """Tell held work how to end; nobody else comes through this gate."""
        os.write(self._gates[str(number)], ending.encode())

    def fail_initializers(self) -> None:
        """Let the initializers that wait fail, and those that come."""
        os.write(self._gates[_INITIALIZER], b"." * 1024)

    def shut_initializer(self) -> None:
        """Hold initializers again, after they were made to fail."""
        self._drop(_INITIALIZER)
        self._gates[_INITIALIZER] = self._make(_INITIALIZER)

    def hear(self, awaited: AbstractSet[int], patience: float) -> None:
        """Read the notes, until all that are awaited have begun or patience has ended."""
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._notes, 1 << 16):
                    self._note(data)
            remaining = deadline - time.monotonic()
            if awaited <= self.begun.keys() or remaining < 0:
                return
            select.select([self._notes], [], [], remaining)

    def _note(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            number, pid, initialized = map(int, line.split())
            assert number not in self.begun, f"{number} has begun twice"
            self.begun[number] = pid, bool(initialized)

    def _drop(self, name: str) -> None:
        fd: Optional[int] = self._gates.pop(name, None)
        if fd is not None:
            os.unlink(os.path.join(self.path, name))
            os.close(fd)

    def close(self) -> None:
        """Let everybody go, who waits or comes."""
        for name, fd in list(self._gates.items()):
            # Who has opened the gate keeps what is said; who comes later finds none, and fails.
            with contextlib.suppress(BlockingIOError):
                os.write(fd, b"returns")
            self._drop(name)
        if self._notes != -1:
            os.unlink(os.path.join(self.path, _NOTES))
            os.close(self._notes)
            self._notes = -1
