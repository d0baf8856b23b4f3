"""A full tree does not stand still, however work waits for its own nested work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobserver import Jobserver
from tests import waits_work as work
from tests.executor_help import context_of, executor_for, kill_workers, sharing_executor
from tests.trees import A_LOT, Log
from tests.work import PATIENCE, Gate, await_file, identity

# Under fork, work with threads in it forks on purpose here; 3.12 and later have a word to say.
forks_with_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

every_means = pytest.mark.parametrize("means", work.MEANS)


# However it is waited for


@every_means
def test_in_work_of_a_jobserver_with_one_slot(method: str, means: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        future = js(work.fan_out, js, 3, means)
        if not future.wait(PATIENCE):
            kill_workers()
        assert future.result(PATIENCE) == ([0, 1, 2], [])


@every_means
def test_two_wide_in_work_of_an_executor(means: str) -> None:
    with Jobserver("fork", 2) as js, sharing_executor(js) as executor:
        futures = [executor.submit(work.fan_out, js, 3, means) for _ in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [([0, 1, 2], [])] * 2


@every_means
def test_in_a_worker_that_serves_again(means: str) -> None:
    with Jobserver("fork", 1) as js:
        handle = js.replace_workers()
        for _ in range(2):
            assert handle(work.fan_out, handle, 2, means).result(PATIENCE) == ([0, 1], [])


# Said so


def test_the_end_of_a_block_has_the_slot_back(method: str, tmp_path: Path) -> None:
    """The work that runs on it ends."""
    log, marks = Log(tmp_path / "log"), [str(tmp_path / name) for name in ("begun", "left")]
    with Gate(tmp_path) as gate, Jobserver(context_of(method), 1) as js:
        future = js(work.leave_a_block, js, log, marks, gate.path, False)
        await_file(marks[0])
        assert not future.done(A_LOT)
        assert not Path(marks[1]).exists()
        gate.open()
        # Whether its Future is done by then is for the executor's thread, and so not asked.
        future.result(PATIENCE)
    assert log.peak() == 1


def test_a_free_slot_takes_its_place(tmp_path: Path) -> None:
    """The work that runs on it goes on, on a slot that has come free."""
    log, marks = Log(tmp_path / "log"), [str(tmp_path / name) for name in ("begun", "left")]
    with Gate(tmp_path) as gate, Gate(tmp_path, "other") as other, Jobserver("fork", 2) as js:
        beside = js(work.hold, log, str(tmp_path / "beside"), other.path)
        future = js(work.leave_a_block, js, log, marks, gate.path, False)
        await_file(marks[0])
        assert not future.done(A_LOT)
        assert not Path(marks[1]).exists()
        other.open()
        assert beside.result(PATIENCE) == "held"
        await_file(marks[1])
        gate.open()
        assert future.result(PATIENCE) is False
    assert log.peak() == 2


def test_the_end_of_an_inner_block_does_not_wait(tmp_path: Path) -> None:
    log, marks = Log(tmp_path / "log"), [str(tmp_path / name) for name in ("begun", "left")]
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        future = js(work.leave_a_block, js, log, marks, gate.path, True)
        await_file(marks[1])
        gate.open()
        assert future.result(PATIENCE) is True
    assert log.peak() == 1


def test_however_many_threads_wait_it_is_one_slot(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    with Jobserver("fork", 1) as js:
        assert js(work.wait_in_threads, js, log, 4).result(PATIENCE) == [0, 1, 2, 3]
    assert log.peak() == 1


@forks_with_threads
def test_another_thread_may_submit_with_a_timeout(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        assert js(work.submit_in_a_thread, js, PATIENCE).result(PATIENCE) == 3


def test_an_exception_passes_through_a_block() -> None:
    with Jobserver("fork", 1) as js, pytest.raises(KeyError, match="in a block"):
        js(work.raise_in_a_block, js).result(PATIENCE)


def test_without_a_slot_a_block_does_nothing(method: str) -> None:
    with executor_for(method, 1) as executor:
        with executor.waiting(), executor.waiting():
            assert executor.submit(identity, 1).result(PATIENCE) == 1
        executor.shutdown()
        with executor.waiting():
            pass


def test_a_closed_jobserver_refuses_a_block() -> None:
    with Jobserver("fork", 1) as js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.waiting()


# Event loops


def test_a_loop_goes_on_while_its_work_runs_on_its_slot(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(context_of(method), 1) as js:
        future = js(work.beat, js, str(tmp_path / "begun"), gate.path)
        assert future.result(PATIENCE) == 20


# Who computes does not wait


@pytest.mark.parametrize(
    "means", ["without a word", "asking at times", "in another thread", "in a loop"]
)
def test_work_that_computes_keeps_its_slot(means: str) -> None:
    still = PATIENCE if means == "in a loop" else 0.3
    with Jobserver("fork", 1) as js:
        outcome = js(work.compute, js, 1.0, still, means).result(PATIENCE)
    assert outcome == (1, False)


# The last resort


def test_waits_that_nobody_can_see(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        values, warnings, seconds = js(work.wait_unseen, js, 3, 0.5).result(PATIENCE)
    assert values == [0, 1, 2]
    assert len(warnings) == 1
    assert "waiting()" in warnings[0]
    assert seconds >= 0.5


def test_two_wide_waits_that_nobody_can_see(tmp_path: Path) -> None:
    marks = [str(tmp_path / "one"), str(tmp_path / "other")]
    with Jobserver("fork", 2) as js:
        futures = [
            js(work.wait_unseen, js, 3, 2.0, own, other) for own, other in (marks, marks[::-1])
        ]
        outcomes = [future.result(PATIENCE) for future in futures]
    assert [outcome[0] for outcome in outcomes] == [[0, 1, 2]] * 2
    assert sum(len(outcome[1]) for outcome in outcomes) in (1, 2)


def test_a_program_that_waits_so_ends(tmp_path: Path) -> None:
    """Nobody shuts its executor down: the interpreter waits for its work, and so does the tree."""
    script = tmp_path / "script.py"
    script.write_text(
        "from jobserver import Jobserver\n"
        "from tests import waits_work as work\n"
        "if __name__ == '__main__':\n"
        "    js = Jobserver('fork', 2)\n"
        "    futures = [js(work.wait_unseen, js, 2, 0.5) for _ in range(2)]\n"
        "    print([future.result()[0] for future in futures])\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "[[0, 1], [0, 1]]\n"
