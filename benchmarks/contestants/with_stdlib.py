from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from futures import Futures
from rounds import SLOTS


@contextmanager
def executor(method: str) -> Generator[Futures]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(SLOTS, mp_context=context) as executor:
        yield Futures(executor)


if sys.version_info >= (3, 11):

    @contextmanager
    def executor_fresh(method: str) -> Generator[Futures]:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(SLOTS, context, max_tasks_per_child=1) as executor:
            yield Futures(executor)


def tree(method: str, fans: Sequence[int]) -> int:
    """How many there are in a tree of jobs. Each has a pool of its own, as it cannot share one."""
    if not fans:
        return 0
    with executor(method) as pool:
        futures = [pool.executor.submit(tree, method, fans[1:]) for _ in range(fans[0])]
        return sum(1 + future.result() for future in futures)


class Pool:
    """A `rounds.Pool`."""

    def __init__(self, pool: multiprocessing.pool.Pool) -> None:
        self._pool = pool

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        return self._pool.apply(fn, args)

    def many(self, fn: Callable[[], object], count: int) -> None:
        for result in [self._pool.apply_async(fn) for _ in range(count)]:
            result.get()

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        self._pool.map(fn, values, chunksize=1)

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        self._pool.map(fn, values)


@contextmanager
def pool(method: str) -> Generator[Pool]:
    with multiprocessing.get_context(method).Pool(SLOTS) as pool:
        yield Pool(pool)


@contextmanager
def pool_fresh(method: str) -> Generator[Pool]:
    with multiprocessing.get_context(method).Pool(SLOTS, maxtasksperchild=1) as pool:
        yield Pool(pool)
