# What the benchmarks use of pebble, which is installed in an environment of its own only.

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TypeVar

from typing_extensions import Self

_T = TypeVar("_T")

class ProcessPool:
    def __init__(
        self, max_workers: int = ..., max_tasks: int = ..., context: BaseContext = ...
    ) -> None: ...
    def schedule(self, function: Callable[..., _T], args: Sequence[object] = ...) -> Future[_T]: ...
    def map(
        self, function: Callable[..., _T], *iterables: Iterable[object], chunksize: int = ...
    ) -> Future[Iterable[_T]]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
