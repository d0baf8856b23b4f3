"""The pool of slots: one-byte tokens in a pipe.

Whoever wants to run work takes a token; it goes back when the work is over. The pipe is all there
is, so every process that has its two ends shares the slots. Both ends are non-blocking: all who
hold them are of this package.

A process that runs work holds a slot itself, `worker.held`, and may lend it: a submission that
would wait for ever in a full tree runs on its submitter's own slot, since the submitter computes
nothing meanwhile. GNU Make calls that slot the implicit one.
"""

from __future__ import annotations

import os
import select
from typing import Final, Optional

from . import forks, worker
from .protocols import Slot

# A token that is written must never wait, and no more than this many bytes are written at once.
# POSIX guarantees that a pipe holds them (limits.h; 4096 on Linux, 512 at least anywhere).
LIMIT: Final[int] = getattr(select, "PIPE_BUF", 512)


class SlotPool:
    """The slots of one jobserver, as this process sees them.

    Not thread-safe: the engine calls it under its lock.
    """

    def __init__(self, identity: str, count: int, read: int, write: int) -> None:
        self.identity = identity
        self.count = count
        self.read = read
        self.write = write
        self._lent: Optional[Slot] = None
        self._closed = False
        forks.reset_in_children(self)

    @classmethod
    def create(cls, count: int) -> SlotPool:
        """A new pool with `count` free slots."""
        read, write = os.pipe()
        for fd in (read, write):
            os.set_blocking(fd, False)
        os.write(write, b"+" * count)
        return cls(os.urandom(16).hex(), count, read, write)

    def keep_from_programs(self) -> None:
        """Close the pipe on exec: descriptors that came with the work arrive inheritable."""
        os.set_inheritable(self.read, False)
        os.set_inheritable(self.write, False)

    def fileno(self) -> int:
        """The descriptor that is readable when a slot may be had."""
        return self.read

    def take(self) -> Optional[Slot]:
        """A free slot, or None; never waits."""
        try:
            return Slot(os.read(self.read, 1))
        except BlockingIOError:
            return None

    def lend(self) -> Optional[Slot]:
        """The slot on which this process runs, if it has one that is not lent already."""
        if worker.held != self.identity or self._lent is not None:
            return None
        self._lent = Slot(b"")
        return self._lent

    def is_lent(self, slot: Optional[Slot]) -> bool:
        return slot is not None and slot is self._lent

    def give_back(self, slot: Slot) -> None:
        """Free a slot that was taken or lent. Each slot is given back once."""
        if slot is self._lent:
            self._lent = None
        else:
            os.write(self.write, slot.token)

    def close(self) -> None:
        """Let go of the pipe. Other processes keep theirs."""
        if not self._closed:
            self._closed = True
            os.close(self.read)
            os.close(self.write)

    def after_fork(self) -> None:
        # What the parent's work holds is the parent's. A child that is a worker is told anew.
        self._lent = None
        worker.held = None
