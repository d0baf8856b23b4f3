"""Work on its way into another process: pickled, with the descriptors that it refers to."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
from collections.abc import Iterable, Sequence
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from typing import TYPE_CHECKING, Any, Callable, Final, Optional, cast

from . import forks, memory, pickles, worker
from .protocols import Task
from .tracebacks import RemoteTraceback, clear_traceback, explain, set_cause, shown, traceback_text

if TYPE_CHECKING:
    from multiprocessing import popen_spawn_posix

# An initializer that is larger is stored in a file: to send its descriptor along with each call
# takes about as long as to copy so much.
_SMALL: Final = 1 << 13  # bytes


NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class Collector:
    """Collects the descriptors of what is pickled within, in the place of multiprocessing's Popen.

    What comes of them in the other process is a `worker.Received`.
    """

    DupFd = worker.Descriptor

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __enter__(self) -> list[int]:
        self._outer = get_spawning_popen()
        # What pickles for a process asks of a Popen what this has; the stubs name their own only.
        set_spawning_popen(cast("popen_spawn_posix.Popen", self))
        return self.fds

    def __exit__(self, *error: object) -> None:
        set_spawning_popen(self._outer)

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1


class NoForkLocks(reduction.ForkingPickler):
    """Refuses the locks of a fork context, of which older Pythons pickle an address."""

    def reducer_override(self, obj: object) -> Any:
        module: Any = sys.modules.get("multiprocessing.synchronize")
        if module and isinstance(obj, module.SemLock) and vars(obj)["_semlock"].name is None:
            raise RuntimeError(
                f"{obj!r} is of start method 'fork', under which it can only be inherited; "
                "make it with the context of another one"
            )
        return NotImplemented


class Parcel(pickles.Pickled):
    """The pickle of what goes along with work."""

    __slots__ = ("first",)

    first: tuple[object, ...]  # what the stream begins with

    pickler: type[reduction.ForkingPickler] = (
        reduction.ForkingPickler if sys.version_info >= (3, 11, 5) else NoForkLocks
    )


class NotPicklable(TypeError):
    """The work cannot be pickled; the cause says why."""


def pickled(task: Task, needed_by: str) -> Parcel:
    """The work as two pickles: see `worker.run_received`."""
    fn, args, kwargs = task.call[1:]
    plain = (task.call[0], fn, tuple(args), dict(kwargs))
    whole = Parcel()
    try:
        whole.dump(plain)
    except Exception as cause:
        raise NotPicklable(
            f"the work is not picklable, as {needed_by} needs it to be: {shown(cause)}"
        ) from cause
    receipt = None if task.receipt < 0 else reduction.DupFd(task.receipt)
    beside = tuple(map(len, whole.buffers))
    whole.first = (tuple(task.env), task.held, receipt, beside, task.for_executor)
    whole.put_first(pickle.dumps(whole.first, pickle.HIGHEST_PROTOCOL))
    return whole


def united(parcel: Parcel) -> pickles.Pickled:
    """Such work with everything in the stream, for when there can be no file. Ends the other."""
    first = parcel.stream.pop(0)
    parcel.size -= len(first)
    whole = parcel.united()
    env, held, receipt, _, for_executor = parcel.first
    beside: tuple[int, ...] = ()
    first = pickle.dumps((env, held, receipt, beside, for_executor), pickle.HIGHEST_PROTOCOL)
    whole.put_first(first)
    return whole


def pickling_error(refusal: NotPicklable) -> BaseException:
    """What the pickler raised, as ProcessPoolExecutor tells it: its cause is its traceback."""
    error = refusal.__cause__
    assert error is not None, "it is raised from what the pickler raised"
    text = explain(error, traceback_text(error), str(refusal))
    set_cause(error, RemoteTraceback(text))
    clear_traceback(error)
    return error


def file_of(content: pickles.Pickled) -> int:
    """A file without a name that has this content, private to this process."""
    return _file(content.buffers, content.stream)


class Shipment:
    """Work for a new process: in a file, or through sockets where no file can hold it."""

    def __init__(self, content: Parcel) -> None:
        self._ours: Optional[socket.socket] = None
        self._stream: list[bytes] = []
        self.fd: int
        try:
            self.fd = file_of(content)
        except OSError:  # there is a limit, on memory or the sizes of files
            self._stream = united(content).stream
            theirs, self._ours = forks.socketpair()
            self.fd = theirs.detach()

    def send(self) -> None:
        """Once the process has started: send what is not in a file, as long as it lives."""
        if self._ours is not None:
            self._close_fd()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for part in self._stream:
                    self._ours.sendall(part, NO_SIGNAL)

    def close(self) -> None:
        """To be called once the process has all, or has not started."""
        self._close_fd()
        if self._ours is not None:
            forks.close(self._ours.detach())
            self._ours = None

    def _close_fd(self) -> None:
        if self.fd >= 0:
            forks.close(self.fd)
            self.fd = -1


def _file(buffers: Iterable[memoryview], stream: Sequence[bytes]) -> int:
    with forks.opening:
        file = forks.private(memory.open_unnamed())
    try:
        memory.store(file, buffers, stream)
    except BaseException:
        forks.close(file)
        raise
    return file


class Initializer(worker.Initialize):
    """An executor's initializer, pickled once for however many calls it goes along with."""

    def __init__(
        self,
        initializer: Callable[..., object],
        initargs: tuple[object, ...],
        preexec: Optional[Callable[[], object]],
    ) -> None:
        super().__init__(os.urandom(16), initializer, initargs, preexec)
        # Its pickle, unless that is in a file, and the sizes of the blocks in the file.
        self._stored: Optional[tuple[Optional[bytes], tuple[int, ...]]] = None
        self._fds: list[int] = []  # to which the pickle refers; the file that it is in, last
        forks.reset_in_children(self)

    def __reduce__(self) -> tuple[object, ...]:
        stream, sizes = self._stored or self._store()
        call = stream, sizes, [reduction.DupFd(fd) for fd in self._fds]
        return worker.Initialize, (self.key, worker.run_stored, call, self.preexec)

    def _store(self) -> tuple[Optional[bytes], tuple[int, ...]]:
        content = Parcel()
        # By a place in a list of its own: in that of a call, each call may have them elsewhere.
        with Collector() as fds:
            content.dump((self.initializer, self.initargs))
        stream = b"".join(content.stream)
        try:
            self._fds.extend(map(forks.duplicate, fds))
            if not content.buffers and len(stream) <= _SMALL:
                self._stored = stream, ()
            else:
                blocks = [*content.buffers, memoryview(stream)]
                self._fds.append(_file(blocks, ()))
                self._stored = None, tuple(map(len, blocks))
        except BaseException:
            self._close()
            raise
        return self._stored

    def _close(self) -> None:
        while self._fds:
            forks.close(self._fds.pop())

    def __del__(self) -> None:
        forks.catch_up()
        self._close()

    def after_fork(self) -> None:
        """In a forked child: the descriptors are closed."""
        self._stored = None
        self._fds = []
