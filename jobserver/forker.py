"""A small process that forks workers on behalf of a process that has threads.

A fork copies only the thread that forks. Locks that other threads hold stay locked in the child,
so Python 3.12 and later warn of it. An executor has a thread; hence, under fork, it has a forker:
forked before the thread is started, single-threaded, asked for workers over a socket. Workers
answer to the executor's process directly. What passes here is three descriptors a worker, and the
8 bytes each of its pid and its status.

    executor's process ── socket: reply, status, parcel ──> forker ── fork ──> worker
            ^  ^                                               │                  │
            │  └────────── status pipe: pid, exit status ──────┘                  │
            └───────────────────── result channel: one frame ─────────────────────┘

All executors of a process share one forker, for as long as there is one of them. What is to run
before the work of the first comes in its memory; that of another executor goes along with the work,
as a pickle. An executor for which that cannot be done has a forker of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from typing import Callable, Final, Optional

from . import forks, serving, worker
from .bootstrap import fork_into
from .interrupts import shielded
from .launch import Child, ContextLauncher, Served, Unknown
from .parcels import Collector, file_of, is_picklable, pickled
from .protocols import Post, Servant, Task, Worker

_NUMBER: Final = struct.Struct("q")

# What the forker is asked for.
_WORK: Final = b"w"
_SERVE: Final = b"s"

_lock = threading.Lock()
_shared: Optional[Forker] = None
# The last threads that had one, and were about to end.
_leaving: deque[threading.Thread] = deque(maxlen=100)
_PATIENCE: Final = 1.0  # seconds for their end; a fork that does not await it is warned of


class ForkerLost(Exception):
    """The forker has died, so no more workers can be forked."""


class Forker:
    """The parent's side. Thread-safe."""

    def __init__(self, carried: Optional[Callable[[], object]]) -> None:
        """Fork it now; `carried` is known to its workers without being pickled."""
        self.carried = carried
        self._users = 1
        while _leaving:
            thread = _leaving.pop()
            thread.join(_PATIENCE)
            await_kernel(thread)
        self._lock = threading.Lock()
        ours, theirs = forks.socketpair()
        try:
            with shielded(), forks.handing_over(theirs.fileno()):
                self.pid: int = _fork(theirs, carried)
        except BaseException:
            forks.close_socket(ours)
            raise
        finally:
            forks.close_socket(theirs)
        self._socket = ours

    def launch(self, task: Task, reply: int) -> Worker:
        """`protocols.Launcher.launch`. Raises ForkerLost when the forker has gone."""
        with Collector() as fds:
            content = pickled(task, "start method 'fork' beside a thread")
        file = file_of(content)
        try:
            return self._ask(_WORK, reply, file, *fds)
        finally:
            forks.close(file)

    def hire(self, post: Post) -> Servant:
        """`protocols.Launcher.hire`. Raises ForkerLost when the forker has gone."""
        return self._ask(_SERVE, *(fd for fd in post.descriptors if fd >= 0))

    def _ask(self, what: bytes, reply: int, *others: int) -> Servant:
        if len(others) > serving.MOST_DESCRIPTORS - 2:
            raise ValueError(f"the work refers to more than {serving.MOST_DESCRIPTORS - 3} files")
        read, write = forks.pipe()
        try:
            with self._lock:
                try:
                    socket.send_fds(self._socket, [what], [reply, write, *others])
                except ConnectionError as error:
                    self._retire()
                    raise ForkerLost from error
            forks.close(write)
            write = -1
            pid = _read_number(read)
            if pid is None:
                # It died after it had the work and before it told the pid. The work may run.
                self._retire()
                forks.close(read)
                return Unknown()
            if pid < 0:
                raise OSError(-pid, f"cannot fork a worker: {os.strerror(-pid)}")
            return Served(pid, read)
        except BaseException:
            forks.close(read)
            if write != -1:
                forks.close(write)
            raise

    def close(self, thread: Optional[threading.Thread] = None) -> None:
        """One user less; the last one ends it, once its workers have ended.

        `thread` is the user's, which calls this just before its end.
        """
        global _shared
        with shielded(), _lock:
            if thread is not None:
                _leaving.append(thread)
            self._users -= 1
            if self._users:
                return
            if _shared is self:
                _shared = None
            forks.close_socket(self._socket)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _retire(self) -> None:
        """Have the next executor fork another one: this one has died."""
        global _shared
        with _lock:
            if _shared is self:
                _shared = None

    @classmethod
    def shared(cls, carry: Optional[Callable[[], object]]) -> Forker:
        """This process's forker. If there is none, one is forked, which then carries `carry`."""
        global _shared
        with _lock:
            if _shared is None:
                _shared = cls(carry)
            else:
                _shared._users += 1
            return _shared

    @classmethod
    def carrying(cls, carry: Optional[Callable[[], object]]) -> Forker:
        """The shared one; or one that is not, for what can be neither inherited there nor pickled.

        That one is forked beside the threads of other executors.
        """
        forker = cls.shared(carry)
        suited = False
        try:
            suited = carry is None or forker.carried is carry or is_picklable(carry)
        finally:
            if not suited:
                forker.close()
        if suited:
            return forker
        with _lock:
            return cls(carry)


def await_kernel(thread: threading.Thread) -> None:
    """Wait until the kernel, too, has no more of a thread that was joined.

    `join` returns a moment earlier, mostly so before 3.13 and rarely since. Python warns of a fork
    in that moment.
    """
    task = f"/proc/self/task/{thread.native_id}"
    deadline = time.monotonic() + _PATIENCE
    while os.path.exists(task) and time.monotonic() < deadline:
        time.sleep(0)


def _fork(theirs: socket.socket, carried: Optional[Callable[[], object]]) -> int:
    # As multiprocessing does: what is buffered now would be written by the child as well.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.flush()

    def live() -> int:
        try:
            worker.carried = carried
            _serve(theirs)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            return 1
        return 0

    return fork_into(live)


def _serve(theirs: socket.socket) -> None:
    """The forker's loop: fork what is asked for, report what has ended, end with the parent."""
    interrupt = signal.getsignal(signal.SIGINT)
    # Ctrl-C reaches the whole process group. The workers' affair, and their parent's; not ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = ContextLauncher(multiprocessing.get_context("fork"))
    selector = selectors.DefaultSelector()
    forks.private(theirs.fileno())
    selector.register(theirs, selectors.EVENT_READ)
    forked: dict[int, tuple[Child, int]] = {}  # by the descriptor that tells of the end

    def work(what: bytes, reply: int, first: int, rest: list[int]) -> None:
        selector.close()
        signal.signal(signal.SIGINT, interrupt)
        if what == _SERVE:
            serving.serve_inherited(reply, first, *rest)
            return
        worker.received = rest
        worker.run_received(_Held(reply), _Held(first))

    while True:
        for key, _ in selector.select():
            if key.fileobj is theirs:
                message, fds, _, _ = socket.recv_fds(theirs, 1, serving.MOST_DESCRIPTORS)
                if not message:
                    return
                reply, status, first, *rest = fds
                forks.private(status)
                try:
                    child = launcher.fork(work, (message, reply, first, rest))
                except OSError as error:
                    _write_number(status, -(error.errno or 1))
                    forks.close(status)
                else:
                    _write_number(status, child.pid)
                    forked[child.fileno()] = child, status
                    selector.register(child.fileno(), selectors.EVENT_READ)
                for fd in (reply, first, *rest):
                    os.close(fd)
            else:
                child, status = forked[key.fd]
                if not child.poll():
                    continue  # about to end
                del forked[key.fd]
                selector.unregister(key.fd)
                if child.exitcode is not None:
                    _write_number(status, child.exitcode)
                forks.close(status)
                child.close()


class _Held:
    """A descriptor that is here already."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def detach(self) -> int:
        return self._fd


def _read_number(fd: int) -> Optional[int]:
    data = os.read(fd, _NUMBER.size)
    return _NUMBER.unpack(data)[0] if len(data) == _NUMBER.size else None


def _write_number(fd: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent no longer wants to know
        os.write(fd, _NUMBER.pack(number))


def _forget_in_child() -> None:
    global _shared, _lock
    _shared = None
    _lock = threading.Lock()
    _leaving.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
