"""JobserverExecutor: a `concurrent.futures.Executor` in the place of ProcessPoolExecutor."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import operator
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Callable, NoReturn, Optional, TypeVar, Union, cast

import attrs

from . import hints, wire
from .awaiting import AwaitedFuture
from .chunks import Chunksize, Growth, check_chunksize
from .cpus import usable_cpus
from .dispatch import Dispatch
from .parcels import Initializer
from .protocols import Work
from .series import Series
from .server import Jobserver, share
from .settings import Reuse, as_int
from .slots import LIMIT
from .waiting import Waiting
from .worker import run_chunk

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

# The futures of a map, and what submits one more.
Submitted = tuple["deque[AwaitedFuture[object]]", "Iterator[AwaitedFuture[object]]"]


class JobserverExecutor(concurrent.futures.Executor):
    """Runs calls in other processes, on the slots of a Jobserver.

    Takes a Jobserver, which it leaves open and whose settings it uses; or the arguments of
    `concurrent.futures.ProcessPoolExecutor`, with their meaning, and then it owns one. With one
    thread of its own, which forks nothing: under fork, a small process forks the workers.

    A worker that dies fails its own Future, with an exception that is a `LostResult` and a
    `BrokenProcessPool`; the others go on, and so does the executor. An initializer that raises
    breaks the executor, as it breaks a ProcessPoolExecutor. Workers serve many calls, up to
    `max_tasks_per_child`, which means spawn unless `mp_context` says otherwise, like there. With a
    Jobserver it is for the handle to say (`replace_workers`) whether they do.

    Raises TypeError and ValueError as ProcessPoolExecutor does, and TypeError for `max_workers` or
    `mp_context` beside a Jobserver, which settles both.
    """

    def __init__(
        self,
        jobserver: Union[Jobserver, int, None] = None,
        mp_context: Union[BaseContext, str, None] = None,
        initializer: Optional[Callable[..., object]] = None,
        initargs: tuple[object, ...] = (),
        *,
        max_workers: Optional[int] = None,
        max_tasks_per_child: Optional[int] = None,
    ) -> None:
        if isinstance(jobserver, Jobserver):
            if max_workers is not None or mp_context is not None:
                name = "max_workers" if max_workers is not None else "mp_context"
                raise TypeError(f"{name} cannot be given beside a Jobserver, which settles it")
            self._jobserver = jobserver
        else:
            if jobserver is not None and max_workers is not None:
                raise TypeError("max_workers was given twice, by position and by name")
            if mp_context is None and max_tasks_per_child is not None:
                mp_context = "spawn"  # as ProcessPoolExecutor has it
            self._jobserver = _own(mp_context, max_workers if jobserver is None else jobserver)
        _check_options(initializer, max_tasks_per_child, self._jobserver.context)
        resources, settings = share(self._jobserver)
        resources.check_open()
        if not isinstance(jobserver, Jobserver):
            # They stay until the shutdown, as those of a ProcessPoolExecutor do.
            settings = attrs.evolve(settings, reuse=Reuse(None, math.inf))
        if max_tasks_per_child is not None:
            settings = settings.limit_tasks(operator.index(max_tasks_per_child))
        if initializer is not None:
            initialize = Initializer(initializer, tuple(initargs), settings.preexec)
            settings = attrs.evolve(settings, preexec=initialize)
        # Read by Dask, for one.
        self._max_workers = resources.engine.slots.count or usable_cpus()
        self._dispatch = Dispatch(resources, settings, owned=not isinstance(jobserver, Jobserver))

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Run `fn(*args, **kwargs)` in a worker, once there is a slot.

        Raises RuntimeError after `shutdown`, and BrokenProcessPool when the executor is broken.
        What goes wrong later is on the Future: the pickling error for work that cannot be pickled,
        and any exception of the work, a BaseException too, with the worker's traceback as cause.
        """
        future = self._submit((fn, args, kwargs))
        # The result is what `fn` returns.
        return cast("concurrent.futures.Future[T]", future)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        timeout: Optional[float] = None,
        chunksize: Chunksize = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[T]:
        """The results of `fn` over the iterables, in order, as `Executor.map` has it.

        `chunksize` calls go into one submission, "auto" for as many as take a few milliseconds; see
        `Jobserver.map`. `timeout`, in seconds, counts from now; past it the iterator raises
        TimeoutError. The inputs are collected and submitted now, unless `buffersize` bounds the
        submissions whose results have not been yielded.
        """
        if isinstance(chunksize, str):
            chunksize = check_chunksize(chunksize)
        elif chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        else:
            chunksize = operator.index(chunksize)
        _check_buffersize(buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        futures, submitted = (
            self._submit_growing(fn, iterables, buffersize)
            if chunksize == "auto"
            else self._submit_groups(fn, iterables, chunksize, buffersize)
        )
        # The results are those of `fn`.
        results = _results(futures, submitted, chunksize != 1, deadline)
        return cast("Iterator[T]", itertools.chain.from_iterable(results))

    def waiting(self) -> AbstractContextManager[None]:
        """As `Jobserver.waiting`: within the block this thread computes nothing.

        For waits that the Futures cannot see: on a callback, a queue, another library's barrier. It
        can be entered after `shutdown` as well.
        """
        return Waiting(self._dispatch.resources.engine)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; with `wait`, return when everything has finished.

        `cancel_futures` cancels what no worker has yet. Idempotent, from any thread.
        """
        self._dispatch.close(cancel=cancel_futures)
        if wait:
            self._dispatch.join()

    def _submit(self, work: Union[Work, Series]) -> AwaitedFuture[object]:
        dispatch = self._dispatch
        if dispatch.owned and dispatch.made_in != os.getpid() and dispatch.is_usable_here():
            self._move_here(dispatch)
        return self._dispatch.submit(work)

    def _move_here(self, dispatch: Dispatch) -> None:
        """Have slots of this process's own: it is a fork of the one in which they were made.

        As each of several forks has workers of its own of one ProcessPoolExecutor.
        """
        with dispatch.resources.engine.lock:
            if self._dispatch is not dispatch or dispatch.closing:
                return
            count = dispatch.resources.engine.slots.count
            jobserver = Jobserver(dispatch.resources.context, count)
            self._dispatch = Dispatch(share(jobserver)[0], dispatch.settings, owned=True)
            self._jobserver = jobserver
        dispatch.close()

    def _submit_groups(
        self,
        fn: Callable[..., object],
        iterables: tuple[Iterable[object], ...],
        chunksize: int,
        buffersize: Optional[int],
    ) -> Submitted:
        calls = zip(*iterables)
        submitted = (
            self._submit_group(fn, group, chunksize)
            for group in iter(lambda: list(itertools.islice(calls, chunksize)), [])
        )
        return deque(itertools.islice(submitted, buffersize)), submitted

    def _submit_group(
        self, fn: Callable[..., object], group: list[tuple[object, ...]], chunksize: int
    ) -> AwaitedFuture[object]:
        if chunksize == 1:
            return self._submit((fn, group[0], {}))
        return self._submit((run_chunk, (fn, list(zip(*group)), None, True), {}))

    def _submit_growing(
        self,
        fn: Callable[..., object],
        iterables: tuple[Iterable[object], ...],
        buffersize: Optional[int],
    ) -> Submitted:
        growth = Growth(self._max_workers)
        if buffersize is None:
            # A tuple for each call takes longer than many a call.
            columns: list[Sequence[object]]
            columns = [list(iterables[0])] if len(iterables) == 1 else [*zip(*zip(*iterables))]
            series = Series(fn, columns, growth.size, growth.note)
            if series.goes_on():
                self._submit(series)
            return series.futures, iter(())
        calls = zip(*iterables)
        submitted = (
            self._submit(Series(fn, list(zip(*group)), _whole, growth.note))
            for group in iter(lambda: list(itertools.islice(calls, growth.size(None))), [])
        )
        return deque(itertools.islice(submitted, buffersize)), submitted

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an executor cannot be pickled or copied: {hints.PASS_THE_JOBSERVER}")

    def __repr__(self) -> str:
        dispatch = self._dispatch
        if dispatch.broken is not None:
            state = "broken"
        elif dispatch.closing:
            state = "shutdown"
        else:
            state = "active"
        pending = len(dispatch.pending)
        return f"{type(self).__name__}({state}, pending={pending}, jobserver={self._jobserver!r})"

    def __del__(self) -> None:
        dispatch: Optional[Dispatch] = getattr(self, "_dispatch", None)
        if dispatch is not None:
            dispatch.resources.engine.finalize(dispatch.close)


def _own(context: Union[BaseContext, str, None], max_workers: object) -> Jobserver:
    if max_workers is None:
        return Jobserver(context)
    count = as_int(max_workers)
    if count is None:
        raise TypeError(
            f"expected a Jobserver or a number of workers, not {max_workers!r} "
            f"of type {type(max_workers).__qualname__}"
        )
    if count <= 0:
        raise ValueError("max_workers must be greater than 0")
    # ProcessPoolExecutor has no such limit.
    return Jobserver(context, min(count, LIMIT))


def _check_options(initializer: object, max_tasks_per_child: object, context: BaseContext) -> None:
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        count = as_int(max_tasks_per_child)
        if count is None:
            raise TypeError("max_tasks_per_child must be an integer")
        if count <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if context.get_start_method() == "fork":
            raise ValueError(
                "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                "supply a different mp_context."
            )


def _check_buffersize(buffersize: object) -> None:
    if buffersize is None:
        return
    count = as_int(buffersize)
    if count is None:
        raise TypeError("buffersize must be an integer or None")
    if count < 1:
        raise ValueError("buffersize must be None or > 0")


def _whole(left: int) -> int:
    """The size of a chunk that is all there is."""
    return left


def _results(
    futures: deque[AwaitedFuture[object]],
    submitted: Iterator[AwaitedFuture[object]],
    chunked: bool,
    deadline: Optional[float],
) -> Iterator[Iterator[object]]:
    """The results, as many at once as have come together; no value is kept once it is taken."""
    try:
        yield from _each_result(futures, submitted, chunked, deadline)
    finally:
        # The last first: when one that runs is met, what is to follow it in its series is here.
        while futures:
            futures.pop().cancel()


def _each_result(
    futures: deque[AwaitedFuture[object]],
    submitted: Iterator[AwaitedFuture[object]],
    chunked: bool,
    deadline: Optional[float],
) -> Iterator[Iterator[object]]:
    # A function of its own: see `callbacks._issue_queue`.
    while futures:
        remaining = None if deadline is None else deadline - time.monotonic()
        results = [futures[0].result(remaining)]
        futures.popleft()
        futures.extend(itertools.islice(submitted, 1))
        if chunked:
            together, apart, _ = cast("wire.Chunk", results.pop())  # of `run_chunk`
            endings = wire.Endings(together, apart)
            while endings:
                yield endings.take_together()
                if endings:
                    results.append(endings.take())
                    yield map(results.pop, (-1,))
        else:
            yield map(results.pop, (-1,))
