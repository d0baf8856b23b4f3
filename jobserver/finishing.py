"""How an executor's Futures finish, whatever happens to its workers, its thread or the program."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Protocol, TypeVar

from .errors import LostResult
from .tracebacks import clear_traceback

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("jobserver")


# The one subclass of a class that is final for everybody else: see errors.
class LostWorker(  # type: ignore[misc]
    LostResult,  # pyright: ignore[reportGeneralTypeIssues]
    BrokenProcessPool,
    combined=True,
):
    """A `LostResult` for programs that catch `BrokenProcessPool`."""


class Breakage:
    """Why an executor can run no more work."""

    def __init__(self, cause: BaseException, text: str) -> None:
        clear_traceback(cause)  # whose frames keep the executor alive
        self.cause: BaseException = cause
        self.text: str = text

    def error(self) -> BrokenProcessPool:
        """The exception for one Future, or for one submission."""
        error = BrokenProcessPool(self.text)
        error.__cause__ = self.cause
        return error

    def fail(self, future: Future[Any]) -> None:
        """Finish a Future that is pending or running; leave one that is cancelled or done."""
        if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
            finish(future.set_exception, self.error())


def lost_worker(lost: LostResult) -> LostWorker:
    """The same for an executor."""
    error = LostWorker(lost.pid, lost.exitcode)
    error.raised = lost.raised
    error.__cause__ = lost.__cause__
    return error


def described(error: BaseException) -> str:
    """Its repr; the name of its type if that raises."""
    try:
        return repr(error)
    except Exception:
        return type(error).__qualname__


# Workers that are started afresh import the main module of the program.
STILLBORN = (
    "the executor's workers end before they begin anything. A worker under spawn and "
    "forkserver imports the main module: protect what it runs with 'if __name__ == \"__main__\":'. "
    "A program from stdin, from -c or from the REPL cannot be imported. The worker's own message "
    "is on stderr"
)


def is_stillborn(worker: object, lost: LostResult) -> bool:
    """Whether a worker, and the one before it, ended by themselves before the work began."""
    return getattr(worker, "stillborn", False) and (lost.exitcode or 0) > 0


def fail(future: Future[Any], error: BaseException) -> None:
    """Finish a Future with an exception, without the traceback, whose frames keep much alive."""
    clear_traceback(error)
    finish(future.set_exception, error)


def finish(ending: Callable[[T], None], outcome: T) -> None:
    """Call a Future's `set_result` or `set_exception`, whatever its callbacks raise."""
    try:
        ending(outcome)
    except BaseException:
        # concurrent.futures itself sees to every Exception. The Future is finished by now, and
        # the executor's thread has others to finish.
        logger.exception("a callback raised what is not an Exception")


class Finishing(Protocol):
    """What finishes Futures, in a thread."""

    def close(self) -> None:
        """Accept nothing more."""
        ...

    def join(self) -> None:
        """Wait until all are finished and the thread has ended."""
        ...


# Those whose thread is alive.
_open: set[Finishing] = set()
exiting: bool = False  # whether the interpreter is


def at_exit(item: Finishing) -> None:
    """Close and join it at interpreter exit, unless `not_at_exit` comes before."""
    _open.add(item)


def not_at_exit(item: Finishing) -> None:
    """Its thread has ended."""
    _open.discard(item)


def _finish_all() -> None:
    """At interpreter exit, before threads are joined: finish what is pending, as others do."""
    global exiting
    exiting = True
    items = list(_open)
    for item in items:
        item.close()
    for item in items:
        item.join()


def _forget_in_child() -> None:
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)

# What concurrent.futures itself uses to finish its executors; there is no public equivalent.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # not in typeshed
