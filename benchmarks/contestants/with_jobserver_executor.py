"""As `with_jobserver`, through its executor."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from latency import SLOTS, Call
from work import nothing

from jobserver import Jobserver, JobserverExecutor


@contextmanager
def executor(method: str) -> Generator[Call]:
    server = Jobserver(context=method, slots=SLOTS)
    with server, JobserverExecutor(server) as executor:
        yield lambda: executor.submit(nothing).result()
