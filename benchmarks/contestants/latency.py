"""How long a contestant takes to run the trivial function in a worker and bring its result."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

# Of every contestant: as many as the smallest machine has processors. One call runs at a time.
SLOTS = 2

Call = Callable[[], object]
Samples = dict[str, list[float]]  # in seconds, percent or kibibytes
Round = Callable[[], Samples]


@contextmanager
def calls(contestant: str, method: str, count: int) -> Generator[Round]:
    """Call after call, each timed: `contestant` is a context manager that yields the call."""
    module, name = contestant.split(".")
    with getattr(importlib.import_module(module), name)(method) as call:
        for _ in range(SLOTS):
            call()  # what is started or imported once is no part of a call

        def one_round() -> Samples:
            times: list[float] = []
            for _ in range(count):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return {"call": times}

        yield one_round
