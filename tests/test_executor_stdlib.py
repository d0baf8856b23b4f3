"""What the standard library's own tests ask of ProcessPoolExecutor, asked of JobserverExecutor.

Where the two differ on purpose (a death fails one Future, not the pool), the test says ours.
"""

from __future__ import annotations

import concurrent.futures
import gc
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import Future as StandardFuture
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Optional

import pytest

from tests import executor_work as work
from tests.executor_help import await_true, executor_for
from tests.work import (
    PATIENCE,
    Gate,
    await_file,
    die,
    echo,
    identity,
    pass_gate,
    raise_value_error,
    touch_and_pass_gate,
)


def future_in(state: str) -> StandardFuture[Any]:
    """A Future that no executor made, as programs mix them in."""
    future: StandardFuture[Any] = StandardFuture()
    if state == "cancelled":
        future.cancel()
    elif state == "cancelled and notified":
        future.cancel()
        future.set_running_or_notify_cancel()
    elif state == "failed":
        future.set_exception(OSError())
    elif state == "finished":
        future.set_result(42)
    return future


def test_submit_by_keyword(method: str) -> None:
    with executor_for(method) as executor:
        assert executor.submit(pow, 2, exp=8).result(PATIENCE) == 256
        assert executor.submit(echo, 1, self=2, fn=3).result(PATIENCE) == (
            (1,),
            {"self": 2, "fn": 3},
        )


def test_no_stale_references(method: str) -> None:
    with executor_for(method, 1) as executor:
        argument = work.Traveller()
        gone = threading.Event()
        reference = weakref.ref(argument, lambda _: gone.set())
        executor.submit(work.receive_traveller, argument)
        del argument
        await_true(lambda: gc.collect() is not None and gone.is_set(), "the end of the argument")
        assert reference() is None


def test_no_stale_references_while_the_future_is_kept(method: str) -> None:
    with executor_for(method, 1) as executor:
        argument = work.Traveller()
        reference = weakref.ref(argument)
        future = executor.submit(work.receive_traveller, argument)
        future.result(PATIENCE)
        del argument
        await_true(lambda: gc.collect() is not None and reference() is None, "its end")


def test_a_result_is_not_kept(method: str) -> None:
    with executor_for(method, 1) as executor:
        future = executor.submit(work.send_traveller)
        reference = weakref.ref(future.result(PATIENCE))
        del future
        await_true(lambda: gc.collect() is not None and reference() is None, "its end")


def test_an_exception_is_not_kept(method: str) -> None:
    with executor_for(method, 1) as executor:
        future = executor.submit(work.raise_detailed, 3)
        error = future.exception(PATIENCE)
        assert error is not None
        reference = weakref.ref(error)
        del error, future
        await_true(lambda: gc.collect() is not None and reference() is None, "its end")


def test_shutdown_while_more_is_pending_than_there_are_workers(method: str) -> None:
    with executor_for(method, 2) as executor:
        executor.map(str, [2] * 3)
        executor.shutdown()


def test_many_submissions_then_shutdown(method: str) -> None:
    with executor_for(method, 2) as executor:
        futures = [executor.submit(identity, number) for number in range(20)]
        executor.shutdown()
        assert [future.result(0) for future in futures] == list(range(20))


def test_the_hook_for_uncaught_exceptions_prints_the_worker_s_traceback(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(raise_value_error, "in the work").exception(PATIENCE)
    assert error is not None
    trace: Optional[TracebackType] = error.__traceback__
    sys.__excepthook__(type(error), error, trace)
    assert "raise ValueError(text)" in capsys.readouterr().err


def test_arguments_are_freed_in_the_worker_before_the_result_is_there(
    method: str, tmp_path: Path
) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 1) as executor:
        executor.submit(work.identity_of, work.TouchesWhenFreed(mark)).result(PATIENCE)
        await_file(mark)


def test_wait_knows_futures_of_other_makes(method: str, tmp_path: Path) -> None:
    others = {state: future_in(state) for state in ("cancelled and notified", "failed", "finished")}
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        held = executor.submit(pass_gate, gate.path)
        every: list[StandardFuture[Any]] = [*others.values(), held]
        done, not_done = concurrent.futures.wait(every, timeout=0.02)
        assert done == set(others.values())
        assert not_done == {held}
        found: set[StandardFuture[Any]] = set()
        with pytest.raises(concurrent.futures.TimeoutError, match=r"1 \(of 4\) futures unfinished"):
            found.update(concurrent.futures.as_completed(every, timeout=0.02))
        assert found == done
        gate.open()
        assert set(concurrent.futures.as_completed(every, timeout=PATIENCE)) == set(every)


def test_wait_for_the_first_of_those_already_done(method: str, tmp_path: Path) -> None:
    finished = future_in("finished")
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        held = executor.submit(pass_gate, gate.path)
        done, not_done = concurrent.futures.wait(
            [finished, held], return_when=concurrent.futures.FIRST_COMPLETED
        )
        assert (done, not_done) == ({finished}, {held})
        failed = future_in("failed")
        done, not_done = concurrent.futures.wait(
            [failed, held], return_when=concurrent.futures.FIRST_EXCEPTION
        )
        assert (done, not_done) == ({failed}, {held})


def test_the_same_future_twice(method: str) -> None:
    with executor_for(method, 1) as executor:
        future = executor.submit(identity, 1)
        done, not_done = concurrent.futures.wait([future, future], PATIENCE)
        assert (done, not_done) == ({future}, set())
        assert list(concurrent.futures.as_completed([future] * 3, PATIENCE)) == [future]


def test_a_crash_of_one_worker(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        held = executor.submit(touch_and_pass_gate, mark, gate.path, "held")
        await_file(mark)
        assert isinstance(executor.submit(die).exception(PATIENCE), BrokenProcessPool)
        # There the pool would be broken now; here everything else goes on.
        assert executor.submit(pow, 2, 8).result(PATIENCE) == 256
        gate.open()
        assert held.result(PATIENCE) == "held"


def test_a_crash_in_a_map_with_much_data(method: str) -> None:
    with executor_for(method, 2) as executor:
        with pytest.raises(BrokenProcessPool):
            list(executor.map(work.die_with, [b"x" * (4 << 20)] * 4))


def test_a_crash_during_shutdown(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        with executor_for(method, 2) as executor:
            dying = executor.submit(work.die_behind, gate.path)
            executor.shutdown(wait=False)
            gate.open()
            executor.shutdown()
            with pytest.raises(BrokenProcessPool):
                dying.result(PATIENCE)


def test_what_cannot_be_pickled_does_not_hold_a_shutdown_up(method: str) -> None:
    with executor_for(method, 2) as executor:
        executor.submit(identity, 42).result(PATIENCE)
        future = executor.submit(identity, work.RaisesWhenDumped())
        executor.shutdown(wait=False)
        assert future.exception(PATIENCE) is not None


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (work.RaisesWhenDumped, Exception),
        (work.ExitsWhenDumped, SystemExit),
        (work.KillsWhenDumped, BrokenProcessPool),
    ],
)
def test_faults_of_a_result(method: str, cls: type[object], kind: type[BaseException]) -> None:
    with executor_for(method, 2) as executor:
        assert isinstance(executor.submit(work.make, cls).exception(PATIENCE), kind)


def test_cancelled_futures_and_the_rest_at_shutdown(method: str, tmp_path: Path) -> None:
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        marks = [str(tmp_path / f"mark{number}") for number in range(2)]
        running = [executor.submit(touch_and_pass_gate, mark, gate.path, mark) for mark in marks]
        pending = [executor.submit(identity, number) for number in range(20)]
        for mark in marks:
            await_file(mark)
        pending[-1].add_done_callback(lambda _: gate.open())
        executor.shutdown(cancel_futures=True)
        assert [future.result(0) for future in running] == marks
        assert all(future.cancelled() for future in pending)


def test_many_submissions_do_not_fill_a_wake_up_pipe(tmp_path: Path) -> None:
    # Issue 105829 there: the thread is busy, every submission writes a byte, nobody reads them.
    with executor_for("fork", 1) as executor, Gate(tmp_path) as gate:
        busy, proceed = threading.Event(), threading.Event()

        def stall(future: StandardFuture[Optional[int]]) -> None:
            busy.set()
            proceed.wait(PATIENCE)

        # Held until the callback is registered: it must run on the executor's thread.
        executor.submit(pass_gate, gate.path, 1).add_done_callback(stall)
        gate.open()
        try:
            assert busy.wait(PATIENCE)
            # A pipe holds 65,536 bytes.
            futures = [executor.submit(identity, None) for _ in range(70_000)]
            deadline = time.monotonic() + PATIENCE
            # The first has the slot that is free: it has begun.
            for future in futures[1:]:
                assert future.cancel()
                assert time.monotonic() < deadline, "a cancellation costs more, the more is pending"
        finally:
            proceed.set()


def test_an_interrupted_wait_leaves_everything_in_order(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    def interrupt(signum: int, frame: Optional[FrameType]) -> None:
        raise KeyboardInterrupt

    with executor_for("fork", 1) as executor, Gate(tmp_path) as gate:
        future = executor.submit(touch_and_pass_gate, mark, gate.path, "value")
        await_file(mark)
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                future.result(PATIENCE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        gate.open()
        assert future.result(PATIENCE) == "value"
