"""How many slots there are, who gets one, and what waiting for one costs."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import select
import signal
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import Blocked, Future, Jobserver, LostResult
from tests import errands
from tests.processes import await_blocked, await_state, check_slots, pid_of
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    blob,
    die,
    os_exit,
    pass_gate,
    raise_value_error,
    touch_and_pass_gate,
)

# Longer than an answer takes on a busy machine, and shorter than a wait that went wrong.
SOON = PATIENCE / 3


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


# The arguments


@pytest.mark.parametrize("slots", [True, False, 1.0, "2", b"2", [1], (1,), 1j, object(), int])
def test_slots_of_another_type_are_refused(slots: Any) -> None:
    before = descriptors()
    with pytest.raises(TypeError, match="slots") as caught:
        Jobserver("fork", slots)
    assert repr(slots) in str(caught.value) or type(slots).__name__ in str(caught.value)
    assert descriptors() == before


@pytest.mark.parametrize("slots", [0, -1, -(10**30)])
def test_slots_below_one_are_refused(slots: int) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match=rf"slots.*{slots}"):
        Jobserver("fork", slots)
    assert descriptors() == before


@pytest.mark.parametrize("slots", [select.PIPE_BUF + 1, 10**30])
def test_slots_above_the_atomic_write_are_refused_and_the_limit_named(slots: int) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match="slots") as caught:
        Jobserver("fork", slots)
    assert str(select.PIPE_BUF) in str(caught.value)
    assert descriptors() == before


def test_as_many_slots_as_the_limit() -> None:
    js = Jobserver("fork", select.PIPE_BUF)
    assert js(add, 1, 2).result() == 3


def test_one_slot_of_an_int_subclass(tmp_path: Path) -> None:
    number = signal.Signals(2)  # an IntEnum: an int like any other
    check_slots(Jobserver("fork", number), 2, tmp_path / "check")


@pytest.mark.parametrize("context", ["nonsense", "FORK"])
def test_unknown_start_method_leaves_nothing_behind(context: str) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match=re.escape(context)):
        Jobserver(context)
    assert descriptors() == before


@pytest.mark.parametrize("context", [3, True, b"fork", object(), ["fork"]])
def test_context_of_another_type_leaves_nothing_behind(context: Any) -> None:
    before = descriptors()
    with pytest.raises(TypeError, match="context"):
        Jobserver(context)
    assert descriptors() == before


def test_context_is_given_back(method: str) -> None:
    context = multiprocessing.get_context(method)
    assert Jobserver(context, 1).context is context
    assert Jobserver(context=context, slots=1).context is context


def test_context_of_a_name_and_of_none(method: str) -> None:
    assert Jobserver(method, 1).context.get_start_method() == method
    default = multiprocessing.get_context().get_start_method()
    assert Jobserver(None, 1).context.get_start_method() == default
    assert Jobserver(slots=1).context.get_start_method() == default


def test_context_is_where_workers_run(method: str) -> None:
    js = Jobserver(multiprocessing.get_context(method), 1)
    assert js(add, 1, 2).result(PATIENCE) == 3


def test_none_is_the_cpus_that_this_process_may_use(tmp_path: Path) -> None:
    everywhere = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everywhere)})
        js = Jobserver("fork")
    finally:
        os.sched_setaffinity(0, everywhere)
    check_slots(js, 1, tmp_path / "check")


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_there_are_as_many_slots_as_asked_for(method: str, slots: int, tmp_path: Path) -> None:
    check_slots(Jobserver(method, slots), slots, tmp_path / "check")


# Conservation


def test_slots_are_conserved_whatever_becomes_of_the_work(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    rounds = 15 if method == "fork" else 2
    for _ in range(rounds):
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        with pytest.raises(ValueError, match="why"):
            js.submit(raise_value_error, args=("why",)).result(PATIENCE)
        with pytest.raises(LostResult):
            js.submit(os_exit, args=(7,)).result(PATIENCE)
        with pytest.raises(LostResult):
            js.submit(die).result(PATIENCE)
        with pytest.raises(TypeError):
            js.submit(add, args=5)  # type: ignore[arg-type]
        assert js.submit(blob, args=(1 << 20,), consume=0).result(PATIENCE) == blob(1 << 20)
    check_slots(js, 2, tmp_path / "check")


def test_slots_are_conserved_by_many_unread_futures(tmp_path: Path) -> None:
    js = Jobserver("fork", 3)
    futures = [js.submit(add, args=(number, 1)) for number in range(100)]
    assert [future.result(PATIENCE) for future in futures] == list(range(1, 101))
    check_slots(js, 3, tmp_path / "check")


def test_submissions_without_a_slot_do_not_make_one(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    futures = [js.submit(add, args=(1, 2), consume=0) for _ in range(3)]
    assert [future.result(PATIENCE) for future in futures] == [3, 3, 3]
    check_slots(js, 2, tmp_path / "check")


# Blocked


def test_blocked_at_once_with_timeout_0(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        began = time.monotonic()
        for timeout in (0, 0.0):
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=timeout)
        assert time.monotonic() - began < SOON
        gate.open()
        assert future.wait(PATIENCE)
    assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3


def test_blocked_after_the_timeout(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        began = time.monotonic()
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0.3)
        assert 0.3 <= time.monotonic() - began < SOON
        gate.open()
        assert future.wait(PATIENCE)


def test_blocked_submission_changes_nothing(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    with Gate(tmp_path) as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        before = descriptors(), repr(js)
        for _ in range(20):
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0)
        assert (descriptors(), repr(js)) == before
        gate.open()
        assert future.wait(PATIENCE)
    check_slots(js, 1, tmp_path / "check")


def test_the_end_of_work_wakes_who_waits_for_its_slot(method: str) -> None:
    js = Jobserver(method, 1)
    first = js.submit(errands.linger, args=(0.2,))
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    assert first.done()


def test_no_timeout_waits_for_ever(method: str) -> None:
    js = Jobserver(method, 1)
    first = js.submit(errands.linger, args=(0.5,))
    assert js.submit(add, args=(1, 2), timeout=None).result(PATIENCE) == 3
    assert first.done()


# Without a slot


def test_no_slot_is_needed_with_consume_0(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        held = js.submit(pass_gate, args=(gate.path,))
        extra = [js.submit(add, args=(1, n), consume=0, timeout=0) for n in range(3)]
        assert [future.result(PATIENCE) for future in extra] == [1, 2, 3]
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), consume=1, timeout=0)
        gate.open()
        assert held.wait(PATIENCE)
    check_slots(js, 1, tmp_path / "check")


def test_work_with_consume_0_keeps_no_slot(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        extra = js.submit(touch_and_pass_gate, args=(mark, gate.path), consume=0)
        await_file(mark)
        assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3
        assert not extra.done()
        gate.open()
        assert extra.wait(PATIENCE)


# A slot that this process itself holds


def test_a_slot_held_by_a_finished_future_is_found(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    mark = str(tmp_path / "pid")
    for handle in (js, copy.copy(js), js.revise_env({"A": "1"})):
        finished = js.submit(errands.write_pid, args=(mark,))
        await_file(mark)
        pid = int(Path(mark).read_text())
        await_state(pid, "Z")
        os.unlink(mark)
        # Nobody has looked at `finished`; that its worker is gone may take a moment to be told.
        assert handle.submit(add, args=(1, 2), timeout=SOON).result(PATIENCE) == 3
        assert finished.result(0) == pid


def test_a_slot_held_by_a_finished_future_is_found_at_once(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    mark = str(tmp_path / "pid")
    finished = js.submit(errands.write_pid, args=(mark,))
    await_file(mark)
    await_state(int(Path(mark).read_text()), "Z")
    assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3
    assert finished.done()


def test_a_slot_behind_a_large_unread_result_is_found(method: str) -> None:
    js = Jobserver(method, 1)
    unread = js.submit(blob, args=(8 << 20,))
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    assert unread.result(0) == blob(8 << 20)


def test_a_slot_of_a_lost_worker_is_found(method: str) -> None:
    js = Jobserver(method, 1)
    lost = js.submit(die)
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    with pytest.raises(LostResult):
        lost.result(0)


# What it costs to wait, whatever is stuck

Stick = Callable[[Jobserver, str, str], "Future[object]"]


def stuck_in_work(js: Jobserver, gate: str, mark: str) -> Future[object]:
    future: Future[object] = js.submit(touch_and_pass_gate, args=(mark, gate))
    await_file(mark)
    return future


def stopped(js: Jobserver, gate: str, mark: str) -> Future[object]:
    future = stuck_in_work(js, gate, mark)
    os.kill(pid_of(future), signal.SIGSTOP)
    await_state(pid_of(future), "T")
    return future


def stopped_while_sending(js: Jobserver, gate: str, mark: str) -> Future[object]:
    del gate
    future: Future[object] = js.submit(errands.begin_then_make, args=(mark, 8 << 20))
    await_file(mark)
    await_blocked(pid_of(future))
    os.kill(pid_of(future), signal.SIGSTOP)
    await_state(pid_of(future), "T")
    return future


def outlived_by_a_grandchild(js: Jobserver, gate: str, mark: str) -> Future[object]:
    future: Future[object] = js.submit(errands.leave_grandchild, args=(gate, mark))
    await_file(mark)
    await_state(pid_of(future), "Z")
    return future


def answered_but_alive(js: Jobserver, gate: str, mark: str) -> Future[object]:
    del mark
    future: Future[object] = js.submit(errands.answer_but_stay, args=(gate,))
    await_blocked(pid_of(future))
    return future


@pytest.mark.parametrize(
    "stick",
    [
        stuck_in_work,
        stopped,
        stopped_while_sending,
        outlived_by_a_grandchild,
        answered_but_alive,
    ],
)
def test_a_blocked_submit_keeps_its_deadline_and_burns_no_cpu(
    method: str, stick: Stick, tmp_path: Path
) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        future = stick(js, gate.path, str(tmp_path / "mark"))
        pid = pid_of(future)
        began, burnt = time.monotonic(), time.process_time()
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=2)
        burnt = time.process_time() - burnt
        assert 2 <= time.monotonic() - began < SOON
        assert burnt < 0.04, f"{burnt} s of processor time in 2 s of waiting"
        if stick in (stopped, stopped_while_sending):
            os.kill(pid, signal.SIGCONT)
        gate.open()
        assert future.wait(PATIENCE)
        if stick is stopped_while_sending:
            assert future.result() == blob(8 << 20)
        if stick is outlived_by_a_grandchild:
            with pytest.raises(LostResult):
                future.result()
    check_slots(js, 1, tmp_path / "check")


def test_a_blocked_submit_sees_past_stuck_work_without_a_slot(method: str, tmp_path: Path) -> None:
    """What is stuck beside it does not keep a submit from the slot that comes free."""
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        stuck = js.submit(pass_gate, args=(gate.path,), consume=0)
        finishing = js.submit(errands.linger, args=(0.2,))
        assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
        assert finishing.done()
        assert not stuck.done()
        gate.open()
        assert stuck.wait(PATIENCE)
