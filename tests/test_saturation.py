"""A full tree cannot stand still, and never computes more than its slots."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobserver import Blocked, Future, Jobserver, JobserverExecutor
from tests import trees
from tests.processes import check_slots
from tests.work import PATIENCE, Gate, add, await_file, touch_and_pass_gate

WIDTH = 10
DEPTH = 5
ALL = 1 + WIDTH * DEPTH

# Under fork, work with threads in it forks on purpose here; 3.12 and later have a word to say.
forks_with_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

slots_1_and_2 = pytest.mark.parametrize("slots", [1, 2])

# Long enough to be seen by who looks for what must not happen.
A_WHILE = 0.3


# The oracle


def test_the_log_finds_too_much_at_once(tmp_path: Path) -> None:
    log = trees.Log(tmp_path / "log")
    with log.computing(), log.computing():
        with log.blocked(), log.computing():
            pass
    assert log.peak() == 2
    with log.computing(), log.computing(), log.computing():
        pass
    assert log.peak() == 3


def test_the_log_finds_work_beyond_the_slots(tmp_path: Path) -> None:
    """Two pieces of work that hold no slot compute beside the one that does."""
    js = Jobserver("fork", 1)
    log = trees.Log(tmp_path / "log")
    marks = [str(tmp_path / str(number)) for number in range(3)]
    with Gate(tmp_path) as gate:
        futures = [
            js.submit(trees.hold, args=(log, mark, gate.path), consume=consume)
            for mark, consume in zip(marks, (1, 0, 0))
        ]
        for mark in marks:
            await_file(mark)
        gate.open()
        for future in futures:
            future.result(PATIENCE)
    assert log.peak() == 3


# The whole tree


@slots_1_and_2
def test_fan_out_through_jobserver(method: str, slots: int, tmp_path: Path) -> None:
    js = Jobserver(method, slots)
    log = trees.Log(tmp_path / "log")
    roots = [js.submit(trees.fan, args=(js, log, WIDTH, DEPTH)) for _ in range(slots)]
    assert [root.result(2 * PATIENCE) for root in roots] == [ALL] * slots
    assert log.peak() <= slots
    check_slots(js, slots, tmp_path / "check")


@pytest.mark.thorough
@slots_1_and_2
def test_fan_out_through_an_executor(method: str, slots: int, tmp_path: Path) -> None:
    """The roots through an executor that was given the Jobserver, and below them its handle."""
    js = Jobserver(method, slots)
    log = trees.Log(tmp_path / "log")
    with JobserverExecutor(js) as executor:
        roots = [executor.submit(trees.fan, js, log, WIDTH, DEPTH) for _ in range(slots)]
        assert [root.result(2 * PATIENCE) for root in roots] == [ALL] * slots
    assert log.peak() <= slots
    check_slots(js, slots, tmp_path / "check")


@slots_1_and_2
def test_fan_out_through_executors_all_the_way_down(
    method: str, slots: int, tmp_path: Path
) -> None:
    """Each piece of work makes an executor of the handle that it was given."""
    js = Jobserver(method, slots)
    log = trees.Log(tmp_path / "log")
    with JobserverExecutor(js) as executor:
        roots = [executor.submit(trees.executor_fan, js, log, WIDTH, DEPTH) for _ in range(slots)]
        assert [root.result(2 * PATIENCE) for root in roots] == [ALL] * slots
    assert log.peak() <= slots
    check_slots(js, slots, tmp_path / "check")


def test_an_executor_leaves_nothing_on_the_slot_of_who_waits_no_more(
    method: str, tmp_path: Path
) -> None:
    """Work begun on a slot while its holder waited is not left to run beside the holder."""
    js = Jobserver(method, 1)
    log = trees.Log(tmp_path / "log")
    future = js.submit(trees.executor_two_in_turn, args=(js, log))
    assert future.result(PATIENCE) == 2
    assert log.peak() == 1


def test_a_deep_chain_with_one_slot(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    log = trees.Log(tmp_path / "log")
    assert js.submit(trees.chain, args=(js, log, 20)).result(2 * PATIENCE) == 20
    assert log.peak() == 1
    check_slots(js, 1, tmp_path / "check")


@pytest.mark.parametrize("buffersize", [0, 1, 3])
@pytest.mark.parametrize("chunksize", [1, 3])
@slots_1_and_2
def test_map_in_a_full_tree(slots: int, chunksize: int, buffersize: int, tmp_path: Path) -> None:
    js = Jobserver("fork", slots)
    log = trees.Log(tmp_path / "log")
    args = (js, log, 7, chunksize, buffersize)
    futures = [js.submit(trees.map_here, args=args) for _ in range(slots)]
    assert [future.result(2 * PATIENCE) for future in futures] == [7] * slots
    assert log.peak() <= slots
    check_slots(js, slots, tmp_path / "check")


def test_map_in_a_full_tree_under_every_start_method(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    log = trees.Log(tmp_path / "log")
    assert js.submit(trees.map_here, args=(js, log, 3, 1, 0)).result(2 * PATIENCE) == 3
    assert log.peak() == 1


@forks_with_threads
@slots_1_and_2
def test_several_threads_of_one_piece_of_work(method: str, slots: int, tmp_path: Path) -> None:
    """There is one slot to lend, however many threads are blocked."""
    js = Jobserver(method, slots)
    log = trees.Log(tmp_path / "log")
    future = js.submit(trees.submit_from_threads, args=(js, log, 3, 3))
    assert future.result(2 * PATIENCE) == 9
    assert log.peak() <= slots
    check_slots(js, slots, tmp_path / "check")


# When `submit` returns


def test_submit_returns_when_the_work_on_its_own_slot_is_done(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    returned, begun = tmp_path / "returned", tmp_path / "begun"
    with Gate(tmp_path) as gate:
        args = (js, str(returned), str(begun), gate.path)
        future = js.submit(trees.submit_and_report, args=args)
        await_file(begun)  # at once, though the one slot is its submitter's
        time.sleep(A_WHILE)
        assert not returned.exists()
        gate.open()
        assert future.result(PATIENCE) is True
    check_slots(js, 1, tmp_path / "check")


def test_submit_returns_when_a_slot_of_its_own_has_come_free(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    mark, returned, begun = tmp_path / "mark", tmp_path / "returned", tmp_path / "begun"
    with Gate(tmp_path, "other") as other, Gate(tmp_path) as gate:
        holding: Future[None] = js.submit(touch_and_pass_gate, args=(str(mark), other.path))
        await_file(mark)
        args = (js, str(returned), str(begun), gate.path)
        future = js.submit(trees.submit_and_report, args=args)
        await_file(begun)
        time.sleep(A_WHILE)
        assert not returned.exists()
        other.open()
        assert holding.wait(PATIENCE)  # gives the second slot back
        await_file(returned)  # though the work still holds at its gate
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)  # both slots are in use
        gate.open()
        assert future.result(PATIENCE) is False
    check_slots(js, 2, tmp_path / "check")


def test_the_slot_is_lent_to_one_at_a_time(method: str, tmp_path: Path) -> None:
    """While work runs on its submitter's slot, nobody else gets that slot."""
    js = Jobserver(method, 1)
    returned, begun = tmp_path / "returned", tmp_path / "begun"
    with Gate(tmp_path) as gate:
        args = (js, str(returned), str(begun), gate.path)
        future = js.submit(trees.submit_and_report, args=args)
        await_file(begun)
        for timeout in (0, 0.2):
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=timeout)
        gate.open()
        assert future.wait(PATIENCE)
    check_slots(js, 1, tmp_path / "check")


# With a deadline, without a slot, on another Jobserver: nothing is lent


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_finite_timeout_in_a_full_tree_is_blocked(
    method: str, timeout: float, tmp_path: Path
) -> None:
    js = Jobserver(method, 1)
    assert js.submit(trees.submit_within, args=(js, timeout)).result(PATIENCE) == "Blocked"
    check_slots(js, 1, tmp_path / "check")


def test_work_without_a_slot_has_none_to_lend(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    mark, inner = tmp_path / "mark", tmp_path / "inner"
    with Gate(tmp_path) as gate:
        holding = js.submit(touch_and_pass_gate, args=(str(mark), gate.path))
        await_file(mark)
        waiting = js.submit(trees.submit_without_end, args=(js, str(inner)), consume=0)
        assert not waiting.wait(A_WHILE + 0.3)
        assert not inner.exists()
        gate.open()
        assert holding.wait(PATIENCE)
        assert waiting.wait(PATIENCE)
    assert inner.exists()
    check_slots(js, 1, tmp_path / "check")


def test_a_slot_is_not_lent_to_the_work_of_another_jobserver(method: str, tmp_path: Path) -> None:
    one, other = Jobserver(method, 1), Jobserver(method, 1)
    mark, inner = tmp_path / "mark", tmp_path / "inner"
    with Gate(tmp_path) as gate:
        holding = other.submit(touch_and_pass_gate, args=(str(mark), gate.path))
        await_file(mark)
        waiting = one.submit(trees.submit_without_end, args=(other, str(inner)))
        assert not waiting.wait(A_WHILE + 0.3)
        assert not inner.exists()
        gate.open()
        assert holding.wait(PATIENCE)
        assert waiting.wait(PATIENCE)
    assert inner.exists()
    check_slots(one, 1, tmp_path / "check one")
    check_slots(other, 1, tmp_path / "check other")


def test_two_jobservers_full_of_each_others_work(tmp_path: Path) -> None:
    """Each worker submits to the one that it was given, and has a slot of that to lend or none."""
    one, other = Jobserver("fork", 1), Jobserver("fork", 2)
    log = trees.Log(tmp_path / "log")
    future = one.submit(trees.fan, args=(other, log, 3, 3))
    assert future.result(2 * PATIENCE) == 10
    assert log.peak() <= 3
    check_slots(one, 1, tmp_path / "check one")
    check_slots(other, 2, tmp_path / "check other")


# Failures on a lent slot


def test_a_loss_on_a_lent_slot_costs_no_slot(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    assert "SIGKILL" in js.submit(trees.lose_and_go_on, args=(js,)).result(PATIENCE)
    check_slots(js, 1, tmp_path / "check")


def test_a_refusal_on_a_lent_slot_costs_no_slot(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    assert "args" in js.submit(trees.fail_and_go_on, args=(js,)).result(PATIENCE)
    if method != "fork":
        text = js.submit(trees.pickle_and_go_on, args=(js,)).result(PATIENCE)
        assert "not picklable" in text
        assert method in text
    check_slots(js, 1, tmp_path / "check")


def test_lending_starts_no_thread(method: str) -> None:
    js = Jobserver(method, 1)
    assert js.submit(trees.count_threads, args=(js,)).result(PATIENCE) == (1, 1)
