"""Whichever package called jobserver the environment holds: this checkout, or its namesake."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from gate import Gate, allow_descriptors
from latency import SLOTS, Call, Round, Samples
from work import hold, nothing

from jobserver import Jobserver


@contextmanager
def jobserver(method: str) -> Generator[Call]:
    with Jobserver(context=method, slots=SLOTS) as server:
        yield lambda: server.submit(fn=nothing).result()


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
