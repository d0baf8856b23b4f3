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

Each executor has a forker of its own, as old as the first use of that executor: workers see the
process as it was then. What is to run before the work comes in the forker's memory, so it need not
be picklable.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import socket
import struct
import sys
import threading
from typing import Callable, Final, Optional

from . import forks, serving, signals, worker
from .bootstrap import fork_into
from .interrupts import shielded
from .launch import Child, ContextLauncher, Served, Unknown
from .parcels import Collector, Shipment, pickled
from .protocols import Post, Servant, Task, Worker

_NUMBER: Final = struct.Struct("q")

# What the forker is asked for.
_WORK: Final = b"w"
_SERVE: Final = b"s"
_RETIRE: Final = b"r"  # to fork no more, and to end when its workers have ended


class ForkerLost(Exception):
    """The forker has died, so no more workers can be forked."""


class Forker:
    """The parent's side. Thread-safe."""

    def __init__(self, carried: Optional[Callable[[], object]]) -> None:
        """Fork it now, beside no thread of ours; `carried` is known to its workers unpickled."""
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
        shipment = Shipment(content)
        try:
            started = self._ask(_WORK, reply, shipment.fd, *fds)
            shipment.send()
            return started
        finally:
            shipment.close()

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
                    raise ForkerLost from error
            forks.close(write)
            write = -1
            pid = _read_number(read)
            if pid is None:
                # It died after it had the work and before it told the pid. The work may run.
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

    def retire(self) -> None:
        """Have it end when its workers have; `close` then waits for that."""
        with self._lock:
            with contextlib.suppress(ConnectionError):
                self._socket.sendall(_RETIRE)
            forks.close_socket(self._socket)

    def close(self) -> None:
        """End it, once its workers have ended."""
        forks.close_socket(self._socket)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


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

    return fork_into(live, signals.OF_HELPERS)


def _serve(theirs: socket.socket) -> None:
    """The forker's loop: fork what is asked for, report what has ended, end with the parent."""
    launcher = ContextLauncher(multiprocessing.get_context("fork"))
    selector = selectors.DefaultSelector()
    forks.private(theirs.fileno())
    selector.register(theirs, selectors.EVENT_READ)
    forked: dict[int, tuple[Child, int]] = {}  # by the descriptor that tells of the end

    def work(what: bytes, reply: int, first: int, rest: list[int]) -> None:
        selector.close()
        if what == _SERVE:
            serving.serve_inherited(reply, first, *rest)
            return
        worker.received = rest
        worker.run_received(_Held(reply), _Held(first))

    retired = False
    while not retired or forked:
        for key, _ in selector.select():
            if key.fileobj is theirs:
                message, fds, _, _ = socket.recv_fds(theirs, 1, serving.MOST_DESCRIPTORS)
                if not message:
                    return
                if message == _RETIRE:
                    retired = True
                    selector.unregister(theirs)
                    continue
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
