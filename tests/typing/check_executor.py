"""JobserverExecutor: a concurrent.futures.Executor that takes a ProcessPoolExecutor's place."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
from collections.abc import Iterator
from typing import Callable

from typing_extensions import assert_type

from jobserver import Future, Jobserver, JobserverExecutor


def area(width: int, height: float = 1.0) -> float:
    return width * height


def keywords(*, fn: int, timeout: str) -> bytes:
    return f"{fn}{timeout}".encode()


def prepare(text: str) -> None:
    del text


def construct(js: Jobserver) -> None:
    assert_type(JobserverExecutor(), JobserverExecutor)
    JobserverExecutor(js)
    JobserverExecutor(jobserver=js)
    JobserverExecutor(None)
    JobserverExecutor(2)
    JobserverExecutor(max_workers=2)
    JobserverExecutor(max_workers=None, mp_context=multiprocessing.get_context("spawn"))
    JobserverExecutor(2, multiprocessing.get_context(), prepare, ("text",))
    JobserverExecutor(initializer=prepare, initargs=("text",), max_tasks_per_child=3)
    JobserverExecutor("2")  # type: ignore[arg-type]
    JobserverExecutor(max_workers="2")  # type: ignore[arg-type]
    JobserverExecutor(initializer=3)  # type: ignore[arg-type]
    JobserverExecutor(workers=3)  # type: ignore[call-arg]


def is_an_executor(executor: JobserverExecutor) -> concurrent.futures.Executor:
    return executor


def takes_the_place(make: Callable[[int], concurrent.futures.Executor]) -> None:
    with make(2) as executor:
        executor.submit(area, 1)


takes_the_place(concurrent.futures.ProcessPoolExecutor)
takes_the_place(JobserverExecutor)


def submit(executor: JobserverExecutor) -> None:
    future = executor.submit(area, 1)
    assert_type(future, concurrent.futures.Future[float])
    assert_type(future.result(), float)
    assert_type(executor.submit(area, 1, height=2.0).result(timeout=1), float)
    assert_type(executor.submit(keywords, fn=1, timeout="s"), concurrent.futures.Future[bytes])
    executor.submit(area)  # type: ignore[call-arg]
    executor.submit(area, "1")  # type: ignore[arg-type]
    executor.submit(3)  # type: ignore[arg-type]
    executor.submit()  # type: ignore[call-arg]
    other: Future[float] = future  # type: ignore[assignment]
    del other


def map_(executor: JobserverExecutor) -> None:
    assert_type(executor.map(area, [1, 2]), Iterator[float])
    assert_type(executor.map(area, [1], [2.0], timeout=1, chunksize=2), Iterator[float])
    assert_type(next(executor.map(str, range(3), buffersize=2)), str)
    executor.map(3, [1])  # type: ignore[arg-type]
    executor.map(area, 3)  # type: ignore[arg-type]
    assert_type(executor.map(area, [1], chunksize="auto", buffersize=2), Iterator[float])
    executor.map(area, [1], chunksize="1")  # type: ignore[arg-type]


def block() -> None:
    with JobserverExecutor(2) as executor:
        assert_type(executor, JobserverExecutor)
        with executor.waiting() as nothing:
            assert_type(nothing, None)
        executor.shutdown()
        executor.shutdown(False)
        executor.shutdown(wait=False, cancel_futures=True)


async def in_asyncio(executor: JobserverExecutor) -> None:
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(executor, area, 1), float)


def collect(executor: JobserverExecutor) -> None:
    futures = [executor.submit(area, number) for number in range(3)]
    assert_type(
        [future.result() for future in concurrent.futures.as_completed(futures)], "list[float]"
    )
    assert_type(concurrent.futures.wait(futures).done, "set[concurrent.futures.Future[float]]")
