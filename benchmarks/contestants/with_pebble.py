from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from contextlib import contextmanager

from latency import SLOTS, Call
from pebble import ProcessPool
from work import nothing


@contextmanager
def pool(method: str) -> Generator[Call]:
    with ProcessPool(SLOTS, context=multiprocessing.get_context(method)) as pool:
        yield lambda: pool.schedule(nothing).result()


@contextmanager
def pool_fresh(method: str) -> Generator[Call]:
    context = multiprocessing.get_context(method)
    with ProcessPool(SLOTS, max_tasks=1, context=context) as pool:
        yield lambda: pool.schedule(nothing).result()
