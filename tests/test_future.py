"""What a Future answers, how long it takes its time, and what its result may be."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import os
import pickle
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver, LostResult, wire
from jobserver.poller import KernelPoller
from tests import mischief
from tests.processes import await_state, check_slots, pid_of
from tests.work import PATIENCE, Gate, add, identity, pass_gate, raise_value_error, touch

Ask = Callable[..., object]

# Longer than any answer takes on a busy machine, and shorter than a wait that went wrong.
SOON = PATIENCE / 3


def ask_done(future: Future[Any], timeout: object) -> object:
    return future.done(timeout)  # type: ignore[arg-type]  # wrong ones are tried on purpose


def ask_wait(future: Future[Any], timeout: object) -> object:
    return future.wait(timeout)  # type: ignore[arg-type]


def ask_result(future: Future[Any], timeout: object) -> object:
    return future.result(timeout)  # type: ignore[arg-type]


asks = pytest.mark.parametrize("ask", [ask_done, ask_wait, ask_result])


def test_done_and_wait_and_result_before_and_after(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        assert future.done() is False
        assert future.done(timeout=0.01) is False
        assert future.wait(0) is False
        assert future.wait(timeout=0.01) is False
        with pytest.raises(Blocked):
            future.result(0)
        with pytest.raises(Blocked):
            future.result(timeout=0.01)
        gate.open()
        assert future.wait() is True
        assert future.wait(0) is True
        assert future.done() is True
        assert future.done(timeout=None) is True
        assert future.result() == "value"
        assert future.result(timeout=0) == "value"


@pytest.mark.parametrize("first", [ask_done, ask_wait, ask_result])
def test_each_of_them_waits_for_the_end(method: str, tmp_path: Path, first: Ask) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        futures = [js.submit(pass_gate, args=(gate.path, True))]
        gate.open()
        assert first(futures[0], PATIENCE) is True
        futures.append(js.submit(pass_gate, args=(gate.path, True)))
        assert first(futures[1], None) is True


@asks
def test_a_timeout_is_kept(method: str, tmp_path: Path, ask: Ask) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        for timeout in (0, 0.2, 1):
            start = time.monotonic()
            if ask is ask_result:
                with pytest.raises(Blocked):
                    ask(future, timeout)
            else:
                assert ask(future, timeout) is False
            assert timeout <= time.monotonic() - start < timeout + SOON
        gate.open()
        assert future.wait(PATIENCE)


@asks
@pytest.mark.parametrize("over", [False, True])
def test_a_wrong_timeout_is_refused(tmp_path: Path, ask: Ask, over: bool) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        if over:
            gate.open()
            assert future.wait(PATIENCE)
        kinds: list[object] = [True, False, "1", b"1", [], 1j]
        for wrong in kinds:
            with pytest.raises(TypeError, match=f"timeout.*{type(wrong).__name__}"):
                ask(future, wrong)
        for number in (-1, -0.001, math.inf, -math.inf, math.nan):
            with pytest.raises(ValueError, match=f"timeout.*{number!r}"):
                ask(future, number)
        gate.open()
        assert future.wait(PATIENCE)


def test_futures_finish_in_any_order(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path, "one") as one, Gate(tmp_path, "two") as two, Jobserver(method, 2) as js:
        first = js.submit(pass_gate, args=(one.path, 1))
        second = js.submit(pass_gate, args=(two.path, 2))
        two.open()
        assert second.result(PATIENCE) == 2
        assert not first.done()
        one.open()
        assert first.result(PATIENCE) == 1


def test_many_threads_wait_for_the_same(method: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(12) as pool, Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        ready = threading.Barrier(13)

        def after_the_others(number: int) -> object:
            ready.wait(PATIENCE)
            return (ask_done, ask_wait, ask_result)[number % 3](future, PATIENCE)

        answers = [pool.submit(after_the_others, number) for number in range(12)]
        ready.wait(PATIENCE)
        gate.open()
        assert [answer.result(PATIENCE) for answer in answers] == [True, True, "value"] * 4


def test_many_threads_wait_for_the_same_loss_or_error(method: str) -> None:
    with ThreadPoolExecutor(8) as pool, Jobserver(method, 2) as js:
        failing = js.submit(raise_value_error, args=("told",))
        dying = js.submit(mischief.strike, args=("crash",))

        def both(_number: int) -> tuple[object, object]:
            with pytest.raises(ValueError, match="told") as error:
                failing.result(PATIENCE)
            with pytest.raises(LostResult) as loss:
                dying.result(PATIENCE)
            return error.value.args, loss.value.exitcode

        assert list(pool.map(both, range(8))) == [(("told",), -9)] * 8


class Loaded:
    """Takes its time to be unpickled, and counts how often that was."""

    times: ClassVar[list[float]] = []

    def __reduce__(self) -> tuple[Callable[[], Loaded], tuple[()]]:
        return load_slowly, ()


def load_slowly() -> Loaded:
    Loaded.times.append(time.monotonic())
    time.sleep(0.2)
    return Loaded()


def test_many_threads_load_a_result_once(method: str) -> None:
    Loaded.times.clear()
    with Jobserver(method, 1) as js:
        future = js(Loaded)
        assert future.wait(PATIENCE)
        values: list[object] = []
        threads = [
            threading.Thread(target=lambda: values.append(future.result()), daemon=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(values) == 4
    assert len(set(map(id, values))) == 1
    assert len(Loaded.times) == 1


def test_a_result_once_loaded_is_kept_once(method: str) -> None:
    """The bytes that it came in are not kept as well."""
    others = frames()
    with Jobserver(method, 1) as js:
        futures: list[Future[Any]] = [js(identity, "value"), js(raise_value_error, "as told")]
        for future in futures:
            assert future.wait(PATIENCE)
        assert frames() == others + 2
        assert futures[0].result() == "value"
        with pytest.raises(ValueError, match="as told"):
            futures[1].result()
        assert frames() == others


def frames() -> int:
    gc.collect()
    return sum(isinstance(each, wire.Frame) for each in gc.get_objects())


def test_each_thread_waits_for_its_own(method: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool, Jobserver(method, 4) as js:
        gates = [Gate(tmp_path, f"gate{number}") for number in range(4)]
        try:
            futures = [
                js.submit(pass_gate, args=(gate.path, number)) for number, gate in enumerate(gates)
            ]
            answers = [pool.submit(future.result, PATIENCE) for future in futures]
            # The last first: whoever comes to its end is not held up by those who wait longer.
            for gate, future, answer in list(zip(gates, futures, answers))[::-1]:
                assert not answer.done()
                gate.open()
                assert answer.result(PATIENCE) == futures.index(future)
        finally:
            for gate in gates:
                gate.__exit__(None, None, None)


def test_threads_cross_many_futures(method: str) -> None:
    with ThreadPoolExecutor(6) as pool, Jobserver(method, 4) as js:
        futures = [js.submit(add, args=(number, 1)) for number in range(12)]

        def everything(turn: int) -> list[int]:
            turned = futures[turn:] + futures[:turn]
            return sorted(future.result(PATIENCE) for future in turned)

        assert list(pool.map(everything, range(6))) == [list(range(1, 13))] * 6


@pytest.mark.parametrize("before", [False, True])
def test_asked_while_another_thread_closes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """The last wait closes what a look in passing of another thread goes through."""
    with Gate(tmp_path) as gate:
        with Jobserver(method, 1) as js:
            future = js.submit(pass_gate, args=(gate.path, "value"))
        gate.open()
        await_state(pid_of(future), "Z")
        poll = KernelPoller.poll

        def beside_another(poller: KernelPoller, timeout: Optional[float]) -> Iterable[object]:
            monkeypatch.undo()
            found = [] if before else poll(poller, timeout)
            waiter = threading.Thread(target=future.wait)
            waiter.start()
            waiter.join(PATIENCE)
            return poll(poller, timeout) if before else found

        monkeypatch.setattr(KernelPoller, "poll", beside_another)
        assert future.done()
        assert future.result(0) == "value"


def test_time_spent_behind_another_thread_counts(method: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        other = pool.submit(future.wait, PATIENCE)
        # Nothing tells when the other has come to wait; by the later rounds it has.
        for timeout in (0, 0.1, 0.2, 0.3):
            start = time.monotonic()
            assert future.wait(timeout) is False
            assert future.done(timeout) is False
            with pytest.raises(Blocked):
                future.result(timeout)
            assert 3 * timeout <= time.monotonic() - start < SOON
        assert not other.done()
        gate.open()
        assert other.result(PATIENCE) is True
        assert future.result(0) == "value"


def test_submission_goes_on_while_a_thread_waits(method: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        held = js.submit(pass_gate, args=(gate.path, "value"))
        waiter = pool.submit(held.result, PATIENCE)
        for number in range(5):
            assert js.submit(add, args=(number, 1)).result(SOON) == number + 1
        assert not waiter.done()
        gate.open()
        assert waiter.result(PATIENCE) == "value"


VALUES = [None, False, 0, "", b"", "text", 2**200, [1, [2, {"three": {4.0}}]], ValueError]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_arrives(method: str, value: object) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(identity, args=(value,))
        assert future.result(PATIENCE) == value
        assert future.result() == value


@pytest.mark.parametrize(
    "error",
    [ValueError("v"), KeyboardInterrupt(), SystemExit(3), Blocked(), CallbackRaised(4)],
    ids=repr,
)
def test_a_returned_exception_is_a_value(method: str, error: BaseException) -> None:
    with Jobserver(method, 1) as js:
        value = js.submit(identity, args=(error,)).result(PATIENCE)
        assert type(value) is type(error)
        assert value.args == error.args


def test_an_exception_is_raised_again_and_again(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(raise_value_error, args=("told",))
        assert future.wait(PATIENCE) is True
        for _ in range(3):
            with pytest.raises(ValueError, match=r"^told$") as caught:
                future.result()
            shown = str(caught.value.__cause__)
            assert "Traceback (most recent call last)" in shown
            assert "in raise_value_error" in shown
            assert shown.rstrip().rstrip('"').rstrip().endswith("ValueError: told")


def test_an_exception_keeps_its_attributes(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.raise_detailed, args=(7, "look behind"))
        with pytest.raises(mischief.DetailedError) as caught:
            future.result(PATIENCE)
        assert caught.value.args == (7,)
        assert caught.value.hint == "look behind"


@pytest.mark.parametrize(
    ("work", "between"),
    [
        (mischief.raise_from, "direct cause of the following exception"),
        (mischief.raise_while, "During handling of the above exception"),
    ],
)
def test_the_cause_shows_the_causes(
    method: str, work: Callable[[str, str], None], between: str
) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(work, args=("first", "second"))
        with pytest.raises(ValueError, match="second") as caught:
            future.result(PATIENCE)
        shown = str(caught.value.__cause__)
        assert "KeyError: 'first'" in shown
        assert between in shown
        assert shown.index("KeyError: 'first'") < shown.index(between)
        assert shown.index(between) < shown.index("ValueError: second")
        # It is what somebody sees who lets the exception pass.
        whole = traceback.format_exception(type(caught.value), caught.value, None)
        assert between in "".join(whole)


def test_it_cannot_be_copied_or_pickled(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        future = js.submit(pass_gate, args=(gate.path, 1))
        for _ in range(2):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError):
                    attempt(future)
            gate.open()
            assert future.result(PATIENCE) == 1


def test_it_is_made_by_submissions_only() -> None:
    with pytest.raises(TypeError):
        Future()  # type: ignore[call-arg]


def test_it_is_generic() -> None:
    alias = Future[int]
    assert alias is not None


def test_repr_tells_its_state(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        mark = tmp_path / "pid"
        future = js.submit(mischief.note_own_pid_and_pass, args=(str(mark), gate.path))
        pid = pid_of(future)
        assert repr(future) == f"Future(running, callbacks=0, pid={pid})"
        future.when_done(int)
        future.when_done(int)
        assert repr(future) == f"Future(running, callbacks=2, pid={pid})"
        gate.open()
        assert future.wait(PATIENCE)
        assert repr(future) == "Future(done, callbacks=0, pid=None)"
        assert mark.read_text() == str(pid)


def test_dropping_it_costs_no_slot(method: str, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(5)]
    with Jobserver(method, 1) as js:
        for mark in marks:
            # Whether the warning comes depends on who else still knows the Future.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                js.submit(touch, args=(str(mark),), timeout=PATIENCE)
                gc.collect()
        check_slots(js, 1, tmp_path / "slots")
    assert all(mark.exists() for mark in marks)


def drop(kept: list[object]) -> None:
    kept.clear()
    gc.collect()


def test_dropping_it_while_running_warns(method: str, tmp_path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    with Gate(tmp_path) as gate:
        js = Jobserver(method, 1)
        future = js.submit(pass_gate, args=(gate.path,))
        pid = pid_of(future)
        kept: list[object] = [future]
        del future
        with pytest.warns(
            ResourceWarning, match=rf"Dropping Future\(running.* pid={pid}"
        ) as caught:
            drop(kept)
        (warning,) = caught
        # Whoever dropped it, and (with tracemalloc) whoever made it.
        line = drop.__code__.co_firstlineno + 1
        assert (warning.filename, warning.lineno) == (__file__, line)
        assert isinstance(warning.source, Future)
        del warning, caught
        kept.append(js)
        del js
        with pytest.warns(ResourceWarning, match="Finalizing Jobserver"):
            drop(kept)
    # The worker goes on, and whoever submits once its end is known cleans up after it.
    await_state(pid, "Z")
    deadline = time.monotonic() + PATIENCE
    while len(os.listdir("/proc/self/fd")) > len(descriptors):
        assert time.monotonic() < deadline, "nobody cleaned up"
        with Jobserver(method, 1) as js:
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3


def test_dropping_it_when_done_is_silent(method: str) -> None:
    js = Jobserver(method, 1)
    future = js.submit(add, args=(1, 2))
    assert future.result(PATIENCE) == 3
    del future, js
    gc.collect()


@pytest.mark.usefixtures("no_collections")
def test_a_future_that_has_raised_is_freed_when_it_is_dropped(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js(raise_value_error, "as told")
        reference = weakref.ref(future)
        with contextlib.suppress(ValueError):
            future.result()
        del future
        assert reference() is None


class Told(Exception):
    pass


def tell() -> None:
    raise Told


@pytest.mark.usefixtures("no_collections")
def test_an_exception_is_freed_with_its_future(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js(tell)
        try:
            future.result()
        except Told as error:
            reference = weakref.ref(error)
        assert reference() is not None
        del future
        assert reference() is None
