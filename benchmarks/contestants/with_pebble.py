from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import Any

from pebble import ProcessPool
from rounds import SLOTS, like_pool


class Pebble:
    """A `rounds.Pool`."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        return self._pool.schedule(fn, args).result()

    def many(self, fn: Callable[[], object], count: int) -> None:
        for future in as_completed([self._pool.schedule(fn) for _ in range(count)]):
            future.result()

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self._pool.map(fn, values).result())

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self._pool.map(fn, values, chunksize=like_pool(values)).result())


@contextmanager
def pool(method: str) -> Generator[Pebble]:
    with ProcessPool(SLOTS, context=multiprocessing.get_context(method)) as pool:
        yield Pebble(pool)


@contextmanager
def pool_fresh(method: str) -> Generator[Pebble]:
    context = multiprocessing.get_context(method)
    with ProcessPool(SLOTS, max_tasks=1, context=context) as pool:
        yield Pebble(pool)
