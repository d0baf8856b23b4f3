"""Callbacks: in order, once, after the slot is back, and what their exceptions do."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import CallbackRaised, Future, Jobserver
from tests.mischief import Abort
from tests.processes import check_slots
from tests.work import PATIENCE, Gate, add, die, pass_gate, raise_value_error, touch

DEEP = 5_000

Observe = Callable[[Jobserver, "Future[Any]"], object]


def by_done(_js: Jobserver, future: Future[Any]) -> object:
    return future.done(PATIENCE)


def by_wait(_js: Jobserver, future: Future[Any]) -> object:
    return future.wait(PATIENCE)


def by_result(_js: Jobserver, future: Future[Any]) -> object:
    return future.result(PATIENCE)


def by_submit(js: Jobserver, _future: Future[Any]) -> object:
    # With one slot it has to find the one that the finished Future holds.
    return js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE)


def by_reclaim(js: Jobserver, _future: Future[Any]) -> object:
    # It does not wait: it is asked until the worker has ended.
    deadline = time.monotonic() + PATIENCE
    while "tracked=0" not in repr(js) and time.monotonic() < deadline:
        js.reclaim_resources()
        time.sleep(0.002)
    js.reclaim_resources()
    return None


observers = pytest.mark.parametrize("observe", [by_done, by_wait, by_result, by_submit, by_reclaim])


def fail(text: str) -> None:
    raise ArithmeticError(text)


@observers
def test_they_run_in_order_with_their_own_arguments(
    method: str, tmp_path: Path, observe: Observe
) -> None:
    seen: list[object] = []

    def record(*args: object, **kwargs: object) -> None:
        seen.append((args, kwargs))

    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        assert future.when_done(record) == 0
        assert future.when_done(record, 1, [2]) == 1
        assert future.when_done(record, self=3, fn=4, args=5, kwargs=6, timeout=7) == 2
        assert future.when_done(record, future, js=js) == 3
        assert not future.done()
        js.reclaim_resources()
        assert seen == []
        gate.open()
        observe(js, future)
        expected: list[object] = [
            ((), {}),
            ((1, [2]), {}),
            ((), {"self": 3, "fn": 4, "args": 5, "kwargs": 6, "timeout": 7}),
            ((future,), {"js": js}),
        ]
        assert seen == expected
        # Once for all.
        future.done()
        future.wait()
        future.result()
        js.reclaim_resources()
        assert seen == expected
        # When it is done, at once.
        assert future.when_done(record, "late") == 4
        assert seen[4:] == [(("late",), {})]


def test_they_run_whatever_became_of_the_work(method: str) -> None:
    seen: list[str] = []
    with Jobserver(method, 2) as js:
        failing = js.submit(raise_value_error, args=("told",))
        failing.when_done(seen.append, "failed")
        dying = js.submit(die)
        dying.when_done(seen.append, "died")
        assert failing.wait(PATIENCE)
        assert dying.wait(PATIENCE)
    assert seen == ["failed", "died"]


def test_what_cannot_be_called_is_refused(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        with pytest.raises(TypeError, match="fn must be callable, not 'not callable'"):
            future.when_done("not callable")  # type: ignore[arg-type]
        assert future.when_done(int) == 0
        assert future.result(PATIENCE) == 3


@observers
def test_an_exception_surfaces_from_the_call_that_ran_it(
    method: str, tmp_path: Path, observe: Observe
) -> None:
    seen: list[str] = []
    mark = tmp_path / "submitted"
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        future.when_done(seen.append, "before")
        future.when_done(fail, "first")
        future.when_done(seen.append, "between")
        future.when_done(fail, "second")
        future.when_done(seen.append, "after")

        def observe_it() -> None:
            if observe is by_submit:
                js.submit(touch, args=(str(mark),), timeout=PATIENCE)
            else:
                observe(js, future)

        with pytest.raises(CallbackRaised) as caught:
            observe_it()
        assert seen == ["before"]
        assert caught.value.seqno == 1
        assert repr(caught.value) == str(caught.value) == "CallbackRaised(seqno=1)"
        assert isinstance(caught.value.__cause__, ArithmeticError)
        assert caught.value.__cause__.args == ("first",)
        with pytest.raises(CallbackRaised) as caught:
            future.done()
        assert seen == ["before", "between"]
        assert caught.value.seqno == 3
        assert str(caught.value.__cause__) == "second"
        assert future.result() == 3
        assert seen == ["before", "between", "after"]
        check_slots(js, 1, tmp_path / "slots")
    # The submission that ran into the callback's exception submitted nothing.
    assert not mark.exists()


def test_it_is_done_although_callbacks_are_left(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        for _ in range(3):
            future.when_done(fail, "again")
        with pytest.raises(CallbackRaised):
            future.wait(PATIENCE)
        assert repr(future) == "Future(done, callbacks=2, pid=None)"
        for seqno in (1, 2):
            with pytest.raises(CallbackRaised) as caught:
                future.done()
            assert caught.value.seqno == seqno
        assert future.result() == 3


def test_the_failed_work_is_told_after_the_failed_callback(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(raise_value_error, args=("told",))
        future.when_done(fail, "callback")
        with pytest.raises(CallbackRaised):
            future.result(PATIENCE)
        with pytest.raises(ValueError, match="told"):
            future.result(PATIENCE)


def test_an_exception_of_a_late_callback_surfaces(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        assert future.wait(PATIENCE)
        with pytest.raises(CallbackRaised) as caught:
            future.when_done(fail, "late")
        assert caught.value.seqno == 0
        assert str(caught.value.__cause__) == "late"
        assert future.when_done(int) == 1


def test_it_never_nests(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        # Held until all is registered: submitting the second may observe the end of the first.
        inner = js.submit(pass_gate, args=(gate.path, "inner"))
        outer = js.submit(pass_gate, args=(gate.path, "outer"))
        inner.when_done(fail, "original")
        outer.when_done(inner.result, PATIENCE)
        gate.open()
        with pytest.raises(CallbackRaised) as caught:
            outer.wait(PATIENCE)
        assert isinstance(caught.value.__cause__, ArithmeticError)
        assert str(caught.value.__cause__) == "original"
        assert outer.result(PATIENCE) == "outer"
        assert inner.result(PATIENCE) == "inner"


def test_it_never_nests_what_a_callback_passes_on(method: str) -> None:
    """As when a callback has a Jobserver of its own, whose callback raised."""

    def pass_on() -> None:
        raise CallbackRaised(7) from ArithmeticError("original")

    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        future.when_done(int)
        future.when_done(pass_on)
        with pytest.raises(CallbackRaised) as caught:
            future.wait(PATIENCE)
        assert isinstance(caught.value.__cause__, ArithmeticError)
        assert future.result(PATIENCE) == 3


@observers
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, Abort])
def test_a_base_exception_passes_raw(
    tmp_path: Path, observe: Observe, kind: type[BaseException]
) -> None:
    seen: list[str] = []

    def abort() -> None:
        seen.append("abort")
        raise kind("raw")

    with Jobserver("fork", 1) as js:
        future = js.submit(add, args=(1, 2))
        future.when_done(abort)
        future.when_done(seen.append, "after")
        with pytest.raises(kind, match="raw"):
            observe(js, future)
        assert seen == ["abort"]
        assert future.result(PATIENCE) == 3
        assert seen == ["abort", "after"]
        check_slots(js, 1, tmp_path / "slots")


@observers
def test_the_slot_is_back_before(method: str, observe: Observe) -> None:
    answers: list[Future[int]] = []
    with Jobserver(method, 1) as js:

        def submit_again() -> None:
            # No waiting: the slot of the Future whose callback this is must be there.
            answers.append(js.submit(add, args=(len(answers), 10), timeout=0))
            if len(answers) < 4:
                answers[-1].when_done(submit_again)

        future = js.submit(add, args=(0, 0))
        future.when_done(submit_again)
        observe(js, future)
        assert future.result(PATIENCE) == 0
        while len(answers) < 4:
            assert answers[-1].wait(PATIENCE)
        assert [answer.result(PATIENCE) for answer in answers] == [10, 11, 12, 13]


def test_the_future_is_done_within(method: str) -> None:
    seen: list[object] = []
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))

        def look() -> None:
            seen.extend([future.done(), future.wait(0), future.result(0), repr(future)[:12]])
            js.reclaim_resources()

        future.when_done(look)
        assert future.wait(PATIENCE)
        assert seen == [True, True, 3, "Future(done,"]


def test_one_can_submit_and_wait_within(method: str) -> None:
    seen: list[int] = []
    with Jobserver(method, 1) as js:

        def work_on(left: int) -> None:
            future = js.submit(add, args=(left, 0), timeout=PATIENCE)
            if left:
                future.when_done(work_on, left - 1)
            seen.append(future.result(PATIENCE))

        future = js.submit(add, args=(0, 0))
        future.when_done(work_on, 3)
        assert future.wait(PATIENCE)
    assert sorted(seen) == [0, 1, 2, 3]


def call_back(js: Jobserver) -> list[str]:
    seen: list[str] = []
    future = js.submit(add, args=(1, 2))
    future.when_done(seen.append, "called back")
    assert future.wait(PATIENCE)
    return seen


def test_work_that_is_submitted_within_has_callbacks_of_its_own(method: str) -> None:
    futures: list[Future[list[str]]] = []
    with Jobserver(method, 2) as js:
        future = js.submit(add, args=(0, 0))
        future.when_done(lambda: futures.append(js.submit(call_back, args=(js,))))
        assert future.wait(PATIENCE)
        assert futures[0].result(PATIENCE) == ["called back"]


def test_a_callback_that_registers_itself_goes_deep(method: str) -> None:
    numbers: list[int] = []
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))

        def again() -> None:
            if len(numbers) < DEEP:
                numbers.append(future.when_done(again))

        assert future.when_done(again) == 0
        assert future.result(PATIENCE) == 3
        assert numbers == list(range(1, DEEP + 1))
        # And once more, from a registration at which it is done already.
        numbers.clear()
        assert future.when_done(again) == DEEP + 1
        assert len(numbers) == DEEP
        assert repr(future) == "Future(done, callbacks=0, pid=None)"


def test_callbacks_of_two_futures_register_on_each_other(method: str) -> None:
    seen: list[int] = []
    with Jobserver(method, 2) as js:
        futures = [js.submit(add, args=(1, 2)) for _ in range(2)]

        def turn() -> None:
            seen.append(len(seen) % 2)
            if len(seen) < DEEP:
                futures[len(seen) % 2].when_done(turn)

        futures[0].when_done(turn)
        for future in futures:
            assert future.wait(PATIENCE)
        assert len(seen) == DEEP
        seen.clear()
        futures[0].when_done(turn)
        assert len(seen) == DEEP


def test_a_chain_of_futures_goes_deep() -> None:
    seen: list[int] = []
    with Jobserver("fork", 4) as js:
        futures = [js.submit(add, args=(number, 0)) for number in range(100)]

        def follow(number: int) -> None:
            seen.append(number)
            if number + 1 < len(futures):
                futures[number + 1].when_done(follow, number + 1)
                assert futures[number + 1].wait(PATIENCE)

        futures[0].when_done(follow, 0)
        for future in futures:
            assert future.wait(PATIENCE)
        assert seen == list(range(100))
        seen.clear()
        futures[0].when_done(follow, 0)
        assert seen == list(range(100))


def test_one_callback_may_register_many(method: str) -> None:
    seen: list[int] = []
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))

        def many() -> None:
            for number in range(DEEP):
                future.when_done(seen.append, number)

        future.when_done(many)
        assert future.wait(PATIENCE)
        assert seen == list(range(DEEP))


def test_order_of_registration_holds_within(method: str) -> None:
    """What a callback registers runs after what was registered before it ran."""
    seen: list[str] = []
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))

        def register() -> None:
            seen.append("register")
            future.when_done(seen.append, "registered")

        future.when_done(register)
        future.when_done(seen.append, "second")
        assert future.wait(PATIENCE)
    assert seen == ["register", "second", "registered"]


def test_they_run_on_the_thread_that_observes(method: str) -> None:
    seen: list[int] = []

    def record() -> None:
        seen.append(threading.get_ident())

    def observe(future: Future[int]) -> int:
        assert future.wait(PATIENCE)
        return threading.get_ident()

    with ThreadPoolExecutor(1) as pool, Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        future.when_done(record)
        there = pool.submit(observe, future).result(PATIENCE)
        assert seen == [there]
        future = js.submit(add, args=(1, 2))
        future.when_done(record)
        assert seen == [there]
        here = observe(future)
        assert seen == [there, here]
        assert here != there


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_many_observers_run_each_once_in_order(method: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def record(number: int) -> None:
        seen.append((number, threading.get_ident()))

    with ThreadPoolExecutor(8) as pool, Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        for number in range(500):
            future.when_done(record, number)
        answers = [pool.submit(future.result, PATIENCE) for _ in range(8)]
        gate.open()
        assert [answer.result(PATIENCE) for answer in answers] == ["value"] * 8
        assert future.wait(PATIENCE)
        assert [number for number, _ in seen] == list(range(500))
        assert len({thread for _, thread in seen}) == 1


def test_what_another_thread_left_to_one_that_fails_stays_due(method: str) -> None:
    """It met the Future while this thread ran its callbacks, of which one then raised."""
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool, Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))

        def let_others_in_and_fail() -> None:
            pool.submit(js.reclaim_resources).result(PATIENCE)
            raise ArithmeticError

        future.when_done(let_others_in_and_fail)
        future.when_done(seen.append, "after")
        with pytest.raises(CallbackRaised):
            future.wait(PATIENCE)
        assert seen == []
        js.reclaim_resources()
        assert seen == ["after"]


def test_registrations_from_many_threads_all_run(method: str, tmp_path: Path) -> None:
    """Some come before the end and some after; each gets a number of its own and runs once."""
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(4) as pool, Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))

        def register(thread: int) -> list[int]:
            numbers = [future.when_done(seen.append, (thread, turn)) for turn in range(300)]
            gate.open()
            assert future.wait(PATIENCE)
            return numbers + [
                future.when_done(seen.append, (thread, turn)) for turn in range(300, 500)
            ]

        numbers = [number for some in pool.map(register, range(4)) for number in some]
        assert future.wait(PATIENCE)
        assert sorted(numbers) == list(range(4 * 500))
        assert sorted(seen) == [(thread, turn) for thread in range(4) for turn in range(500)]


def test_a_slow_callback_holds_nobody_else_up(method: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool, Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        future.when_done(slow)
        runner = pool.submit(future.result, PATIENCE)
        try:
            assert entered.wait(PATIENCE)
            # It was done before its callback ran: whoever asks is told so.
            assert future.done(PATIENCE / 3) is True
            assert future.result(PATIENCE / 3) == 3
            assert js.submit(add, args=(3, 4), timeout=PATIENCE / 3).result(PATIENCE / 3) == 7
        finally:
            leave.set()
        assert runner.result(PATIENCE) == 3
