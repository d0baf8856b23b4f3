"""Starting workers, for fork, spawn and forkserver, and seeing them end.

multiprocessing starts the processes. What this module adds: the work is pickled into an unnamed
file that the worker inherits, not into a pipe that a killed worker would never drain; nothing is
left open when a start fails half-way; and workers stay out of multiprocessing's list of children,
which it walks, whole, at every start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
from multiprocessing import process as mp_process
from multiprocessing import reduction
from multiprocessing.context import BaseContext, get_spawning_popen
from typing import Callable, Final, Optional, cast

from . import bootstrap, forks, forkservers, program, serving, signals, worker
from .parcels import Shipment, pickled
from .protocols import Post, Servant, Task, Worker

WORKER_NAME: Final = "Jobserver-worker"


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # an old kernel, or a sandbox that refuses them
        return False
    return True


HAS_PIDFD: Final = _has_pidfd()

# Descriptors that multiprocessing opens on the way to a new process, at most.
_NEEDED_TO_START: Final = 10

# A forkserver that died is started again; more than a few in a row is not an accident. One that is
# just dying refuses connections and counts as alive: so with pauses, each longer than the last.
_STARTS: Final = 5
_FIRST_PAUSE: Final = 0.001  # seconds
_LONGER: Final = 6

_STATUS: Final = struct.Struct("q")  # as the forkserver of multiprocessing writes it


class Child:
    """A worker that is a child of this process: under fork and spawn."""

    exitcode: Optional[int] = None

    def __init__(self, pid: int, process: Optional[mp_process.BaseProcess]) -> None:
        self.pid = pid
        self._process = process  # None when multiprocessing has no descriptors of it
        self._pidfd: Optional[int] = None

    def poll(self) -> bool:
        return self._wait(os.WNOHANG)

    def _wait(self, flags: int) -> bool:
        try:
            pid, status = os.waitpid(self.pid, flags)
        except ChildProcessError:
            # SIGCHLD is ignored, or somebody else reaped it: at best another thread, which was
            # starting a process, within multiprocessing.
            if self._process is not None:
                self.exitcode = self._process._popen.returncode  # type: ignore[attr-defined]
            return True
        if pid == 0:
            return False
        self.exitcode = os.waitstatus_to_exitcode(status)
        return True

    def fileno(self) -> int:
        # multiprocessing's sentinel is a pipe, which a process that the work left behind holds
        # open. A pidfd is not fooled. It is opened late, as most workers are gone by then.
        if self._pidfd is None and HAS_PIDFD:
            self._pidfd = forks.private(os.pidfd_open(self.pid))
        if self._pidfd is not None:
            return self._pidfd
        assert self._process is not None, "without pidfds, all workers are multiprocessing's"
        return self._process.sentinel

    def await_end(self, timeout: Optional[float]) -> None:
        _is_readable(self.fileno(), timeout)

    def send_signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def close(self) -> None:
        if self._pidfd is not None:
            forks.close(self._pidfd)
        if self._process is not None:
            _close_process(self._process)


class Served:
    """A worker that another process forked for us, which writes its status into a pipe."""

    exitcode: Optional[int] = None

    def __init__(
        self, pid: int, status: int, process: Optional[mp_process.BaseProcess] = None
    ) -> None:
        self.pid = pid
        self._status = status
        self._process = process

    def poll(self) -> bool:
        if not _is_readable(self._status):
            return False
        data = os.read(self._status, _STATUS.size)
        if len(data) == _STATUS.size:  # else its server died, and nobody knows
            (self.exitcode,) = _STATUS.unpack(data)
        return True

    def fileno(self) -> int:
        return self._status

    def await_end(self, timeout: Optional[float]) -> None:
        _is_readable(self._status, timeout)

    def send_signal(self, signum: int) -> None:
        # Its server reaps it, and then the number may be another's. A pidfd stays with the one
        # process, and it is the worker's if that had not ended by the time it was opened.
        with contextlib.suppress(ProcessLookupError):
            if not HAS_PIDFD:
                os.kill(self.pid, signum)
                return
            pidfd = os.pidfd_open(self.pid)
            try:
                if not _is_readable(self._status):
                    signal.pidfd_send_signal(pidfd, signum)
            finally:
                os.close(pidfd)

    def close(self) -> None:
        if self._process is None:
            forks.close(self._status)
        else:
            _close_process(self._process)


def _is_readable(fd: int, timeout: Optional[float] = 0.0) -> bool:
    # Not select(2), which knows no descriptors above 1023.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


class Unknown:
    """A worker whose server died before it told us the pid. Its channel still tells the rest."""

    pid = None
    exitcode = None

    def poll(self) -> bool:
        return True

    def fileno(self) -> int:
        raise AssertionError("nobody waits for a worker that has ended")

    def await_end(self, timeout: Optional[float]) -> None:
        pass

    def send_signal(self, signum: int) -> None:
        pass

    def close(self) -> None:
        pass


class ContextLauncher:
    """Starts workers through a multiprocessing context."""

    def __init__(self, context: BaseContext, facts: Optional[program.Facts] = None) -> None:
        """With `facts`, workers that are started afresh see the program as it was then."""
        self._context = context
        self._method = context.get_start_method()
        self._missing = program.Missing(facts)
        self._forked: Optional[mp_process.BaseProcess] = None  # what every forked child becomes

    def launch(self, task: Task, reply: int) -> Worker:
        """Start a worker that answers on `reply`, of which the caller keeps its own copy.

        Raises TypeError when the work cannot be pickled for this start method, and OSError when
        the system has no room for another process. Nothing is left behind then.
        """
        if self._method == "fork":
            args = reply, task.env, task.held, task.receipt, task.call
            with forks.handing_over(reply, task.receipt):
                return self.fork(worker.run_inherited, args)
        with contextlib.closing(_Parcel(task, self._method)) as parcel:
            started = self._start_afresh(worker.run_received, _Handed(reply), parcel)
            parcel.send()
            return started

    def hire(self, post: Post) -> Servant:
        """`protocols.Launcher.hire`."""
        if self._method == "fork":
            with forks.handing_over(*post.descriptors):
                return self.fork(serving.serve_inherited, post.descriptors)
        reply, *others = (_Handed(fd) for fd in post.descriptors if fd >= 0)
        return self._start_afresh(serving.serve_received, reply, *others)

    def _start_afresh(
        self, target: Callable[..., object], reply: _Handed, *others: object
    ) -> Servant:
        for attempt in range(1, _STARTS + 1):
            if self._method == "forkserver":
                forkservers.leave_other()
            try:
                process = self.start(target, (reply, *others))
            except EOFError:
                # The forkserver died after it had the work and before it told the pid. The work
                # may run; were it started again it might run twice.
                return Unknown()
            except (ConnectionError, ChildProcessError) as error:
                # The server or the fresh process died before it had all: nothing has begun. Or
                # this process is a fork, and takes its parent's server for its own.
                reply.bury()
                if attempt == _STARTS:
                    raise
                if isinstance(error, ChildProcessError):
                    forkservers.forget()
                else:
                    time.sleep(_FIRST_PAUSE * _LONGER ** (attempt - 1))
                continue
            assert process.pid is not None, "a started process has a pid"
            if self._method == "forkserver":
                return Served(process.pid, process.sentinel, process)
            return Child(process.pid, process)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def fork(self, target: Callable[..., object], args: tuple[object, ...]) -> Child:
        """Fork a child that calls `target(*args)`, as a process of this context."""
        # In a worker that is this very process, with whatever the work has made of it.
        if self._forked is None or self._forked is mp_process.current_process():
            self._forked = self._process(None, ())
        if HAS_PIDFD and bootstrap.is_original(self._forked):
            return Child(bootstrap.fork(self._forked, target, args), None)
        process = self._process(worker.run_unblocked, (target, *args))
        mask = signals.block()
        try:
            self._start(process)
        finally:
            signals.set_mask(mask)
        assert process.pid is not None, "a started process has a pid"
        return Child(process.pid, process)

    def start(
        self, target: Callable[..., object], args: tuple[object, ...]
    ) -> mp_process.BaseProcess:
        """Start a process of this context; leave nothing behind if that fails."""
        if program.is_told(self._context.Process):  # type: ignore[attr-defined]  # see below
            target, args = worker.run_prepared, (self._missing, target, *args)
        process = self._process(worker.run_unblocked, (target, *args))
        _check_descriptors()
        if self._method == "forkserver":
            forkservers.start_unblocked()
        self._start(process)
        return process

    def _process(
        self, target: Optional[Callable[..., object]], args: tuple[object, ...]
    ) -> mp_process.BaseProcess:
        make = cast(
            "Callable[..., mp_process.BaseProcess]",
            self._context.Process,  # type: ignore[attr-defined]  # typeshed: subclasses only
        )
        return make(target=target, args=args, name=WORKER_NAME)

    @staticmethod
    def _start(process: mp_process.BaseProcess) -> None:
        process.start()
        # At every start multiprocessing polls all its children, and at exit it joins them. The
        # engine does both for workers, in time that does not grow with their number.
        mp_process._children.discard(process)  # type: ignore[attr-defined]  # not in typeshed


class _Handed:
    """A descriptor that is duplicated for the new process when this is pickled."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._popen: object = None

    def __reduce__(self) -> tuple[object, ...]:
        self._popen = get_spawning_popen()
        return worker.arrived, (reduction.DupFd(self._fd),)

    def bury(self) -> None:
        """Reap a child that died while it was told what to run: multiprocessing forgets it."""
        pid: Optional[int] = getattr(self._popen, "pid", None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)  # lest it is only about to die
                os.waitpid(pid, 0)


class _Parcel:
    """The work on its way into a fresh process: pickled when this is pickled.

    That happens in the middle of the start, because multiprocessing's own objects (and handles of
    this package) can be pickled only then.
    """

    def __init__(self, task: Task, method: str) -> None:
        self._task = task
        self._method = method
        self._shipment: Optional[Shipment] = None

    def __reduce__(self) -> tuple[object, ...]:
        self.close()
        self._shipment = Shipment(pickled(self._task, f"start method {self._method!r}"))
        return worker.arrived, (reduction.DupFd(self._shipment.fd),)

    def send(self) -> None:
        """To be called once the process has started."""
        assert self._shipment is not None, "the start has pickled this"
        self._shipment.send()

    def close(self) -> None:
        """To be called in the end, and when the process has not started."""
        if self._shipment is not None:
            self._shipment.close()
            self._shipment = None


def _open_spare(spare: list[int]) -> None:
    # A function of its own: see `callbacks._issue_queue`.
    spare += os.pipe()
    while len(spare) < _NEEDED_TO_START:
        spare.append(os.dup(spare[0]))


def _check_descriptors() -> None:
    """Raise OSError unless a process can be started within the limit of descriptors.

    multiprocessing loses descriptors when it meets the limit between two of its pipes.
    """
    spare: list[int] = []
    try:
        _open_spare(spare)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot start a worker, descriptors are short: {error.strerror}"
        ) from error
    finally:
        for fd in spare:
            os.close(fd)


def _close_process(process: mp_process.BaseProcess) -> None:
    """Close multiprocessing's descriptors of a process that has been reaped here."""
    state = vars(process)
    popen = state["_popen"]
    popen.returncode = 0  # it asks; we know that it has ended
    if hasattr(popen, "close"):
        process.close()
    else:
        # Not every context has it. loky's closes its descriptors when it is garbage.
        state.update(_popen=None, _closed=True)
        del state["_sentinel"]


def valid_signal(signum: object) -> int:
    """The number of a signal that can be sent, or OSError as `os.kill` has it."""
    if isinstance(signum, bool) or not isinstance(signum, int):
        raise TypeError(f"signal must be a signal's number, not {signum!r}")
    if not 0 <= signum < signal.NSIG:
        import errno

        raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: no signal has number {signum}")
    return int(signum)
