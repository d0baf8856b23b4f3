from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from mpire import WorkerPool
from rounds import SLOTS


class Mpire:
    """A `rounds.Pool`."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        return self._pool.apply(fn, args)

    def many(self, fn: Callable[[], object], count: int) -> None:
        for result in [self._pool.apply_async(fn) for _ in range(count)]:
            result.get()

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        self._pool.map(fn, values, chunk_size=1)

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        self._pool.map(fn, values)


@contextmanager
def pool(method: str) -> Generator[Mpire]:
    with WorkerPool(SLOTS, start_method=method, keep_alive=True) as pool:
        yield Mpire(pool)
