from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from futures import Futures
from loky import get_reusable_executor
from rounds import SLOTS


@contextmanager
def executor(_method: str) -> Generator[Futures]:
    """Its workers are spawned in a way of its own."""
    with get_reusable_executor(SLOTS) as executor:
        yield Futures(executor)


def tree(method: str, fans: Sequence[int]) -> int:
    """As `with_stdlib.tree`."""
    if not fans:
        return 0
    with executor(method) as pool:
        futures = [pool.executor.submit(tree, method, fans[1:]) for _ in range(fans[0])]
        return sum(1 + future.result() for future in futures)
