"""What a forked child must not keep of its parent.

A result channel is closed when its worker ends: that is how a death is told. It only means that
when nobody else holds its write end, so every forked child (ours, or the user's own `os.fork`)
closes the descriptors that are private to its parent, and objects that track the parent's work
start anew.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
import weakref
from typing import Final, Protocol

from . import interrupts, signals, worker


class ForkAware(Protocol):
    """Something that must be reset in a forked child.

    `after_fork` is called in the child, in its only thread: before any other code of the program
    or, in a worker, when something inherited is first used (`catch_up`). It must not take a lock
    that existed before: another thread may have held it.
    """

    def after_fork(self) -> None: ...


_private: set[int] = set()
_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
behind: bool = False  # whether `_aware` are still as the parent had them
_collects = False  # whether garbage was collected before the fork
_thread = threading.local()

# Held while a private descriptor is opened or closed, and while the process forks: a child
# forked in between, by another thread, would not know of it and keep it for life.
opening: threading.RLock = threading.RLock()
_PATIENCE: Final = 1.0  # seconds


def private(fd: int) -> int:
    """Have forked children close this descriptor; return it. `close` is its end."""
    _private.add(fd)
    return fd


def close(fd: int) -> None:
    """Close a private descriptor."""
    # No fork in between: its child would keep the descriptor, or close a stranger that has the
    # number by then. But a finalizer may have stopped a thread that the fork itself waits for.
    alone = opening.acquire(timeout=_PATIENCE)
    try:
        _private.discard(fd)
        os.close(fd)
    finally:
        if alone:
            opening.release()


def publish(fd: int) -> int:
    """Have forked children keep a private descriptor from now on; return it."""
    _private.discard(fd)
    return fd


def pipe() -> tuple[int, int]:
    """A pipe whose ends are private to this process."""
    with opening:
        read, write = os.pipe()
        return private(read), private(write)


def duplicate(fd: int) -> int:
    """A descriptor of the same open file, private to this process."""
    with opening:
        return private(os.dup(fd))


def open_file(path: str, flags: int) -> int:
    """A file opened for this process alone, which a program that it becomes does not get either."""
    with opening:
        return private(os.open(path, flags | os.O_CLOEXEC, 0o600))


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets, private to this process."""
    with opening:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in ends:
            private(end.fileno())
            if end.gettimeout() is not None:  # `socket.setdefaulttimeout` is for others
                end.settimeout(None)
    return ends


def close_socket(end: socket.socket) -> None:
    """Close a private socket, if it is not closed already."""
    fd = end.detach()
    if fd >= 0:
        close(fd)


class handing_over:  # noqa: N801 - used as a statement: `with handing_over(fd):`
    """Let a child that this thread forks within keep these private descriptors."""

    __slots__ = ("_fds",)

    def __init__(self, *fds: int) -> None:
        self._fds = frozenset(fds)

    def __enter__(self) -> None:
        _thread.handed = self._fds

    def __exit__(self, *error: object) -> None:
        _thread.handed = frozenset()


def is_handing_over() -> bool:
    """Whether what this thread forks now is a worker, or another process of this package."""
    return bool(getattr(_thread, "handed", None))


def reset_in_children(item: ForkAware) -> None:
    """Call `item.after_fork()` in forked children, for as long as the item lives."""
    catch_up()
    _aware.add(item)


def catch_up() -> None:
    """To be called before what was inherited is used: resets it, if that has been put off."""
    if behind:
        _reset_inherited()


def _reset_inherited() -> None:
    global behind
    # Other threads of the child wait, lest they use what is not reset yet. An interrupt leaves it
    # to the next caller.
    with opening:
        for item in list(_aware):
            if not behind:
                return  # a finalizer that ran amid this has done it
            item.after_fork()
        behind = False


def _before() -> None:
    global _collects
    opening.acquire()
    # In the child, finalizers would use what has not been reset there, such as a descriptor's
    # number that is another's by now.
    _collects = gc.isenabled()
    gc.disable()


def _in_parent() -> None:
    if _collects:
        gc.enable()
    opening.release()


def _in_child() -> None:
    global behind
    opening.release()  # this thread acquired it before it forked
    interrupts.forget_in_child()  # which restores handlers that may then be reset
    handed: frozenset[int] = getattr(_thread, "handed", frozenset())
    if handed:
        signals.reset_handlers()
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
    behind = True
    if handed:
        # A worker pays for what it uses only: few look at a handle that came in memory. What came
        # is not collected either: `_aware` has no more of it by the time it is finalized.
        gc.freeze()
        _thread.handed = frozenset()
    else:
        catch_up()
    if _collects:
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
