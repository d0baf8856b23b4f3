"""A handle as an argument: the work that it reaches draws on the same slots."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import Blocked, Future, Jobserver
from tests import errands
from tests.processes import check_slots
from tests.work import PATIENCE, Gate, add, await_file, getpid, pass_gate, touch_and_pass_gate

NAME = "JOBSERVER_TEST"

# Forking beside threads is what some tests here are about; 3.12 and later have a word to say.
forks_with_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def test_a_worker_is_called_as_documented(method: str) -> None:
    js = Jobserver(method, 2)
    assert js(errands.process_name).result(PATIENCE) == "Jobserver-worker"
    assert js(errands.nested_process_name, js).result(PATIENCE) == "Jobserver-worker"
    assert multiprocessing.current_process().name == "MainProcess"


# Ways to hand it over


def test_a_handle_among_the_args(method: str) -> None:
    js = Jobserver(method, 2)
    assert js.submit(errands.submit_add, args=(js, 1, 2)).result(PATIENCE) == 3
    assert js(errands.submit_add, js, 1, 2).result(PATIENCE) == 3


def test_a_handle_among_the_kwargs(method: str) -> None:
    js = Jobserver(method, 2)
    kwargs = {"js": js, "a": 1, "b": 2}
    assert js.submit(errands.submit_add, kwargs=kwargs).result(PATIENCE) == 3


def test_a_handle_deep_within_an_argument(method: str) -> None:
    js = Jobserver(method, 2)
    assert js(errands.submit_add_in, {"js": [js, js]}, 1, 2).result(PATIENCE) == 3


def test_a_handle_bound_in_the_function(method: str) -> None:
    js = Jobserver(method, 2)
    assert js(functools.partial(errands.submit_add, js), 1, 2).result(PATIENCE) == 3
    assert js(errands.Nested(js).submit_add, 1, 2).result(PATIENCE) == 3


def test_a_handle_through_map(method: str) -> None:
    js = Jobserver(method, 3)
    results = js.map(errands.submit_add, [(js, n, 1) for n in range(3)], chunksize=2)
    assert list(results) == [1, 2, 3]


def test_a_handle_among_the_arguments_of_preexec(method: str) -> None:
    js = Jobserver(method, 2)
    prepared = js.replace_preexec(errands.submit_and_forget, js)
    assert prepared(add, 1, 2).result(PATIENCE) == 3


def test_a_handle_closed_over_under_fork() -> None:
    js = Jobserver("fork", 2)
    assert js(lambda: js.submit(add, args=(1, 2), timeout=0).result(PATIENCE)).result(PATIENCE) == 3


def test_a_copy_of_a_handle(method: str) -> None:
    js = Jobserver(method, 2)
    revised = js.revise_env({NAME: "1"})
    future = js(errands.submit_environment, revised, NAME)
    assert future.result(PATIENCE) == ["1"]
    assert js(errands.submit_environment, js, NAME).result(PATIENCE) == [None]


def test_the_handle_of_another_start_method(method: str) -> None:
    for other in ("fork", "spawn", "forkserver"):
        outer, inner = Jobserver(method, 1), Jobserver(other, 1)
        assert outer(errands.submit_add, inner, 1, 2).result(PATIENCE) == 3


def test_a_handle_for_a_process_that_the_user_starts(method: str, tmp_path: Path) -> None:
    """Launching is launching: `Process` takes a handle, as it takes a queue or a lock."""
    js = Jobserver(method, 1)
    mark = tmp_path / "mark"
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=errands.submit_touch, args=(js, str(mark)))
    process.start()
    process.join(PATIENCE)
    status = process.exitcode
    process.close()
    assert status == 0
    assert mark.exists()
    check_slots(js, 1, tmp_path / "check")


# The same slots


def test_a_worker_holds_a_slot_while_its_own_work_runs(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    with Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        future = js(errands.submit_touch_and_pass_gate, js, mark, gate.path)
        await_file(mark)
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)
        gate.open()
        assert future.wait(PATIENCE)
    check_slots(js, 2, tmp_path / "check")


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_worker_gets_the_slots_that_are_left(method: str, slots: int, tmp_path: Path) -> None:
    js = Jobserver(method, slots)
    with Gate(tmp_path) as gate:
        future = js(errands.count_and_hold, js, gate.path, slots + 2)
        assert future.result(PATIENCE) == slots - 1
    check_slots(js, slots, tmp_path / "check")


def test_slots_held_here_are_missing_there(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    with Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        held = js.submit(touch_and_pass_gate, args=(mark, gate.path))
        await_file(mark)
        assert js(errands.try_submit, js, 0).result(PATIENCE) == "Blocked"
        assert js(errands.try_submit, js, 0.2).result(PATIENCE) == "Blocked"
        gate.open()
        assert held.wait(PATIENCE)
    assert js(errands.try_submit, js, 0).result(PATIENCE) != "Blocked"


def test_a_slot_given_back_in_another_process_wakes_who_waits(method: str) -> None:
    js = Jobserver(method, 2)
    nested = js(errands.submit_linger, js, 0.3)
    # Both slots are in use by the worker and by its own work, until one and then the other ends.
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    assert nested.result(PATIENCE) is None


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_as_deep_as_there_are_slots(method: str, slots: int, tmp_path: Path) -> None:
    js = Jobserver(method, slots)
    pids = js(errands.descend, js, slots).result(PATIENCE)
    assert len({os.getpid(), *pids}) == slots + 1
    with pytest.raises(Blocked):
        js(errands.descend, js, slots + 1).result(PATIENCE)
    check_slots(js, slots, tmp_path / "check")


def test_one_deeper_with_consume_0(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    pids = js(errands.descend, js, 3, 0).result(PATIENCE)
    assert len({os.getpid(), *pids}) == 4
    with pytest.raises(Blocked):
        js(errands.descend, js, 4, 0).result(PATIENCE)
    check_slots(js, 2, tmp_path / "check")


def test_blocked_arrives_from_a_worker_like_any_exception(method: str) -> None:
    js = Jobserver(method, 1)
    with pytest.raises(Blocked) as caught:
        js(errands.submit_at_once, js).result(PATIENCE)
    assert "submit_at_once" in str(caught.value.__cause__)


# A handle of its own


def tracked(text: str) -> int:
    found = re.search(r"tracked=(\d+)", text)
    assert found is not None
    return int(found.group(1))


def test_the_childs_handle_sees_none_of_the_parents_futures(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 4)
    with Gate(tmp_path) as gate:
        held = [js.submit(pass_gate, args=(gate.path,)) for _ in range(2)]
        assert tracked(js(errands.representation, js).result(PATIENCE)) == 0
        if method == "fork":
            assert tracked(js(lambda: repr(js)).result(PATIENCE)) == 0
        assert tracked(repr(js)) == 2
        gate.open()
        for future in held:
            assert future.wait(PATIENCE)


def test_the_childs_handle_runs_none_of_the_parents_callbacks(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    pid, path = tmp_path / "pid", tmp_path / "ran"
    earlier = js.submit(errands.write_pid, args=(str(pid),))
    earlier.when_done(lambda: errands.append(str(path), str(os.getpid())))
    await_file(pid)
    assert tracked(js(errands.reclaim, js).result(PATIENCE)) == 0
    if method == "fork":
        assert tracked(js(lambda: errands.reclaim(js)).result(PATIENCE)) == 0
    assert earlier.wait(PATIENCE)
    assert path.read_text().split() == [str(os.getpid())]


def test_the_childs_handle_is_its_own_to_close(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    with js:
        text = js(errands.close_handle, js).result(PATIENCE)
        assert "Jobserver is closed" in text
        assert js(add, 1, 2).result(PATIENCE) == 3
        check_slots(js, 2, tmp_path / "check")


def test_the_parent_may_close_before_the_child_submits(method: str, tmp_path: Path) -> None:
    """Closing is about handles of one process: work that runs goes on, its own work too."""
    with Gate(tmp_path) as gate:
        with Jobserver(method, 2) as js:
            future = js(errands.pass_gate_then_submit, js, gate.path)
        gate.open()
        assert future.result(PATIENCE) == 3


def test_two_handles_in_one_argument_are_on_the_same_slots(method: str) -> None:
    js = Jobserver(method, 2)
    assert js(errands.fill_one_try_other, js, js.revise_env({})).result(PATIENCE) == "Blocked"


def test_a_nested_exception_arrives_with_both_tracebacks(method: str) -> None:
    js = Jobserver(method, 2)
    with pytest.raises(ValueError, match="deep") as caught:
        js(errands.submit_failure, js, "deep").result(PATIENCE)
    text = str(caught.value.__cause__)
    assert "submit_failure" in text
    assert "raise_value_error" in text


# Threads


@forks_with_threads
@pytest.mark.parametrize("slots", [1, 3])
def test_threads_that_submit_concurrently(method: str, slots: int, tmp_path: Path) -> None:
    js = Jobserver(method, slots)
    each = 10 if method == "fork" else 3
    pids: list[int] = []

    def submit_in_turn() -> None:
        pids.extend(js.submit(getpid, timeout=PATIENCE).result(PATIENCE) for _ in range(each))

    assert errands.run_all([submit_in_turn] * 6) == []
    assert len(pids) == 6 * each
    check_slots(js, slots, tmp_path / "check")


@forks_with_threads
def test_threads_that_submit_and_leave_the_waiting_to_others(method: str, tmp_path: Path) -> None:
    """Futures of one thread are finished by the calls of another."""
    js = Jobserver(method, 2)
    lock = threading.Lock()
    futures: list[Future[int]] = []

    def submit_only(start: int) -> None:
        for number in range(start, start + 3):
            future = js.submit(add, args=(number, 0), timeout=PATIENCE)
            with lock:
                futures.append(future)

    jobs: list[Callable[[], object]] = [functools.partial(submit_only, 10 * n) for n in range(4)]
    jobs += [js.reclaim_resources] * 2
    assert errands.run_all(jobs) == []
    expected = sorted(10 * n + k for n in range(4) for k in range(3))
    assert sorted(future.result(PATIENCE) for future in futures) == expected
    check_slots(js, 2, tmp_path / "check")


@forks_with_threads
def test_threads_of_which_one_is_blocked(method: str, tmp_path: Path) -> None:
    """A submission that waits for a slot keeps no other thread from its own affairs."""
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        held = js.submit(touch_and_pass_gate, args=(mark, gate.path))
        await_file(mark)
        results: list[int] = []
        blocked = threading.Thread(
            target=lambda: results.append(
                js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE)
            )
        )
        blocked.start()
        assert not held.done()
        assert not held.wait(0.1)
        js.reclaim_resources()
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)
        assert js.submit(add, args=(1, 3), consume=0, timeout=0).result(PATIENCE) == 4
        gate.open()
        blocked.join(PATIENCE)
        assert not blocked.is_alive()
        assert results == [3]
        assert held.wait(PATIENCE)


@forks_with_threads
def test_threads_within_work(method: str) -> None:
    js = Jobserver(method, 3)
    assert js(errands.submit_from_threads, js, 4).result(PATIENCE) == [0, 1, 2, 3]
