"""`drain` waits for work and callbacks; what the end of `with` leaves behind is told of."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver
from jobserver.engine import drain_all
from tests.work import PATIENCE, Gate, add, pass_gate, raise_value_error

reused = pytest.mark.parametrize("reused", [False, True])


def submit_more(js: Jobserver) -> list[str]:
    """Nested work, of whose callbacks its own process takes care."""
    seen: list[str] = []
    future = js(add, 1, 2)
    future.when_done(seen.append, "nested")
    js.drain(PATIENCE)
    return seen


@reused
def test_it_waits_for_all_work_and_all_callbacks(method: str, reused: bool) -> None:
    seen: list[object] = []
    with Jobserver(method, 2) as js:
        handle = js.replace_workers() if reused else copy.copy(js)
        futures = [handle(add, number, 1) for number in range(3)]

        def submit_again() -> None:
            futures.append(js.submit(add, args=(9, 1), consume=0))
            futures[-1].when_done(seen.append, "from a callback")

        for number, future in enumerate(futures):
            future.when_done(seen.append, number)
        futures[0].when_done(submit_again)
        nested = handle(submit_more, js)
        js.drain(PATIENCE)
        assert "tracked=0" in repr(js)
        assert nested.result(0) == ["nested"]
        assert sorted(map(str, seen)) == ["0", "1", "2", "from a callback"]
        js.drain(0)  # nothing is left
    assert [future.result(0) for future in futures] == [1, 2, 3, 10]


def test_it_raises_blocked_at_the_deadline(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 2) as js:
        future = js(pass_gate, gate.path, "value")
        js(add, 1, 2).wait(PATIENCE)
        for timeout in (0, 0.05):
            with pytest.raises(Blocked):
                js.drain(timeout)
        gate.open()
        js.drain(PATIENCE)
        assert future.result(0) == "value"


@pytest.mark.parametrize("timeout", [-1, "1", True, float("inf"), float("nan")])
def test_it_checks_its_timeout(timeout: float) -> None:
    with Jobserver("fork", 1) as js, pytest.raises((TypeError, ValueError), match="timeout"):
        js.drain(timeout)


def test_it_is_an_error_on_a_closed_handle() -> None:
    with Jobserver("fork", 1) as js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.drain()


def test_what_a_callback_raises_surfaces_and_the_rest_runs_at_the_next_call(method: str) -> None:
    seen: list[str] = []
    with Jobserver(method, 1) as js:
        future = js(add, 1, 2)
        future.when_done(seen.append, "before")
        future.when_done(raise_value_error, "why")
        future.when_done(seen.append, "after")
        with pytest.raises(CallbackRaised) as caught:
            js.drain(PATIENCE)
        assert (caught.value.seqno, seen) == (1, ["before"])
        js.drain(PATIENCE)
        assert seen == ["before", "after"]


def test_it_waits_for_the_callbacks_of_other_threads() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow() -> None:
        entered.set()
        assert leave.wait(PATIENCE)
        seen.append("slow")

    with ThreadPoolExecutor(2) as pool, Jobserver("fork", 1) as js:
        future = js(add, 1, 2)
        future.when_done(slow)
        future.when_done(seen.append, "after")
        runner = pool.submit(future.wait, PATIENCE)
        try:
            assert entered.wait(PATIENCE)
            with pytest.raises(Blocked):
                js.drain(0.05)
            drained = pool.submit(js.drain, PATIENCE)
        finally:
            leave.set()
        drained.result(PATIENCE)
        assert seen == ["slow", "after"]
        assert runner.result(PATIENCE)


def test_within_a_callback_it_waits_for_work_only(method: str) -> None:
    seen: list[str] = []
    with Jobserver(method, 2) as js:
        first, second = js(add, 1, 2), js(add, 3, 4)

        def drain() -> None:
            js.drain(PATIENCE)
            seen.append(f"second is done: {second.done()}")

        first.when_done(drain)
        second.when_done(seen.append, "of the second")
        assert first.wait(PATIENCE)
        # The second may have been done, and its callback have run, before the first was.
        assert sorted(seen) == ["of the second", "second is done: True"]


def test_a_forked_child_has_nothing_to_wait_for(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        future = js(pass_gate, gate.path, "value")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                js.drain(0)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_the_end_says_which_callbacks_can_run_no_more(method: str, tmp_path: Path) -> None:
    seen: list[str] = []
    with Gate(tmp_path) as gate:
        with pytest.warns(ResourceWarning) as warned, Jobserver(method, 3) as js:  # noqa: PT031
            kept = js(pass_gate, gate.path)
            kept.when_done(seen.append, "kept")
            for _ in range(2):
                js(pass_gate, gate.path).when_done(seen.append, "dropped")
        of_callbacks = [each for each in warned if str(each.message).startswith("Callbacks")]
        assert len(of_callbacks) == 1
        assert re.match(
            r"Callbacks of 2 Futures can no longer run.*drain\(\)", str(of_callbacks[0].message)
        )
        assert of_callbacks[0].filename == __file__
        # It can still be waited for, and is told of when that cannot be, either.
        gate.open()
        assert kept.wait(PATIENCE)
        assert seen == ["kept"]
    drain_all()


@pytest.mark.parametrize("over", [False, True])
def test_a_future_that_is_dropped_after_the_end_says_so(tmp_path: Path, over: bool) -> None:
    with Gate(tmp_path) as gate:
        with Jobserver("fork", 1) as js:
            future: Future[object] = js(pass_gate, gate.path)
            future.when_done(raise_value_error, "first")
            future.when_done(int)
        gate.open()
        if over:
            with pytest.raises(CallbackRaised):
                future.wait(PATIENCE)
        with pytest.warns(ResourceWarning, match=r"^Dropping .*no longer run.*drain\(\)"):
            del future
    drain_all()


def test_a_program_that_ends_without_having_run_them_says_so() -> None:
    program = """if True:
        import time
        from jobserver import Jobserver
        if __name__ == "__main__":
            with Jobserver("fork", 1) as js:
                future = js(time.sleep, 0.01)
                future.when_done(print, "never")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert ended.stdout == ""
    assert "can no longer run" in ended.stderr
    assert "drain()" in ended.stderr


def test_nothing_is_said_after_a_drain(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Jobserver(method, 1) as js:
            future = js(add, 1, 2)
            future.when_done(int)
            js.drain(PATIENCE)
        del future
