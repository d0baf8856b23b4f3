"""Waiting in the kernel, for one process: a poller that another thread can wake."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from typing import Final, Optional

from . import forks

# The kernel's interfaces take milliseconds in an int. Whoever waits longer waits again.
_LONGEST: Final = 3600.0  # seconds

HAS_EPOLL: Final = hasattr(select, "epoll")


class _Epoll:
    """epoll itself: every page that is touched after a fork costs, and a selector touches many."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._subjects: dict[int, object] = {}

    def watch(self, fd: int, subject: object) -> None:
        if fd not in self._subjects:
            self._epoll.register(fd, select.EPOLLIN)
        self._subjects[fd] = subject

    def unwatch(self, fd: int) -> None:
        del self._subjects[fd]
        self._epoll.unregister(fd)

    def poll(self, timeout: float) -> list[object]:
        found = self._epoll.poll(timeout, len(self._subjects) or 1)
        # What another thread has unwatched meanwhile is not ready any more.
        return [self._subjects[fd] for fd, _ in found if fd in self._subjects]

    def close(self) -> None:
        self._epoll.close()


class _Selector:
    """The platform's best selector: kqueue, where there is fork without epoll."""

    def __init__(self) -> None:
        import selectors

        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, subject: object) -> None:
        known = fd in self._selector.get_map()
        change = self._selector.modify if known else self._selector.register
        change(fd, 1, subject)  # selectors.EVENT_READ

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float) -> list[object]:
        return [key.data for key, _ in self._selector.select(timeout)]

    def close(self) -> None:
        self._selector.close()


class KernelPoller:
    """`protocols.Poller` over what the platform has; it may be changed while it is polled."""

    def __init__(self) -> None:
        self._kernel = _Epoll() if HAS_EPOLL else _Selector()
        self._bell: Optional[tuple[int, int]] = None

    def watch(self, fd: int, subject: object) -> None:
        self._kernel.watch(fd, subject)

    def unwatch(self, fd: int) -> None:
        self._kernel.unwatch(fd)

    def poll(self, timeout: Optional[float]) -> Iterable[object]:
        if timeout is None or timeout > _LONGEST:
            timeout = _LONGEST
        ready = self._kernel.poll(timeout)
        if self._bell is not None and self in ready:
            ready.remove(self)
            # A look in passing leaves it ringing: it rings for whoever waits, in another thread.
            if timeout:
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
        self._kernel.close()
        if self._bell is not None:
            for fd in self._bell:
                forks.close(fd)
            self._bell = None

    def abandon(self) -> None:
        """In a forked child: let go of the parent's, whose descriptors are closed already."""
        self._kernel.close()
        self._bell = None
