"""Descriptors in what a worker answers: they travel along with the answer.

multiprocessing has the receiver of a socket or a connection fetch its descriptor later, from a
thread of the sender. A worker may have ended by then. So what is pickled of a descriptor is its
place among those that are sent with the answer, as the file of a large value is.

    DupFd(fd) -> Travelling -> its place, in the pickle -> Arrived -> detach() -> fd
"""

from __future__ import annotations

import os
import threading
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable, Optional

    # What reducers call for a descriptor; typeshed has it for some platforms only.
    _dup_fd: Optional[Callable[[int], object]]

_dup_fd = getattr(reduction, "DupFd", None)

# In one message: SCM_MAX_FD of Linux, less one for the file of a large value.
MOST = 252

_thread = threading.local()


class Travelling:
    """A duplicate of a descriptor, until it is sent."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd: int = -1  # if there is none to be had
        self.fd = os.dup(fd)

    def __reduce__(self) -> tuple[object, ...]:
        collected: list[Travelling] = _thread.collected
        if len(collected) == MOST:
            raise ValueError(f"the answer refers to more than {MOST} files")
        collected.append(self)
        return arrived_at, (len(collected) - 1,)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Arrived:
    """A descriptor that has come with an answer; closed when nobody can ask for it any more."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def detach(self) -> int:
        """A descriptor of the caller's own. A duplicate, as an answer can be loaded again."""
        return os.dup(self._fd)

    def __reduce__(self) -> tuple[object, ...]:
        assert _dup_fd is not None, "nothing arrives where there are none"
        return passed_on, (reduction.DupFd(self._fd),)

    def __del__(self) -> None:
        os.close(self._fd)


def arrived_at(place: int) -> object:
    """What comes of a `Travelling` in the pickle that is loaded: see `present`."""
    return _thread.present[place]


def passed_on(descriptor: object) -> object:
    """What comes of an `Arrived` that is sent on."""
    return descriptor


class collecting:  # noqa: N801 - used as a statement: `with collecting(found):`
    """Have the descriptors of what this thread pickles within in a list, by their places."""

    def __init__(self, found: list[Travelling]) -> None:
        self._found = found

    def __enter__(self) -> None:
        self._outer: object = getattr(_thread, "collected", None)
        _thread.collected = self._found
        _replace(_collect)

    def __exit__(self, *error: object) -> None:
        _replace(_dup_fd)
        _thread.collected = self._outer


class present:  # noqa: N801 - used as a statement: `with present(descriptors):`
    """Have these descriptors be what the pickle refers to that this thread loads within."""

    def __init__(self, descriptors: Sequence[object]) -> None:
        self._descriptors = descriptors

    def __enter__(self) -> None:
        self._outer: object = getattr(_thread, "present", ())
        _thread.present = self._descriptors

    def __exit__(self, *error: object) -> None:
        _thread.present = self._outer


def _replace(dup_fd: Any) -> None:
    # There is no hook for this but the one for a process that is being started. With that, locks
    # and queues could be pickled as well, which their owner's end would break.
    if _dup_fd is not None:
        reduction.DupFd = dup_fd


def _collect(fd: int) -> object:
    """In the place of `DupFd`; other threads, and processes being started, have the real one."""
    assert _dup_fd is not None, "else it is not replaced"
    if getattr(_thread, "collected", None) is None or get_spawning_popen():
        return _dup_fd(fd)
    return Travelling(fd)
