"""How many processes compute at once, told by the kernel and by nothing of this library.

Whoever computes holds a lock on one byte of a file, a byte that nobody had before or will have
again. These are POSIX record locks: they belong to one process, are not inherited by its children
and go when it dies, before anything else that its death sets free. A process of its own counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import struct
from collections.abc import Generator
from typing import Final, Optional

import attrs

_BYTES: Final = 1 << 60  # any two of so many collide about never
_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock, where off_t has 64 bits
_PAUSE: Final = 0.002  # seconds between two looks

# The file's descriptor in this process: opened once, since closing any descriptor of the file
# would drop the process's locks on it.
_files: dict[str, int] = {}

_held: Optional[int] = None  # the byte that this process holds


@contextlib.contextmanager
def computing(path: str) -> Generator[None, None, None]:
    """Count this process, within."""
    _lock(path)
    try:
        yield
    finally:
        _unlock(path)


@contextlib.contextmanager
def waiting(path: str) -> Generator[None, None, None]:
    """Do not count this process, within, if it is counted: it may lend its slot meanwhile."""
    counted = _held is not None
    if counted:
        _unlock(path)
    try:
        yield
    finally:
        if counted:
            _lock(path)


def forget() -> None:
    """In a process that was forked from one that is counted: it is not."""
    global _held
    _held = None


def _file(path: str) -> int:
    if path not in _files:
        _files[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return _files[path]


def _lock(path: str) -> None:
    global _held
    byte = secrets.randbelow(_BYTES)
    fcntl.lockf(_file(path), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    _held = byte


def _unlock(path: str) -> None:
    global _held
    byte, _held = _held, None
    if byte is not None:
        fcntl.lockf(_file(path), fcntl.LOCK_UN, 1, byte)


def holders(fd: int) -> dict[int, int]:
    """The bytes that are locked, and by whom. Not of one instant: see `Count.look`."""
    found: dict[int, int] = {}
    gaps = [(0, _BYTES)]
    while gaps:
        start, end = gaps.pop()
        if start >= end:
            continue
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, question)
        kind, _, byte, length, pid = _FLOCK.unpack(answer)
        if kind != fcntl.F_UNLCK:
            found[byte] = pid
            gaps += [(start, byte), (byte + length, end)]
    return found


@attrs.define
class Count:
    """What was seen, in all looks."""

    most: int = 0  # computed at once
    looks: int = 0
    excesses: int = 0  # times at which there began to be more than there may be
    _over: bool = False

    def look(self, fd: int, allowed: int) -> None:
        """Count who computes now.

        A byte is locked once. One that is locked in two looks in a row was locked all the time
        between them: whoever is counted computed at that one instant.
        """
        held = holders(fd).keys() & holders(fd).keys()
        self.looks += 1
        self.most = max(self.most, len(held))
        over = len(held) > allowed
        self.excesses += over and not self._over
        self._over = over


def watch(path: str, allowed: int, stop: int) -> Count:
    """Look again and again until the descriptor `stop` is readable."""
    count = Count()
    fd = _file(path)
    while not select.select([stop], [], [], _PAUSE)[0]:
        count.look(fd, allowed)
    return count
