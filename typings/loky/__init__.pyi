# What the benchmarks use of loky, which has no types of its own.

from concurrent.futures import Executor

def get_reusable_executor(max_workers: int | None = ...) -> Executor: ...
