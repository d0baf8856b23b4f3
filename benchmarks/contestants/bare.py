"""A bare process, which returns nothing: what brings a result can but come near.

Imports no more than it needs. A process that has imported more takes longer to fork.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.context import ForkContext
from typing import Any, cast

from gate import Gate, allow_descriptors
from rounds import Round, Samples
from work import hold, nothing


class Bare:
    """As much of a `rounds.Pool` as it can be."""

    def __init__(self, method: str) -> None:
        # Every context has Process; the library's stubs know it of the named ones only.
        self._context = cast("ForkContext", multiprocessing.get_context(method))

    def call(self, fn: Callable[..., Any], *args: object) -> None:
        worker = self._context.Process(target=fn, args=args)
        worker.start()
        worker.join()


@contextmanager
def process(method: str) -> Generator[Bare]:
    yield Bare(method)


@contextmanager
def outstanding(count: int, further: int) -> Generator[Round]:
    """Further bare processes, `count` of them running."""
    allow_descriptors()
    context = multiprocessing.get_context("fork")

    def one_round() -> Samples:
        gate = Gate()
        running = [context.Process(target=hold, args=gate.key) for _ in range(count)]
        for worker in running:
            worker.start()
        gate.complete()
        starts: list[float] = []
        ends: list[float] = []
        for _ in range(further):
            start = time.perf_counter()
            worker = context.Process(target=nothing)
            worker.start()
            starts.append(time.perf_counter() - start)
            worker.join()
            ends.append(time.perf_counter() - start)
        gate.open()
        for worker in running:
            worker.join()
        return {"first": ends[:1], "submit": starts[1:], "result": ends[1:]}

    yield one_round
