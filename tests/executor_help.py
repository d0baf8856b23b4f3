"""What the tests of JobserverExecutor share: executors that cannot hang a failed test, scripts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from jobserver import Jobserver, JobserverExecutor
from tests.conftest import _descendants
from tests.work import PATIENCE

ROOT = Path(__file__).resolve().parent.parent


def context_of(method: str) -> BaseContext:
    return multiprocessing.get_context(method)


@contextlib.contextmanager
def executor_for(method: str, slots: int = 2, **options: Any) -> Iterator[JobserverExecutor]:
    """An executor with its own slots; a failed test does not wait for its work."""
    with closing_executor(JobserverExecutor(slots, context_of(method), **options)) as executor:
        yield executor


@contextlib.contextmanager
def sharing_executor(js: Jobserver) -> Iterator[JobserverExecutor]:
    """An executor on the given Jobserver; a failed test does not wait for its work."""
    with closing_executor(JobserverExecutor(js)) as executor:
        yield executor


@contextlib.contextmanager
def closing_executor(executor: JobserverExecutor) -> Iterator[JobserverExecutor]:
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        kill_workers()
        raise
    executor.shutdown()


def kill_workers() -> None:
    """End everything below this process, so that a test that found a hang can end too."""
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def await_true(condition: Callable[[], object], what: str) -> None:
    """Wait for what has no event of its own, or fail."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE} s: {what}")
        time.sleep(0.002)


def run_script(
    directory: Path, text: str, *args: object, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, and fail when a process of it outlives it."""
    script = directory / "script.py"
    script.write_text(text)
    with subprocess.Popen(
        [sys.executable, *flags, str(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as process:
        try:
            # Ends when nobody holds the pipes any more, a worker left behind included.
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"the program hangs\nstdout: {out}\nstderr: {err}") from None
    await_true(lambda: not group_exists(process.pid), "the end of the program's processes")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
