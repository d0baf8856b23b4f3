"""Whatever runs calls in other processes, asked in one way: the library's faces, and its peer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from jobserver import Jobserver
from tests.executor_help import context_of, executor_for, sharing_executor
from tests.work import PATIENCE

JOBSERVERS = ("fresh", "reused")
EXECUTORS = ("owning", "sharing")
FACES = (*JOBSERVERS, *EXECUTORS)

Run = Callable[..., Any]  # fn and its arguments: what the call gives or raises


@contextlib.contextmanager
def face(name: str, method: str, slots: int = 1) -> Iterator[Run]:
    """One of `FACES`, or "peer" for ProcessPoolExecutor."""
    with contextlib.ExitStack() as stack:
        if name == "peer":
            pool = stack.enter_context(ProcessPoolExecutor(slots, context_of(method)))
            yield lambda fn, *args: pool.submit(fn, *args).result(PATIENCE)
            return
        if name == "owning":
            executor = stack.enter_context(executor_for(method, slots))
            yield lambda fn, *args: executor.submit(fn, *args).result(PATIENCE)
            return
        js = stack.enter_context(Jobserver(method, slots))
        if name == "sharing":
            sharing = stack.enter_context(sharing_executor(js))
            yield lambda fn, *args: sharing.submit(fn, *args).result(PATIENCE)
            return
        js = js.replace_workers() if name == "reused" else js
        yield lambda fn, *args: js(fn, *args).result(PATIENCE)


def raised_by(run: Run, fn: Callable[..., object], *args: object) -> BaseException:
    """What a call raises."""
    try:
        run(fn, *args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")
