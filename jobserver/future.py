"""Future: what a submission gives its user."""

from __future__ import annotations

import functools
import os
import warnings
from typing import TYPE_CHECKING, Callable, Generic, NoReturn, Optional, TypeVar, cast

from . import hints, wire
from .callbacks import issue
from .draining import lost_callbacks
from .errors import Blocked, LostResult
from .launch import valid_signal
from .lifecycle import State
from .run import Callback, Run
from .settings import check_timeout
from .tracebacks import clear_traceback, shown

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

    from .engine import Engine

T = TypeVar("T")


class Future(Generic[T]):
    """The result, to come, of one submission. Made by submissions only; thread-safe.

    A Future is done once its result is known, its worker is reaped and its slot is back. It cannot
    be copied or pickled, and can be waited for only in the process that submitted the work.
    Dropping one that is not done emits a ResourceWarning; the work goes on.
    """

    __slots__ = ("__weakref__", "_engine", "_run")

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine = engine
        self._run = run

    def done(self, timeout: Optional[float] = 0) -> bool:
        """Whether it is done, waiting for at most `timeout` seconds (None: without end).

        Raises CallbackRaised when a callback that became due raised.
        """
        if not self._settle(check_timeout(timeout)):
            return False
        issue(self._run)
        return True

    def wait(self, timeout: Optional[float] = None, *, signal: Optional[int] = None) -> bool:
        """Wait for at most `timeout` seconds (None: without end); whether it is done.

        With `signal`, first send that signal to the worker if it still runs: that is how running
        work is cancelled. A signal that does not exist raises OSError. Raises CallbackRaised when
        a callback that became due raised.
        """
        seconds = check_timeout(timeout)
        if signal is not None:
            signum = valid_signal(signal)
            self._check_process()
            with self._engine.step:
                self._run.send_signal(signum)
        return self.done(seconds)

    def result(self, timeout: Optional[float] = None) -> T:
        """What the work returned, waiting for at most `timeout` seconds (None: without end).

        Raises what the work raised, with the worker's traceback as `__cause__`; LostResult when
        the worker ended without a result, also by SystemExit or KeyboardInterrupt; RuntimeError
        when the result could not be pickled there or rebuilt here; Blocked at the timeout; and
        CallbackRaised as `done` does.
        """
        if not self.done(timeout):
            assert timeout is not None, "without a timeout it waits until it is done"
            who = self._run.worker.pid
            raise Blocked(f"no result in {hints.seconds(timeout)} from worker {who}")
        try:
            # The frame came from the work, which returns T.
            return cast("T", load(self._run))
        finally:
            # The exception is kept, and its traceback refers to this frame: do not refer back.
            del self

    def when_done(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> int:
        """Call `fn(*args, **kwargs)` once this is done; the number of the registration: 0, 1, ...

        Callbacks run once, in the order of registration, on the thread that first observes
        completion: inside `done`, `wait`, `result`, `submit` or `reclaim_resources`. When this is
        done already, that is at once. By then the slot is back, so a callback can submit. An
        Exception from a callback is raised there as CallbackRaised, and the callbacks after it
        run at the next call; a BaseException passes as it is.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        self._check_process()
        with self._engine.step:
            seqno, due = self._run.register(Callback(fn, *args, **kwargs))
        if due:
            issue(self._run)
        return seqno

    def _settle(self, timeout: Optional[float]) -> bool:
        self._check_process()
        run = self._run
        if run.state is State.DONE:
            return True
        return self._engine.wait(lambda: run.state is State.DONE, self._engine.deadline(timeout))

    def _check_process(self) -> None:
        run = self._run
        if not run.foreign:
            return
        if run.state is not State.DONE:
            raise RuntimeError(
                f"this Future belongs to process {run.owner_pid}, of which this process, "
                f"{os.getpid()}, is a fork: only the process that submitted work can wait for it"
            )
        with self._engine.lock:
            if run.foreign:
                run.adopt()

    if not TYPE_CHECKING:  # or checkers would take any name for one of ours

        def __getattr__(self, name: str) -> NoReturn:
            raise hints.no_attribute(self, name, hints.OF_A_FUTURE)

    def __repr__(self) -> str:
        run = self._run
        running = run.state is not State.DONE
        state, pid = ("running", run.worker.pid) if running else ("done", None)
        return f"{type(self).__name__}({state}, callbacks={len(run.callbacks)}, pid={pid})"

    def __copy__(self) -> NoReturn:
        raise TypeError("a Future cannot be copied: it stands for one piece of running work")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Future cannot be pickled: only the process that submitted can wait")

    def __del__(self) -> None:
        run: Optional[Run] = getattr(self, "_run", None)
        if run is None or run.foreign:
            return
        run.dropped = True
        lost = f". {lost_callbacks(1)}" if run.loses_callbacks else ""
        if run.state is not State.DONE:
            text = f"Dropping {self!r} before it is done: keep it and wait for it{lost}"
        elif lost:
            text = f"Dropping {self!r}{lost}"
        else:
            return
        warnings.warn(text, ResourceWarning, source=self, stacklevel=2)


def load(run: Run) -> object:
    """The value of a run that is done; raises what it ended with."""
    if run.outcome is None:
        # Not a `with`, which an interrupt can leave locked: what is loaded is code of the user,
        # and may take its time, so it is not shielded.
        try:
            try:
                run.loading.acquire()
                if run.outcome is None:
                    run.outcome = outcome_of(run)
                    run.frame = None
            finally:
                _release(run)
        finally:
            _release(run)
    try:
        return run.outcome()
    finally:
        del run  # as in `result`


def _release(run: Run) -> None:
    try:
        run.loading.release()
    except RuntimeError:
        pass  # released, or never acquired


def outcome_of(run: Run) -> Callable[[], object]:
    """What gives the value of a run that is done, or raises what it ended with."""
    frame = run.frame
    if frame is None:
        return functools.partial(_raise, LostResult(run.worker.pid, run.worker.exitcode))
    try:
        content = frame.load()
    except RuntimeError as unfit:
        return functools.partial(_raise, unfit)
    if frame.kind == wire.VALUE:
        return lambda: content
    # `load` has checked that the body of these frames is an exception.
    error = cast("BaseException", content)
    if frame.kind == wire.EXIT:
        lost = LostResult(run.worker.pid, run.worker.exitcode)
        lost.__cause__ = error
        lost.raised = shown(error)
        return functools.partial(_raise, lost)
    return functools.partial(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    try:
        # Without the tracebacks of earlier raises, which would pile up.
        clear_traceback(error)
        raise error
    finally:
        # The traceback refers to this frame: do not refer back from it.
        del error
