"""What a forked child must not keep of its parent.

A result channel is closed when its worker ends: that is how a death is told. It only means that
when nobody else holds its write end, so every forked child (ours, or the user's own `os.fork`)
closes the descriptors that are private to its parent, and objects that track the parent's work
start anew.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from . import worker


class ForkAware(Protocol):
    """Something that must be reset in a forked child.

    `after_fork` is called in the child, in its only thread, before any other code of the program.
    It must not take a lock that existed before: another thread may have held it.
    """

    def after_fork(self) -> None: ...


_private: set[int] = set()
_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_thread = threading.local()


def private(fd: int) -> int:
    """Have forked children close this descriptor; return it. `close` is its end."""
    _private.add(fd)
    return fd


def close(fd: int) -> None:
    """Close a private descriptor."""
    # Forgotten first: a child forked in between by another thread inherits an open descriptor,
    # which is harmless; the other way round it might close a stranger that reused the number.
    _private.discard(fd)
    os.close(fd)


def pipe() -> tuple[int, int]:
    """A pipe whose ends are private to this process."""
    read, write = os.pipe()
    return private(read), private(write)


@contextmanager
def handing_over(*fds: int) -> Generator[None, None, None]:
    """Let a child that this thread forks within keep these private descriptors."""
    _thread.handed = frozenset(fds)
    try:
        yield
    finally:
        _thread.handed = frozenset()


def reset_in_children(item: ForkAware) -> None:
    """Call `item.after_fork()` in forked children, for as long as the item lives."""
    _aware.add(item)


def _in_child() -> None:
    handed: frozenset[int] = getattr(_thread, "handed", frozenset())
    unwanted = _private - handed
    if handed and worker.answering is not None:
        # One of our own, which has its own channel. A process that the work forks by itself keeps
        # the work's: that the channel is open says that somebody may still answer.
        unwanted.add(worker.answering)
        worker.answering = None
    for fd in unwanted:
        try:
            os.close(fd)
        except OSError:
            continue  # another thread of the parent was just closing it
    _private.clear()
    _thread.handed = frozenset()
    for item in list(_aware):
        item.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
