"""Futures of the standard library that tell when somebody waits for them.

An executor in a process that itself holds a slot may run work on that slot, but only while the
process waits for the work, and so computes nothing: see `lending`. `Future.result` can be
overridden to tell that; `concurrent.futures.wait` and `as_completed` leave a waiter in each future
and wait for the waiter's event, so the event tells it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Callable, Generic, Optional, Protocol, TypeVar

from . import worker

if TYPE_CHECKING:
    from .lending import Lending

T = TypeVar("T")


class Runner(Protocol):
    """What runs the work of these futures."""

    @property
    def lending(self) -> Lending:
        """What is told of those who wait for the work."""
        ...

    def prune(self, future: AwaitedFuture[Any]) -> None:
        """The future was cancelled: its work is not to run."""
        ...


class Wait:
    """Somebody waits for a future, or until a thread ends."""

    def __init__(self, future: Optional[AwaitedFuture[Any]] = None) -> None:
        self._future = future

    def goes_on(self) -> bool:
        """Whether what is waited for is still to come."""
        return self._future is None or not self._future.is_done()


class AwaitedEvent(threading.Event):
    """The event of a waiter that `concurrent.futures.wait` or `as_completed` leaves in futures."""

    def __init__(self) -> None:
        super().__init__()
        self.runners: weakref.WeakSet[Runner] = weakref.WeakSet()
        self.key: int = 0  # tells those who ask for the same work again

    def goes_on(self) -> bool:
        return not self.is_set()

    def wait(self, timeout: Optional[float] = None) -> bool:
        with contextlib.ExitStack() as stack:
            for runner in list(self.runners):
                stack.enter_context(runner.lending.awaited(self))
            is_set = super().wait(timeout)
        if not is_set:
            for runner in list(self.runners):
                runner.lending.polled(self.key)
        return is_set


class _Waiter(Protocol):
    event: threading.Event


W = TypeVar("W", bound=_Waiter)


class _Waiters(list[W], Generic[W]):
    """A future's list of waiters, which gives each an event that tells when it is waited for.

    The standard library has no hook for that. A waiter is appended before anybody waits for it.
    """

    def __init__(self, runner: Runner, key: int) -> None:
        super().__init__()
        self._runner = weakref.ref(runner)
        self._key = key

    def append(self, waiter: W) -> None:
        runner = self._runner()
        if runner is not None:
            if not isinstance(waiter.event, AwaitedEvent):
                waiter.event = AwaitedEvent()
            waiter.event.runners.add(runner)
            waiter.event.key = waiter.event.key or self._key
        super().append(waiter)


class AwaitedFuture(concurrent.futures.Future[T]):
    """A Future that tells its executor's thread when somebody waits for it, or cancels it.

    It does not keep the executor, nor its thread's state.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = weakref.ref(runner)
        # Only a worker can have a slot to lend to whom it waits for.
        self._tells = worker.answering is not None
        if self._tells:
            self._waiters = _Waiters(runner, id(self))

    def result(self, timeout: Optional[float] = None) -> T:
        if not self._tells:
            return super().result(timeout)
        with self._awaited():
            super().exception(timeout)
        # Not within: `contextlib` sets an attribute of what is raised there, which may refuse it.
        return super().result()

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        if not self._tells:
            return super().exception(timeout)
        with self._awaited():
            return super().exception(timeout)

    def is_done(self) -> bool:
        """As `done`, for those who do not wait for it."""
        return super().done()

    def done(self) -> bool:
        done = super().done()
        if self._tells and not done:
            self._poll()
        return done

    def running(self) -> bool:
        running = super().running()
        if self._tells and not running:
            self._poll()
        return running

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        runner = self._runner() if self._tells and not super().done() else None
        first = None if runner is None else runner.lending.called_back(id(self))
        if first is not None:
            super().add_done_callback(first)
        super().add_done_callback(fn)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        runner = self._runner()
        if cancelled and runner is not None:
            runner.prune(self)
        return cancelled

    @contextlib.contextmanager
    def _awaited(self) -> Generator[None, None, None]:
        runner = self._runner()
        if runner is None or super().done():
            yield
            return
        try:
            with runner.lending.awaited(Wait(self)):
                yield
        finally:
            self._poll()

    def _poll(self) -> None:
        runner = self._runner()
        if runner is not None and not super().done():
            runner.lending.polled(id(self))
