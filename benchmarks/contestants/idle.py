"""Processor time that the package called jobserver uses while there is nothing to do."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rounds import Round, Samples
from work import nothing, pause

from jobserver import Blocked, Jobserver, JobserverExecutor

# How much longer than the measured wait the work lasts that causes it, in seconds. Should it be
# too short, the measure fails.
MARGIN = 2.0


@contextmanager
def blocked_submit(seconds: float) -> Generator[Round]:
    """A `submit` while no slot can be had."""
    with Jobserver(context="fork", slots=1) as server:

        def one_round() -> Samples:
            holder = server.submit(fn=pause, args=(seconds + MARGIN,))
            with _processor() as samples:
                try:
                    server.submit(fn=nothing, timeout=seconds)
                except Blocked:
                    pass
                else:
                    raise RuntimeError("the only slot came free")
            holder.result()
            return samples

        yield one_round


@contextmanager
def wait(seconds: float) -> Generator[Round]:
    """A `wait` while the work runs."""
    with Jobserver(context="fork", slots=1) as server:

        def one_round() -> Samples:
            future = server.submit(fn=pause, args=(seconds + MARGIN,))
            with _processor() as samples:
                if future.wait(timeout=seconds):
                    raise RuntimeError("the work is done")
            future.result()
            return samples

        yield one_round


@contextmanager
def executor_wait(seconds: float, pending: int) -> Generator[Round]:
    """An executor while its work runs and more is pending."""
    server = Jobserver(context="fork", slots=1)
    with server, JobserverExecutor(server) as executor:

        def one_round() -> Samples:
            running = executor.submit(pause, seconds + MARGIN)
            others = [executor.submit(nothing) for _ in range(pending)]
            with _processor() as samples:
                time.sleep(seconds)
                if running.done():
                    raise RuntimeError("the work is done")
            for future in others:
                future.result()
            return samples

        yield one_round


@contextmanager
def _processor() -> Generator[Samples]:
    """The percent of a processor that this process uses in the block, in user and system mode."""
    samples: Samples = {}
    start, used = time.perf_counter(), time.process_time()
    yield samples
    used = time.process_time() - used
    samples["percent"] = [100 * used / (time.perf_counter() - start)]
