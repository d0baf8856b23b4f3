"""Named pipes for the bytes of a pool: a path that make, ninja and cargo can open.

A path under /proc/PID/fd names whatever a process of that number has there: another process by
now, or another one in a PID namespace. So a pool that programs may be told of is a fifo from the
start (a name cannot be given to a pipe later). It lies in a directory that only this user can
read, under a name that is never used again:

    $TMPDIR/jobserver-1000/3f9c...    directory 0700, fifo 0666 (see `kernel.create`)

* The process that made a fifo removes it when it closes the pool, or at its exit. At its exit it
  removes the directory as well, if that is empty.
* If it was killed, the next process that makes one removes it. A fifo that nobody has open for
  reading belongs to nobody any more. A lock on the directory keeps fifos safe that are just being
  made. Nobody waits long for it.
* Where a fifo cannot be made, a pool is an anonymous pipe. Then commands inherit it or go without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Generator
from multiprocessing import util
from typing import Final, Optional

from . import forks

if sys.platform != "win32":
    import fcntl

_USABLE: Final = re.compile(r"/[^\s\\$'\"]*")  # no tool reads a path with blanks or quoting
_TRIES: Final = 20  # to lock the directory, which others do for microseconds
_PAUSE: Final = 0.0005  # seconds
_AFTER_CHILDREN: Final = -100  # among multiprocessing's finalizers: children have ended by then

# What this process is to remove: each path, and the process that made it.
_made: dict[str, int] = {}
_swept: Final[dict[str, int]] = {}  # directories, and the process that looked for stale fifos


def make() -> Optional[tuple[int, int, str]]:
    """A new fifo: its two ends, non-blocking, and its path. None if there can be none here.

    `remove` is its end. OSError when there are no descriptors for it.
    """
    if not os.path.exists("/proc/self/fd"):  # through which commands are given it
        return None
    for directory in _directories():
        try:
            return _make_in(directory)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
    return None


def path_of(fd: int) -> str:
    """The path that opens the fifo of a descriptor; "" if it has none, or none that tools read."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        # Not so if it was removed, or if this process has another root directory.
        same = _USABLE.fullmatch(path) and os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return ""
    return path if same else ""


def remove(path: str) -> None:
    """Remove a fifo, if this process has made it."""
    if _made.get(path) == os.getpid():
        del _made[path]
        with contextlib.suppress(OSError):
            os.unlink(path)


def _directories() -> Generator[str]:
    # As make has it: a sandbox that shows make's fifos to programs shows these.
    # $XDG_RUNTIME_DIR is the second choice, because it vanishes when the user logs out.
    for base in os.environ.get("TMPDIR") or "/tmp", os.environ.get("XDG_RUNTIME_DIR"):
        if base and _USABLE.fullmatch(base):
            yield os.path.join(base, f"jobserver-{os.geteuid()}")


def _make_in(directory: str) -> tuple[int, int, str]:
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        try:
            with _locked(directory) as folder:
                return _make_locked(directory, folder)
        except FileNotFoundError:  # removed meanwhile, as it was empty
            continue
        except BlockingIOError:
            time.sleep(_PAUSE)
    raise BlockingIOError(errno.EWOULDBLOCK, "others hold the lock", directory)


@contextlib.contextmanager
def _locked(directory: str, how: int = 0) -> Generator[int]:
    folder = forks.open_file(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "somebody else's, or not private", directory)
        fcntl.flock(folder, (how or fcntl.LOCK_SH) | fcntl.LOCK_NB)
        yield folder
    finally:
        forks.close(folder)


def _make_locked(directory: str, folder: int) -> tuple[int, int, str]:
    path = os.path.join(directory, os.urandom(16).hex())
    os.mkfifo(path, 0o600)
    _made[path] = os.getpid()
    opened: list[int] = []
    try:
        # The read end first: the other one cannot be opened without a reader.
        opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except BaseException:
        for fd in opened:
            os.close(fd)
        remove(path)
        raise
    if _swept.get(directory) != os.getpid():
        _swept[directory] = os.getpid()
        util.Finalize(None, leave, exitpriority=_AFTER_CHILDREN)
        _sweep(directory, folder)
    read, write = opened
    return read, write, path


def _sweep(directory: str, folder: int) -> None:
    """Remove the fifos of owners that were killed. Nobody is making one meanwhile."""
    with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(folder):
            path = os.path.join(directory, name)
            if stat.S_ISFIFO(os.lstat(path).st_mode) and not _has_reader(path):
                os.unlink(path)


def _has_reader(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.ENXIO
    return True


def leave() -> None:
    """At the exit: remove what was never closed, and directories that are empty."""
    for path in list(_made):
        remove(path)
    for directory, pid in _swept.items():
        if pid == os.getpid():
            with contextlib.suppress(OSError):  # others have fifos there
                os.rmdir(directory)
