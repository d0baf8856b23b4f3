"""As `with_jobserver`, through its executor."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from futures import Futures
from rounds import SLOTS

from jobserver import Jobserver, JobserverExecutor


@contextmanager
def executor(method: str) -> Generator[Futures]:
    server = Jobserver(context=method, slots=SLOTS)
    with server, JobserverExecutor(server) as executor:
        yield Futures(executor)


class GrowingChunks(Futures):
    def __init__(self, executor: JobserverExecutor) -> None:
        super().__init__(executor)
        self._executor = executor

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self._executor.map(fn, values, chunksize="auto"))


@contextmanager
def executor_reused(method: str) -> Generator[Futures]:
    with JobserverExecutor(SLOTS, method) as executor:
        yield GrowingChunks(executor)
