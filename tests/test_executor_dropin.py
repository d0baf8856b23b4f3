"""Programs written for ProcessPoolExecutor, run with it and with ours: the same comes out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any, Callable

import pytest

from jobserver import JobserverExecutor
from tests import executor_work as work
from tests.executor_help import context_of
from tests.work import PATIENCE, add, echo, identity, raise_value_error

Make = Callable[..., Executor]


def submit_and_collect(make: Make) -> object:
    with make(max_workers=2) as pool:
        futures = {pool.submit(pow, base, 3): base for base in range(5)}
        return {
            futures[future]: future.result() for future in concurrent.futures.as_completed(futures)
        }


def map_in_order(make: Make) -> object:
    with make(2) as pool:
        return list(pool.map(pow, range(5), itertools.repeat(2), chunksize=2))


def initialized(make: Make) -> object:
    with make(2, initializer=work.initialize, initargs=("once",)) as pool:
        return set(pool.map(work.initialized_for, range(4)))


def an_error_in_a_result(make: Make) -> object:
    with make(1) as pool:
        return pool.submit(raise_value_error, "in the work").result()


def an_error_in_a_map(make: Make) -> object:
    with make(1) as pool:
        return [quotient for quotient, _ in pool.map(divmod, [1, 1], [1, 0])]


def a_stop_iteration_in_a_map(make: Make) -> object:
    with make(1) as pool:
        ends: list[list[object]] = []
        for chunksize in (1, 2):
            results = pool.map(work.stop_iteration_at, [0, 1, 2], [1] * 3, chunksize=chunksize)
            try:
                ends.append(list(results))
            except RuntimeError as error:
                ends.append([str(error), type(error.__cause__), next(results, "the end")])
        return ends


def the_cause_of_an_error(make: Make) -> object:
    with make(1) as pool:
        error = pool.submit(raise_value_error, "in the work").exception()
        assert error is not None
        seen = "raise ValueError(text)" in str(error.__cause__)
        return seen, error.__context__ is None, error.__traceback__ is None


def an_error_of_a_user(make: Make) -> object:
    with make(1) as pool:
        return pool.submit(work.raise_detailed, 5).result()


def what_is_not_callable(make: Make) -> object:
    with make(1) as pool:
        not_callable: Any = 3
        return type(pool.submit(not_callable).exception())


def a_wrong_number_of_arguments(make: Make) -> object:
    with make(1) as pool:
        wrong: Any = add
        return pool.submit(wrong, 1).result()


def a_lambda(make: Make) -> object:
    with make(1) as pool:
        future = pool.submit(lambda: 1)
        return isinstance(future.exception(), Exception)


def a_partial(make: Make) -> object:
    with make(1) as pool:
        return pool.submit(partial(echo, 1, key="value"), 2).result()


def after_shutdown(make: Make) -> object:
    pool = make(1)
    pool.shutdown()
    return pool.submit(identity, 1)


def a_map_after_shutdown(make: Make) -> object:
    pool = make(1)
    pool.shutdown()
    return pool.map(identity, [1])


def a_bad_chunksize(make: Make) -> object:
    with make(1) as pool:
        return pool.map(identity, [1], chunksize=0)


def a_timeout(make: Make) -> object:
    with make(1) as pool:
        future = pool.submit(work.sleep_briefly)
        try:
            future.result(timeout=0)
        except concurrent.futures.TimeoutError as error:
            return type(error), str(error), future.result()
        return None


def a_map_with_a_timeout(make: Make) -> object:
    with make(1) as pool:
        return list(pool.map(work.sleep_briefly_for, [1], timeout=0))


def a_cancelled_future(make: Make) -> object:
    with make(1) as pool:
        futures = [pool.submit(work.sleep_briefly) for _ in range(10)]
        assert futures[-1].cancel()
        return futures[-1].result()


def a_shutdown_that_cancels(make: Make) -> object:
    pool = make(1)
    futures = [pool.submit(work.sleep_briefly) for _ in range(10)]
    pool.shutdown(cancel_futures=True)
    return futures[-1].cancelled(), all(future.done() for future in futures)


def callbacks(make: Make) -> object:
    seen: list[int] = []
    with make(1) as pool:
        for number in range(3):
            pool.submit(identity, number).add_done_callback(lambda done: seen.append(done.result()))
    return seen


def other_processes(make: Make) -> object:
    with make(2) as pool:
        return os.getpid() in set(pool.map(work.pid_for, range(4)))


def the_number_of_workers(make: Make) -> object:
    with make(3) as pool:
        return pool._max_workers  # type: ignore[attr-defined]  # as Dask looks at it


def an_initializer_that_fails(make: Make) -> object:
    with make(1, initializer=raise_value_error, initargs=("no",)) as pool:
        future = pool.submit(identity, 1)
        return type(future.exception())


def a_crash(make: Make) -> object:
    with make(1) as pool:
        future = pool.submit(os._exit, 1)
        return isinstance(future.exception(), concurrent.futures.process.BrokenProcessPool)


def nested(make: Make) -> object:
    with make(1) as pool:
        return pool.submit(work.own_fan_out, 3, "map").result()


def shared_memory_of_a_manager(make: Make) -> object:
    with context_of("spawn").Manager() as manager:
        found = manager.list()
        with make(2) as pool:
            list(pool.map(found.append, range(4)))
        return sorted(found)


def in_asyncio(make: Make) -> object:
    async def main(pool: Executor) -> list[object]:
        loop = asyncio.get_running_loop()
        values = await asyncio.gather(
            *(loop.run_in_executor(pool, add, number, 1) for number in range(4))
        )
        failed = await asyncio.gather(
            loop.run_in_executor(pool, raise_value_error, "in the work"), return_exceptions=True
        )
        return [values, type(failed[0]), str(failed[0])]

    with make(2) as pool:
        return asyncio.run(main(pool))


def cancelled_in_asyncio(make: Make) -> object:
    async def main(pool: Executor) -> object:
        loop = asyncio.get_running_loop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(pool, work.sleep_briefly), timeout=0.01)
        return await loop.run_in_executor(pool, add, 1, 2)

    with make(1) as pool:
        return asyncio.run(main(pool))


def as_the_default_of_asyncio(make: Make) -> object:
    async def main(pool: Executor) -> object:
        loop = asyncio.get_running_loop()
        futures = [asyncio.wrap_future(pool.submit(add, number, 1)) for number in range(3)]
        return await asyncio.gather(*futures), await loop.run_in_executor(pool, identity, 5)

    with make(1) as pool:
        return asyncio.run(main(pool))


PROGRAMS: list[Callable[[Make], object]] = [
    submit_and_collect,
    map_in_order,
    initialized,
    an_error_in_a_result,
    an_error_in_a_map,
    a_stop_iteration_in_a_map,
    the_cause_of_an_error,
    an_error_of_a_user,
    what_is_not_callable,
    a_wrong_number_of_arguments,
    a_lambda,
    a_partial,
    after_shutdown,
    a_map_after_shutdown,
    a_bad_chunksize,
    a_timeout,
    a_map_with_a_timeout,
    a_cancelled_future,
    a_shutdown_that_cancels,
    callbacks,
    other_processes,
    the_number_of_workers,
    an_initializer_that_fails,
    a_crash,
    nested,
    shared_memory_of_a_manager,
    in_asyncio,
    cancelled_in_asyncio,
    as_the_default_of_asyncio,
]


def outcome(program: Callable[[Make], object], make: Make) -> object:
    try:
        return program(make)
    except BaseException as error:
        return type(error), str(error)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_comes_out(method: str, program: Callable[[Make], object]) -> None:
    context = context_of(method)
    ours = outcome(program, partial(JobserverExecutor, mp_context=context))
    theirs = outcome(program, partial(ProcessPoolExecutor, mp_context=context))
    assert ours == theirs


def test_it_is_an_executor() -> None:
    assert issubclass(JobserverExecutor, concurrent.futures.Executor)
    with JobserverExecutor(1) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert isinstance(pool.submit(add, 1, 2), concurrent.futures.Future)
        assert pool.submit(add, 1, 2).result(PATIENCE) == 3
