from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from latency import SLOTS, Call
from work import nothing


@contextmanager
def executor(method: str) -> Generator[Call]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(SLOTS, mp_context=context) as executor:
        yield lambda: executor.submit(nothing).result()


if sys.version_info >= (3, 11):

    @contextmanager
    def executor_fresh(method: str) -> Generator[Call]:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(SLOTS, context, max_tasks_per_child=1) as executor:
            yield lambda: executor.submit(nothing).result()


@contextmanager
def pool(method: str) -> Generator[Call]:
    with multiprocessing.get_context(method).Pool(SLOTS) as pool:
        yield lambda: pool.apply(nothing)


@contextmanager
def pool_fresh(method: str) -> Generator[Call]:
    with multiprocessing.get_context(method).Pool(SLOTS, maxtasksperchild=1) as pool:
        yield lambda: pool.apply(nothing)
