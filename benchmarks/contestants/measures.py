"""What is measured of a contestant, `MODULE.NAME` of a context manager that makes a `rounds.Pool`.

Each measure is a context manager that yields one round, with its times in seconds.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from rounds import SLOTS, MakePool, Pool, Round, Samples
from work import array, busy, memory, nothing, pause, same, size_of


def _named(contestant: str) -> Any:
    module, name = contestant.split(".")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _pool(contestant: str, method: str) -> Generator[Pool]:
    """What is started or imported once is no part of a round."""
    with cast("MakePool", _named(contestant))(method) as pool:
        for _ in range(SLOTS):
            pool.call(nothing)
        yield pool


def _timed(step: Callable[[], object], times: int = 1) -> float:
    """Seconds that each of so many takes."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) / times


@contextmanager
def calls(contestant: str, method: str, count: int) -> Generator[Round]:
    """Call after call, each timed."""
    with _pool(contestant, method) as pool:

        def one_round() -> Samples:
            return {"call": [_timed(lambda: pool.call(nothing)) for _ in range(count)]}

        yield one_round


@contextmanager
def calls_in_turn(contestants: dict[str, str], method: str, count: int) -> Generator[Round]:
    """As `calls`, of several contestants in one and the same process."""
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(_pool(contestant, method))
            for name, contestant in contestants.items()
        }

        def one_round() -> Samples:
            samples: Samples = {name: [] for name in pools}
            for _ in range(count):
                for name, pool in pools.items():
                    samples[name].append(_timed(lambda pool=pool: pool.call(nothing)))  # type: ignore[misc]
            return samples

        yield one_round


@contextmanager
def many(contestant: str, method: str, count: int) -> Generator[Round]:
    """Many submissions, then their results: the time of each."""
    with _pool(contestant, method) as pool:
        yield lambda: {"call": [_timed(lambda: pool.many(nothing, count), count)]}


@contextmanager
def mapped(contestant: str, method: str, count: int) -> Generator[Round]:
    """A map whose calls are a submission each: the time of each."""
    values = range(count)
    with _pool(contestant, method) as pool:
        yield lambda: {"call": [_timed(lambda: pool.map(same, values), count)]}


@contextmanager
def mapped_tiny(contestant: str, method: str, count: int) -> Generator[Round]:
    """A map of many tiny calls, grouped: the time of all."""
    values = range(count)
    with _pool(contestant, method) as pool:
        yield lambda: {"call": [_timed(lambda: pool.map_tiny(same, values))]}


@contextmanager
def working(contestant: str, method: str, count: int, seconds: float) -> Generator[Round]:
    """A map over calls that take so long: how many times as long it takes as without any cost."""
    values = [seconds] * count
    ideal = count * seconds / SLOTS
    with _pool(contestant, method) as pool:
        # Calls one after another need but one worker of those who start them on demand.
        pool.map(pause, [0.2] * SLOTS)
        yield lambda: {"call": [_timed(lambda: pool.map(busy, values)) / ideal]}


@contextmanager
def array_back(contestant: str, method: str, size: int) -> Generator[Round]:
    """A large result."""
    with _pool(contestant, method) as pool:
        pool.call(array, 8)  # NumPy is imported

        def one_round() -> Samples:
            return {"call": [_timed(lambda: pool.call(array, size))]}

        yield one_round


@contextmanager
def array_there(contestant: str, method: str, size: int) -> Generator[Round]:
    """A large argument."""
    large = array(size)
    with _pool(contestant, method) as pool:
        pool.call(size_of, array(8))
        yield lambda: {"call": [_timed(lambda: pool.call(size_of, large))]}


@contextmanager
def cold(contestant: str, method: str) -> Generator[Round]:
    """Construct, have one result, close."""
    make: MakePool = _named(contestant)

    def construct_and_call() -> None:
        with make(method) as pool:
            pool.call(nothing)

    construct_and_call()  # what is imported once, and the fork server
    yield lambda: {"call": [_timed(construct_and_call)]}


@contextmanager
def footprint(contestant: str, method: str, count: int) -> Generator[Round]:
    """Kibibytes of the parent and of a worker, after so many calls."""
    with _pool(contestant, method) as pool:

        def one_round() -> Samples:
            pool.many(nothing, count)
            worker: float = pool.call(memory)
            return {"parent": [memory()], "worker": [worker]}

        yield one_round


@contextmanager
def tree(grow: str, method: str, fans: list[int]) -> Generator[Round]:
    """A tree of small jobs, each of which submits so many on the next level."""
    jobs = 0
    for fan in reversed(fans):
        jobs = fan * (1 + jobs)

    def one_tree() -> None:
        grown = _named(grow)(method, fans)
        if grown != jobs:
            raise RuntimeError(f"{grown} jobs have run, not {jobs}")

    yield lambda: {"call": [_timed(one_tree)]}
