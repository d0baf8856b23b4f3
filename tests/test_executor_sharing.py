"""A JobserverExecutor on a given Jobserver: one set of slots, one set of settings."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver, JobserverExecutor
from jobserver.poller import KernelPoller
from tests import executor_work as work
from tests.executor_help import await_true, context_of, executor_for, sharing_executor
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    identity,
    pass_gate,
    raise_value_error,
    touch,
    touch_and_pass_gate,
)


@contextmanager
def forking_beside_a_thread() -> Iterator[None]:
    """The fork that a user asks for by submitting to a fork Jobserver beside an executor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        yield


def test_work_of_the_jobserver_holds_the_executor_s_work_up(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js, Gate(tmp_path) as gate:
        held = js(touch_and_pass_gate, mark, gate.path, "held")
        await_file(mark)
        with sharing_executor(js) as executor:
            never = tmp_path / "never"
            pending = executor.submit(touch, str(never))
            with pytest.raises(concurrent.futures.TimeoutError):
                pending.result(timeout=0.1)
            assert not pending.running()
            assert not never.exists()
            gate.open()
            pending.result(PATIENCE)
            assert held.result(PATIENCE) == "held"


def test_work_of_the_executor_holds_the_jobserver_s_work_up(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js) as executor, Gate(tmp_path) as gate:
            held = executor.submit(touch_and_pass_gate, mark, gate.path, "held")
            await_file(mark)
            with pytest.raises(Blocked):
                js.submit(identity, args=(1,), timeout=0)
            with pytest.raises(Blocked):
                js.submit(identity, args=(1,), timeout=0.05)
            gate.open()
            assert held.result(PATIENCE) == "held"
            with forking_beside_a_thread():
                future = js.submit(identity, args=(1,), timeout=PATIENCE)
            assert future.result(PATIENCE) == 1


def test_a_finished_unread_future_does_not_block_the_executor(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js:
        unread = js(touch, mark)
        await_file(mark)
        with sharing_executor(js) as executor:
            # Nobody asks `unread`; its slot must come back all the same.
            assert executor.submit(add, 1, 2).result(PATIENCE) == 3
        assert unread.result(PATIENCE) is None


def test_a_future_that_finishes_later_unread_does_not_block_it_either(
    method: str, tmp_path: Path
) -> None:
    with Jobserver(context_of(method), 1) as js:
        with Gate(tmp_path) as gate:
            unread = js(pass_gate, gate.path, "value")
            with sharing_executor(js) as executor:
                pending = executor.submit(add, 1, 2)
                gate.open()
                assert pending.result(PATIENCE) == 3
            assert unread.result(PATIENCE) == "value"


def test_a_callback_of_the_jobserver_that_raises_harms_no_work(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js:
        unread = js(touch, mark)
        unread.when_done(raise_value_error, "in the callback")
        await_file(mark)
        with sharing_executor(js) as executor:
            assert executor.submit(add, 1, 2).result(PATIENCE) == 3
            assert executor.submit(add, 3, 4).result(PATIENCE) == 7
        settle(unread)


def settle(future: Future[None]) -> None:
    """Read a Future whose callback's error may have surfaced elsewhere or does so here."""
    try:
        future.result(PATIENCE)
    except CallbackRaised:
        future.result(PATIENCE)


def test_two_executors_share(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js) as first, sharing_executor(js) as second:
            with Gate(tmp_path) as gate:
                held = first.submit(touch_and_pass_gate, mark, gate.path, "held")
                await_file(mark)
                pending = second.submit(add, 1, 2)
                assert not pending.done()
                assert not pending.running()
                gate.open()
                assert pending.result(PATIENCE) == 3
                assert held.result(PATIENCE) == "held"
            futures = [each.submit(identity, n) for n in range(3) for each in (first, second)]
            assert [future.result(PATIENCE) for future in futures] == [0, 0, 1, 1, 2, 2]


def test_the_environment_of_the_handle_applies(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js.revise_env({"A_NAME": "a value"})) as executor:
            assert executor.submit(work.getenv, "A_NAME").result(PATIENCE) == "a value"
        with sharing_executor(js) as executor:
            assert executor.submit(work.getenv, "A_NAME").result(PATIENCE) is None


def test_the_preexec_of_the_handle_applies(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js.replace_preexec(work.initialize, "preexec")) as executor:
            assert executor.submit(work.initialized).result(PATIENCE) == "preexec"


def test_an_exception_of_the_preexec_is_the_work_s(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        failing = js.replace_preexec(raise_value_error, "in the preexec")
        with sharing_executor(failing) as executor:
            for _ in range(2):
                error = executor.submit(identity, None).exception(PATIENCE)
                assert type(error) is ValueError
                assert error.args == ("in the preexec",)


def test_the_gate_of_the_handle_is_asked(method: str) -> None:
    answers: list[float | None] = [0.01, 0, 0.001, None]
    open_now = threading.Event()

    def gate() -> float | None:
        if answers:
            return answers.pop(0)
        return None if open_now.is_set() else 0.005

    with Jobserver(context_of(method), 2) as js:
        with sharing_executor(js.replace_sleep(gate)) as executor:
            assert executor.submit(add, 1, 2).result(PATIENCE) == 3
            assert answers == []
            held = executor.submit(add, 3, 4)
            with pytest.raises(concurrent.futures.TimeoutError):
                held.result(timeout=0.1)
            assert not held.running()
            open_now.set()
            assert held.result(PATIENCE) == 7


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_exception_of_the_gate_costs_neither_slot_nor_executor(
    method: str, kind: type[BaseException]
) -> None:
    faults = [kind("in the gate")]

    def gate() -> None:
        if faults:
            raise faults.pop()

    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js.replace_sleep(gate)) as executor:
            error = executor.submit(add, 1, 2).exception(PATIENCE)
            assert type(error) is kind
            assert error.args == ("in the gate",)
            assert executor.submit(add, 3, 4).result(PATIENCE) == 7


def test_a_sleeping_gate_holds_neither_cancelling_nor_shutdown_up(method: str) -> None:
    asked = threading.Event()

    def gate() -> float:
        asked.set()
        return 3600.0

    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js.replace_sleep(gate)) as executor:
            first = executor.submit(add, 1, 2)
            second = executor.submit(add, 3, 4)
            assert asked.wait(PATIENCE)
            assert second.cancel()
            executor.shutdown(cancel_futures=True)
            assert first.cancelled()


def test_slots_held_by_others_do_not_hold_cancelling_or_shutdown_up(
    method: str, tmp_path: Path
) -> None:
    mark = str(tmp_path / "mark")
    with Jobserver(context_of(method), 1) as js, Gate(tmp_path) as gate:
        held = js(touch_and_pass_gate, mark, gate.path)
        await_file(mark)
        with sharing_executor(js) as executor:
            pending = executor.submit(add, 1, 2)
            executor.shutdown(cancel_futures=True)
            assert pending.cancelled()
        assert not held.done()
        gate.open()
        assert held.wait(PATIENCE)


def test_a_closed_jobserver_is_refused(method: str) -> None:
    js = Jobserver(context_of(method), 1)
    with js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        with JobserverExecutor(js) as executor:
            executor.submit(identity, None).result(PATIENCE)


def test_a_jobserver_closed_meanwhile_leaves_no_future_unfinished(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        executor = JobserverExecutor(js)
        assert executor.submit(identity, 1).result(PATIENCE) == 1
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        executor.submit(identity, None).result(PATIENCE)
    executor.shutdown()


def test_a_jobserver_closed_before_the_work_of_an_executor_is_done(
    method: str, tmp_path: Path
) -> None:
    mark = str(tmp_path / "mark")
    with Gate(tmp_path) as gate:
        with Jobserver(context_of(method), 1) as js:
            executor = JobserverExecutor(js)
            running = executor.submit(touch_and_pass_gate, mark, gate.path, "ran")
            pending = executor.submit(add, 1, 2)
            await_file(mark)
        gate.open()
        assert running.result(PATIENCE) == "ran"
        # It may run or be refused; it may not be forgotten.
        error = pending.exception(PATIENCE)
        assert error is None or "Jobserver is closed" in str(error)
        executor.shutdown()


def test_the_handle_as_an_argument_nests(method: str) -> None:
    with Jobserver(context_of(method), 1) as js, sharing_executor(js) as executor:
        assert executor.submit(work.submit_in_turn, js, [1, 2, 3]).result(PATIENCE) == [1, 2, 3]


def test_nested_work_draws_on_the_same_slots(method: str, tmp_path: Path) -> None:
    with Jobserver(context_of(method), 2) as js:
        with sharing_executor(js) as executor, Gate(tmp_path) as gate:
            marks = [str(tmp_path / name) for name in ("outer", "inner")]
            outer = executor.submit(work.submit_behind, js, marks[0], marks[1], gate.path)
            await_file(marks[1])
            # The outer work and the inner work hold both slots.
            third = executor.submit(identity, 3)
            with pytest.raises(concurrent.futures.TimeoutError):
                third.result(timeout=0.1)
            assert not third.running()
            gate.open()
            assert third.result(PATIENCE) == 3
            assert outer.result(PATIENCE) == "inner"


def test_an_executor_inside_a_worker_of_an_executor(method: str) -> None:
    with executor_for(method, 1) as executor:
        values = executor.submit(work.own_fan_out, 3, "map").result(PATIENCE)
    assert values == [0, 1, 2]


def test_an_executor_waits_in_the_kernel(tmp_path: Path) -> None:
    with Jobserver("fork", 1) as js, Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        held = js(touch_and_pass_gate, mark, gate.path)
        await_file(mark)
        with sharing_executor(js) as executor:
            pending = executor.submit(add, 1, 2)
            before = time.process_time()
            with pytest.raises(concurrent.futures.TimeoutError):
                pending.result(timeout=1)
            assert time.process_time() - before < 0.2
            gate.open()
            await_true(pending.done, "the work behind the gate")
        assert held.wait(PATIENCE)


def test_who_looks_in_passing_leaves_the_bell_to_who_waits() -> None:
    poller = KernelPoller()
    poller.wake()
    assert list(poller.poll(0)) == []  # as `done` of a Future does, in another thread
    asked = time.monotonic()
    assert list(poller.poll(5.0)) == []
    assert time.monotonic() - asked < 5.0
    poller.close()
