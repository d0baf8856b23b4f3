"""One resource tracker of multiprocessing for a tree of forked processes, started by its first use.

The tracker is a process that removes shared memory and named semaphores once all processes that
hold the write end of its pipe have ended. A process forked before there is one starts another, and
that one removes at the end of a worker what the worker has made for others, or has only attached.
To start one before every first fork would cost each program a Python process.

So only the pipe is made before the fork, and only its write end is kept. Nobody reads from it:
that is how a process sees that no tracker runs. The first process of the tree that needs one opens
the read end anew, through `/proc/self/fd`, and starts the tracker on it. Two that do so at once
are told apart by a lock on the read end, which is the tracker's for as long as it lives.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import weakref
from typing import Any, Final, Optional

# What a tracker ignores, once it has come so far; until then it has them blocked.
_IGNORED: Final = ("SIGINT", "SIGTERM")

_users: weakref.WeakSet[object] = weakref.WeakSet()
# The process that made the pipe, its write end, and multiprocessing's tracker, which is kept here
# because nothing can be imported any more when the interpreter ends.
_ours: Optional[tuple[int, int, Any]] = None


def hold(user: object) -> None:
    """Before this process forks for somebody: have its children share a tracker with it."""
    global _ours
    tracker = _tracker()
    _users.add(user)
    with tracker._lock:
        if tracker._fd is not None:
            return
        fd = _pipe()
        if fd is None:
            return
        _ours = os.getpid(), fd, tracker
        tracker._fd = fd
        tracker._check_alive = _StartFirst(tracker, "_check_alive", fd)
        if hasattr(tracker, "_write"):  # which later versions use in its place
            tracker._write = _StartFirst(tracker, "_write", fd)


def let_go(user: object) -> None:
    """The last one closes the pipe, unless a tracker has been started on it."""
    global _ours
    _users.discard(user)
    # A forked child keeps what it shares with its parent.
    if _ours is None or _users or _ours[0] != os.getpid():
        return
    _, fd, tracker = _ours
    # Finalizers call this as well, maybe amid a step of the tracker's: then it is left as it is.
    if not tracker._lock.acquire(blocking=False):
        return
    try:
        if tracker._fd == fd and not _has_reader(fd):
            _forget_overrides(tracker)
            tracker._fd = None
            os.close(fd)
        _ours = None
    finally:
        tracker._lock.release()


class _StartFirst:
    """A method of the tracker that is to find a tracker running."""

    def __init__(self, tracker: Any, name: str, fd: int) -> None:
        self._tracker = tracker
        self._name = name
        self._fd = fd

    def __call__(self, *args: object) -> object:
        # Another one, and the number may be another file's, if the tracker has been forgotten.
        if self._tracker._fd == self._fd and not _has_reader(self._fd):
            _start(self._fd)
        _forget_overrides(self._tracker)
        return getattr(self._tracker, self._name)(*args)


def _forget_overrides(tracker: object) -> None:
    for name in ("_check_alive", "_write"):
        tracker.__dict__.pop(name, None)


def _tracker() -> Any:
    # Imported by programs that fork only. typeshed has no attributes of it.
    from multiprocessing import resource_tracker

    return vars(resource_tracker)["_resource_tracker"]


def _pipe() -> Optional[int]:
    """The write end of a pipe without readers; None where none can be opened later."""
    try:
        read, write = os.pipe()
    except OSError:  # descriptors are short: a later step that needs one says so
        return None
    os.close(read)
    try:
        os.close(_open_reader(write))
    except OSError:
        os.close(write)
        return None
    return write


def _open_reader(write: int) -> int:
    return os.open(f"/proc/self/fd/{write}", os.O_RDONLY)


def _has_reader(write: int) -> bool:
    # Not by writing, which kills a program that has SIGPIPE do so.
    poll = select.poll()
    poll.register(write, 0)
    return not poll.poll(0)


def _start(write: int) -> None:
    """Start a tracker on the pipe, unless another process is just doing so."""
    import fcntl  # not on Windows, where nothing is forked
    from multiprocessing import spawn, util

    read = _open_reader(write)
    try:
        fcntl.flock(read, fcntl.LOCK_EX | fcntl.LOCK_NB)
        passed = [read]
        with contextlib.suppress(Exception):  # whatever a program has in the place of stderr
            passed.append(sys.stderr.fileno())
        private: Any = util  # what the standard library keeps for itself is not in typeshed
        executable = os.fsencode(spawn.get_executable())
        program = f"from multiprocessing.resource_tracker import main;main({read})"
        args = [executable, *private._args_from_interpreter_flags(), "-c", program]
        signums = [getattr(signal, name) for name in _IGNORED]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
        try:
            # Nobody waits for it: it may outlive this process, as long as another one needs it.
            private.spawnv_passfds(executable, args, passed)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except BlockingIOError:
        pass  # what is written now is read as soon as that one has started
    finally:
        os.close(read)
