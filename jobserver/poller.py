"""Waiting in the kernel, for one process: a selector that another thread can wake."""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterable
from typing import Final, Optional

from . import forks

# The kernel's interfaces take milliseconds in an int. Whoever waits longer waits again.
_LONGEST: Final = 3600.0  # seconds


class KernelPoller:
    """`protocols.Poller` over the platform's best selector."""

    def __init__(self) -> None:
        # epoll and kqueue, the defaults where there is fork, may be changed while polled.
        self._selector = selectors.DefaultSelector()
        self._bell: Optional[tuple[int, int]] = None

    def watch(self, fd: int, subject: object) -> None:
        self._selector.register(fd, selectors.EVENT_READ, subject)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: Optional[float]) -> Iterable[object]:
        if timeout is None or timeout > _LONGEST:
            timeout = _LONGEST
        ready = [key.data for key, _ in self._selector.select(timeout)]
        if self._bell is not None and self in ready:
            ready.remove(self)
            try:
                os.read(self._bell[0], 4096)
            except BlockingIOError:
                pass  # another thread has read it
        return ready

    def wake(self) -> None:
        # A program whose waits never meet in two threads never needs these two descriptors.
        if self._bell is None:
            read, write = forks.pipe()
            os.set_blocking(read, False)
            os.set_blocking(write, False)
            self._bell = read, write
            self.watch(read, self)
        try:
            os.write(self._bell[1], b".")
        except BlockingIOError:
            pass  # it rings already

    def close(self) -> None:
        self._selector.close()
        if self._bell is not None:
            for fd in self._bell:
                forks.close(fd)
            self._bell = None

    def abandon(self) -> None:
        """In a forked child: let go of the parent's selector, without a word to the kernel."""
        self._selector.close()
        self._bell = None
