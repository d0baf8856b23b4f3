"""Contestants that are a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from typing import Any

from rounds import like_pool


class Futures:
    """A `rounds.Pool`."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        return self.executor.submit(fn, *args).result()

    def many(self, fn: Callable[[], object], count: int) -> None:
        for future in as_completed([self.executor.submit(fn) for _ in range(count)]):
            future.result()

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self.executor.map(fn, values))

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self.executor.map(fn, values, chunksize=like_pool(values)))
