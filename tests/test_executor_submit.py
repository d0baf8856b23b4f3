"""JobserverExecutor.submit: the life of a Future, and what arrives on it."""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import logging
import operator
import os
import threading
import traceback
from concurrent.futures import Future as StandardFuture
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, NoReturn

import pytest

from jobserver import LostResult, forks
from jobserver.poller import KernelPoller
from tests import executor_work as work
from tests.executor_help import executor_for
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    blob,
    echo,
    getpid,
    identity,
    pass_gate,
    raise_value_error,
    sys_exit,
    touch,
    touch_and_pass_gate,
)

BIG = 8 << 20  # bytes; far more than any pipe holds


def whole_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_a_future_is_pending_then_running_then_finished(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        first = executor.submit(touch_and_pass_gate, mark, gate.path, "first")
        second = executor.submit(identity, "second")
        assert isinstance(first, concurrent.futures.Future)
        await_file(mark)
        assert first.running()
        assert not first.done()
        assert not second.running()
        assert not second.done()
        gate.open()
        assert first.result(PATIENCE) == "first"
        assert second.result(PATIENCE) == "second"
        for future in (first, second):
            assert future.done()
            assert not future.running()
            assert not future.cancelled()
            assert future.exception() is None


def test_no_more_run_at_once_than_there_are_slots(method: str, tmp_path: Path) -> None:
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        marks = [str(tmp_path / f"mark{number}") for number in range(4)]
        futures = [executor.submit(touch_and_pass_gate, mark, gate.path) for mark in marks]
        for mark in marks[:2]:
            await_file(mark)
        assert [future.running() for future in futures] == [True, True, False, False]
        gate.open()
        concurrent.futures.wait(futures, PATIENCE)
        assert all(os.path.exists(mark) for mark in marks)


def test_work_begins_in_the_order_of_submission(method: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with executor_for(method, 1) as executor:
        futures = [executor.submit(work.append, str(log), str(number)) for number in range(6)]
        concurrent.futures.wait(futures, PATIENCE)
    assert log.read_text() == "012345"


def test_cancel_prunes_pending_work(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    log = tmp_path / "log"
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        running = executor.submit(touch_and_pass_gate, mark, gate.path, "ran")
        pending = [executor.submit(work.append, str(log), str(number)) for number in range(6)]
        await_file(mark)
        for future in pending[1::2]:
            assert future.cancel()
            assert future.cancelled()
        assert not running.cancel()
        gate.open()
        every: list[StandardFuture[Any]] = [running, *pending]
        assert not concurrent.futures.wait(every, PATIENCE).not_done
        assert running.result() == "ran"
        for future in pending[1::2]:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result()
        assert not pending[0].cancel()
    assert log.read_text() == "024"


def test_a_callback_sees_the_cancelled_future(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    seen: list[StandardFuture[object]] = []
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        executor.submit(touch_and_pass_gate, mark, gate.path)
        pending: StandardFuture[object] = executor.submit(identity, None)
        pending.add_done_callback(seen.append)
        await_file(mark)
        assert pending.cancel()
        assert seen == [pending]


def test_wait_for_the_first_completed(method: str, tmp_path: Path) -> None:
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        held = executor.submit(pass_gate, gate.path)
        quick = executor.submit(identity, None)
        done, not_done = concurrent.futures.wait(
            [held, quick], PATIENCE, return_when=concurrent.futures.FIRST_COMPLETED
        )
        assert done == {quick}
        assert not_done == {held}


def test_wait_for_the_first_exception(method: str, tmp_path: Path) -> None:
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        held = executor.submit(pass_gate, gate.path)
        quick = executor.submit(identity, None)
        failing = executor.submit(raise_value_error, "first")
        every: list[StandardFuture[Any]] = [held, quick, failing]
        done, not_done = concurrent.futures.wait(
            every, PATIENCE, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        assert failing in done
        assert not_done == {held}


def test_as_completed_yields_each_once(method: str) -> None:
    with executor_for(method) as executor:
        futures = [executor.submit(identity, number) for number in range(5)]
        ready = concurrent.futures.as_completed([*futures, *futures], timeout=PATIENCE)
        assert sorted(future.result() for future in ready) == [0, 1, 2, 3, 4]


def test_timeouts(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        futures = [executor.submit(pass_gate, gate.path) for _ in range(2)]
        for future in futures:
            with pytest.raises(concurrent.futures.TimeoutError):
                future.result(timeout=0.02)
            with pytest.raises(concurrent.futures.TimeoutError):
                future.exception(timeout=0)
        assert concurrent.futures.wait(futures, timeout=0.02).done == set()
        with pytest.raises(concurrent.futures.TimeoutError, match=r"2 \(of 2\) futures unfinished"):
            list(concurrent.futures.as_completed(futures, timeout=0.02))
        gate.open()
        assert concurrent.futures.wait(futures, timeout=PATIENCE).done == set(futures)


def test_callbacks_get_the_future_in_order_of_registration(method: str, tmp_path: Path) -> None:
    seen: list[tuple[str, StandardFuture[int]]] = []
    finished = threading.Event()
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        executor.submit(pass_gate, gate.path)
        future = executor.submit(add, 1, 2)
        future.add_done_callback(lambda each: seen.append(("first", each)))
        future.add_done_callback(lambda each: seen.append(("second", each)))
        future.add_done_callback(lambda each: finished.set())
        assert not seen
        gate.open()
        assert finished.wait(PATIENCE)
        future.add_done_callback(lambda each: seen.append(("late", each)))
    assert seen == [("first", future), ("second", future), ("late", future)]


def test_a_callback_that_raises_is_logged_and_harms_nobody(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(future: StandardFuture[int]) -> None:
        raise ValueError("in the callback")

    finished = threading.Event()
    with executor_for(method, 1) as executor:
        future = executor.submit(add, 1, 2)
        future.add_done_callback(fail)
        future.add_done_callback(lambda each: finished.set())
        assert finished.wait(PATIENCE)
        assert executor.submit(add, 3, 4).result(PATIENCE) == 7
    [record] = [each for each in caplog.records if each.levelno > logging.DEBUG]
    assert record.name == "concurrent.futures"
    assert "in the callback" in caplog.text


@pytest.mark.parametrize("argument", [1, threading.Lock()], ids=["done", "not picklable"])
def test_a_callback_that_exits_costs_no_other_future(
    method: str, argument: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Gate(tmp_path) as gate, executor_for(method, 1) as executor:
        executor.submit(pass_gate, gate.path)
        executor.submit(identity, argument).add_done_callback(sys_exit)
        other = executor.submit(add, 1, 2)
        gate.open()
        assert other.result(PATIENCE) == 3
        assert executor.submit(add, 3, 4).result(PATIENCE) == 7
    [record] = [each for each in caplog.records if each.levelno > logging.DEBUG]
    assert record.name == "jobserver"
    assert "SystemExit" in caplog.text


def test_a_callback_that_exits_while_it_breaks_costs_no_other_future(
    method: str, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        initargs = (gate.path,)
        with executor_for(method, 1, initializer=work.fail_behind, initargs=initargs) as executor:
            futures = [executor.submit(identity, number) for number in range(3)]
            for future in futures:
                future.add_done_callback(sys_exit)
            gate.open()
            for future in futures:
                assert isinstance(future.exception(PATIENCE), BrokenProcessPool)


def test_a_callback_can_submit_with_one_slot(method: str) -> None:
    values: list[int] = []
    finished = threading.Event()
    with executor_for(method, 1) as executor:

        def go_on(future: StandardFuture[int]) -> None:
            values.append(future.result())
            if values[-1] == 4:
                finished.set()
            else:
                executor.submit(add, values[-1], 1).add_done_callback(go_on)

        executor.submit(add, 0, 1).add_done_callback(go_on)
        assert finished.wait(PATIENCE)
    assert values == [1, 2, 3, 4]


def test_submit_from_many_threads(method: str) -> None:
    results: list[int] = []
    with executor_for(method) as executor:

        def submit_some(start: int) -> None:
            futures = [executor.submit(add, start, number) for number in range(3)]
            results.extend(future.result(PATIENCE) for future in futures)

        threads = [threading.Thread(target=submit_some, args=(10 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(results) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_every_name_of_a_keyword_reaches_the_function(method: str) -> None:
    names = ("self", "fn", "args", "kwargs", "timeout", "consume", "work", "future", "executor")
    kwargs: dict[str, object] = dict(zip(names, range(len(names))))
    with executor_for(method, 1) as executor:
        assert executor.submit(echo, 1, "two", **kwargs).result(PATIENCE) == ((1, "two"), kwargs)


def test_any_picklable_callable_is_work(method: str) -> None:
    callables: list[Callable[[], object]] = [
        functools.partial(pow, 2, 8),
        "text".upper,
        work.Traveller,
        functools.partial(operator.methodcaller("split"), "a b"),
    ]
    with executor_for(method) as executor:
        first, second, third, fourth = [executor.submit(each) for each in callables]
        assert first.result(PATIENCE) == 256
        assert second.result(PATIENCE) == "TEXT"
        assert isinstance(third.result(PATIENCE), work.Traveller)
        assert fourth.result(PATIENCE) == ["a", "b"]


def test_work_of_any_size_goes_and_comes(method: str) -> None:
    with executor_for(method, 1) as executor:
        unread = executor.submit(blob, BIG)
        assert executor.submit(len, b"x" * BIG).result(PATIENCE) == BIG
        assert len(unread.result(PATIENCE)) == BIG


def test_an_exception_brings_the_worker_s_traceback(method: str) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(raise_value_error, "in the work").exception(PATIENCE)
    assert type(error) is ValueError
    assert error.args == ("in the work",)
    assert error.__cause__ is not None
    cause = str(error.__cause__)
    assert "Traceback (most recent call last)" in cause
    assert "in raise_value_error" in cause
    assert "ValueError: in the work" in cause
    assert cause in whole_text(error)


def test_the_causes_of_an_exception_are_in_the_text(method: str) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(work.raise_with_cause, "fault").exception(PATIENCE)
    assert type(error) is KeyError
    text = str(error.__cause__)
    assert "the first fault" in text
    assert "direct cause" in text
    assert "the second fault" in text


def test_an_exception_of_a_user_arrives_whole_and_again(method: str) -> None:
    with executor_for(method, 1) as executor:
        future = executor.submit(work.raise_detailed, 17)
        for _ in range(2):
            with pytest.raises(work.Detailed) as caught:
                future.result(PATIENCE)
            assert caught.value.code == 17
            assert "in raise_detailed" in str(caught.value.__cause__)


def test_an_exception_returned_is_a_value(method: str) -> None:
    with executor_for(method, 1) as executor:
        value = executor.submit(identity, ValueError("no failure")).result(PATIENCE)
    assert type(value) is ValueError
    assert value.args == ("no failure",)


@pytest.mark.parametrize(
    ("fn", "args", "shown"),
    [
        (sys_exit, (0,), "SystemExit"),
        (sys_exit, (3,), "SystemExit: 3"),
        (work.raise_keyboard_interrupt, (), "KeyboardInterrupt"),
    ],
)
def test_what_ends_a_process_arrives_as_itself(
    method: str, fn: Callable[..., object], args: tuple[object, ...], shown: str
) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(fn, *args).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert isinstance(error, (SystemExit, KeyboardInterrupt))
    assert error.__cause__ is not None
    assert shown in str(error.__cause__)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (lambda: None, ()),
        lambda: (identity, (lambda: None,)),
        lambda: (identity, (threading.Lock(),)),
        lambda: (identity, (work.RaisesWhenDumped(),)),
    ],
    ids=["function", "argument", "lock", "fault"],
)
def test_what_cannot_be_pickled_is_on_the_future(
    method: str, make: Callable[[], tuple[Callable[..., object], tuple[object, ...]]]
) -> None:
    fn, args = make()
    with executor_for(method, 1) as executor:
        error = executor.submit(fn, *args).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert isinstance(error, Exception)
    assert error.__cause__ is not None
    # A hint: as a note where there are notes, else in the text of the cause.
    assert "not picklable" in whole_text(error)
    assert "not picklable" not in str(error)


def test_an_argument_that_exits_while_it_is_dumped_costs_its_own_future(method: str) -> None:
    # Pickled by the submitter or on its behalf: the exit must end neither of them.
    with executor_for(method, 1) as executor:
        error: BaseException | None
        try:
            error = executor.submit(identity, work.ExitsWhenDumped()).exception(PATIENCE)
        except SystemExit as raised:
            error = raised
        assert error is not None
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (work.RaisesWhenLoaded, False),
        (work.ExitsWhenLoaded, False),
        (work.KillsWhenLoaded, True),
    ],
)
def test_an_argument_that_fails_to_load_costs_its_own_future(
    method: str, tmp_path: Path, fault: type[object], lost: bool
) -> None:
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        beside = executor.submit(pass_gate, gate.path, "beside")
        failing = executor.submit(identity, fault())
        behind = executor.submit(add, 1, 2)
        error = failing.exception(PATIENCE)
        assert behind.result(PATIENCE) == 3
        assert not beside.done()
        gate.open()
        assert beside.result(PATIENCE) == "beside"
    assert isinstance(error, LostResult) == lost
    if fault is work.RaisesWhenLoaded:
        assert error is not None
        assert "a fault while loading" in whole_text(error)
    elif not lost:
        assert type(error) is SystemExit


@pytest.mark.parametrize("fault", [work.RaisesWhenDumped, work.ExitsWhenDumped])
def test_a_result_that_cannot_be_dumped(method: str, fault: type[object]) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(work.make, fault).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert error is not None
    if fault is work.RaisesWhenDumped:
        assert repr(error) == repr(ValueError("a fault while dumping"))
        assert "not picklable" in whole_text(error)
        assert "RaisesWhenDumped" in whole_text(error)


@pytest.mark.parametrize("fault", [work.RaisesWhenLoaded, work.ExitsWhenLoaded])
def test_a_result_that_cannot_be_loaded(method: str, fault: type[object]) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(work.make, fault).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert type(error) is RuntimeError
    assert "not reconstructable" in str(error)


def test_a_cancelled_future_wakes_who_waits_for_it(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        executor.submit(touch_and_pass_gate, mark, gate.path)
        pending = executor.submit(identity, None)
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                pending.result(PATIENCE)
            except concurrent.futures.CancelledError as error:
                outcome.append(error)

        await_file(mark)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert pending.cancel()
        waiter.join(PATIENCE)
        assert len(outcome) == 1


def test_work_runs_in_other_processes(method: str) -> None:
    with executor_for(method, 1) as executor:
        assert executor.submit(getpid).result(PATIENCE) != os.getpid()


def short_of_descriptors(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_what_tells_the_thread_of_work_is_opened_first(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executor_for(method, 1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(KernelPoller, "wake", short_of_descriptors)
            with pytest.raises(OSError, match="open files"):
                executor.submit(add, 1, 2)
        assert "pending=0" in repr(executor)
        assert executor.submit(add, 3, 4).result(PATIENCE) == 7
        with monkeypatch.context() as patch:
            patch.setattr(forks, "pipe", short_of_descriptors)
            for number in range(20):
                assert executor.submit(identity, number).result(PATIENCE) == number
            executor.shutdown()


def test_submit_needs_a_function(method: str) -> None:
    with executor_for(method, 1) as executor:
        with pytest.raises(TypeError):
            executor.submit()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            executor.submit(fn=identity)  # type: ignore[call-arg]


def test_much_pending_work_is_accepted_and_cancelled(method: str, tmp_path: Path) -> None:
    mark, never = str(tmp_path / "mark"), tmp_path / "never"
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        held = executor.submit(touch_and_pass_gate, mark, gate.path)
        await_file(mark)
        futures = [executor.submit(touch, str(never)) for _ in range(1000)]
        assert not held.done()
        assert all(future.cancel() for future in futures)
    assert not never.exists()
