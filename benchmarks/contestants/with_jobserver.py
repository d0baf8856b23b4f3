"""Whichever package called jobserver the environment holds: this checkout, or its namesake."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from gate import Gate, allow_descriptors
from rounds import SLOTS, Round, Samples, like_pool
from work import hold, nothing

from jobserver import Jobserver


class Server:
    """A `rounds.Pool`."""

    def __init__(self, server: Jobserver) -> None:
        self.server = server

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        return self.server.submit(fn=fn, args=args).result()

    def many(self, fn: Callable[[], object], count: int) -> None:
        # Each submission waits for a slot, so they are in the order in which they end.
        for future in [self.server.submit(fn=fn) for _ in range(count)]:
            future.result()

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self.server.map(fn=fn, argses=[(value,) for value in values]))

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        argses = [(value,) for value in values]
        list(self.server.map(fn=fn, argses=argses, chunksize=like_pool(values)))


class GrowingChunks(Server):
    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        list(self.server.map(fn, [(value,) for value in values], chunksize="auto"))


@contextmanager
def jobserver(method: str) -> Generator[Server]:
    with Jobserver(context=method, slots=SLOTS) as server:
        yield Server(server)


@contextmanager
def reused(method: str) -> Generator[Server]:
    with Jobserver(context=method, slots=SLOTS) as server:
        # They stay between two rounds, as those of a pool do.
        yield GrowingChunks(server.replace_workers(idle=3600.0))


def tree(method: str, fans: Sequence[int]) -> int:
    """How many there are in a tree of jobs, which shares the slots."""
    with Jobserver(context=method, slots=SLOTS) as server:
        return _grow(server, fans)


def tree_reused(method: str, fans: Sequence[int]) -> int:
    with Jobserver(context=method, slots=SLOTS) as server:
        return _grow(server.replace_workers(), fans)


def _grow(server: Jobserver, fans: Sequence[int]) -> int:
    if not fans:
        return 0
    futures = [server.submit(fn=_grow, args=(server, fans[1:])) for _ in range(fans[0])]
    return sum(1 + future.result() for future in futures)


def tree_beside_the_slots(method: str, fans: Sequence[int]) -> int:
    """The same where a tree stands still once all slots are held by jobs that wait for others.

    Such jobs take none, and there are as many processes as there are such jobs.
    """
    with Jobserver(context=method, slots=SLOTS) as server:
        return _grow_beside(server, fans)


def _grow_beside(server: Jobserver, fans: Sequence[int]) -> int:
    if not fans:
        return 0
    below = fans[1:]
    futures = [
        server.submit(fn=_grow_beside, args=(server, below), consume=0 if below else 1)
        for _ in range(fans[0])
    ]
    return sum(1 + future.result() for future in futures)


@contextmanager
def outstanding(count: int, further: int, finished: bool) -> Generator[Round]:
    """Further submissions, `count` Futures being unread: finished, or running still."""
    allow_descriptors()
    with Jobserver(context="fork", slots=count + further) as server:
        server.submit(fn=nothing).result()

        def one_round() -> Samples:
            gate = Gate()
            unread = [server.submit(fn=hold, args=gate.key) for _ in range(count)]
            gate.complete()
            if finished:
                gate.open()
            submits: list[float] = []
            results: list[float] = []
            for _ in range(further):
                start = time.perf_counter()
                future = server.submit(fn=nothing)
                submits.append(time.perf_counter() - start)
                future.result()
                results.append(time.perf_counter() - start)
            if not finished:
                gate.open()
            for future in unread:
                future.result()
            return {"first": results[:1], "submit": submits[1:], "result": results[1:]}

        yield one_round
