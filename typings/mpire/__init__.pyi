# What the benchmarks use of mpire, which is installed in an environment of its own only.

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, TypeVar

from typing_extensions import Self

_T = TypeVar("_T")

class AsyncResult(Generic[_T]):
    def get(self) -> _T: ...

class WorkerPool:
    def __init__(
        self, n_jobs: int | None = ..., *, start_method: str = ..., keep_alive: bool = ...
    ) -> None: ...
    def apply(self, func: Callable[..., _T], args: object = ...) -> _T: ...
    def apply_async(self, func: Callable[..., _T], args: object = ...) -> AsyncResult[_T]: ...
    def map(
        self,
        func: Callable[..., _T],
        iterable_of_args: Iterable[object],
        *,
        chunk_size: int | None = ...,
    ) -> list[_T]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
