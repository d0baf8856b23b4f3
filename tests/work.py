"""What the tests run in workers, importable there by name, and how they hold and await it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Optional, TypeVar, Union

T = TypeVar("T")

# Nothing here takes a second; a test that reaches this bound has found a hang.
PATIENCE = 60.0


def echo(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def add(a: int, b: int) -> int:
    return a + b


def identity(value: T) -> T:
    return value


def raise_value_error(text: str) -> NoReturn:
    raise ValueError(text)


def getpid() -> int:
    return os.getpid()


def die(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


def os_exit(code: int) -> NoReturn:
    os._exit(code)


def sys_exit(code: object) -> NoReturn:
    sys.exit(code)  # type: ignore[arg-type]  # any object is a legal exit status at run time


def blob(size: int) -> bytes:
    return b"x" * size


def streamed_blob(size: int) -> bytes:
    """The same, through the result channel: this worker may write no file from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return blob(size)


def touch(path: Union[str, Path]) -> None:
    """Create the file: the worker's half of `await_file`."""
    Path(path).touch()


def await_file(path: Union[str, Path]) -> None:
    """Wait until another process created the file, or fail.

    A file has no portable event; the look repeats quickly and is bounded.
    """
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise AssertionError(f"{path} was not created within {PATIENCE} s")
        time.sleep(0.002)


class Gate:
    """A FIFO that holds workers in `pass_gate` until the test opens it."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)
        os.mkfifo(self.path)
        # Held open both ways, so that a worker's open for reading does not block and reads do.
        self._fd: Optional[int] = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def open(self) -> None:
        """Let everyone pass, now and later."""
        if self._fd is not None:
            # More bytes than any test has workers: each takes one.
            os.write(self._fd, b"." * 4096)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.open()
        # The bytes live only while somebody holds the FIFO. Whoever has it open keeps them; who
        # comes later finds no FIFO and fails at once, instead of holding a failed test up.
        os.unlink(self.path)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def pass_gate(path: str, value: Optional[T] = None) -> Optional[T]:
    """Block until the gate at `path` is open, then return `value`."""
    # Opened both ways: a reader that keeps a write end never sees the end of the file, even when
    # the test has already opened the gate and gone.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)
    return value


def touch_and_pass_gate(mark: str, path: str, value: Optional[T] = None) -> Optional[T]:
    """Say that the work has begun, then hold until the gate opens."""
    touch(mark)
    return pass_gate(path, value)
