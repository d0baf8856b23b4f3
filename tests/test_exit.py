"""What is left when an interpreter or a worker ends before the work that it submitted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import pytest

from jobserver import Future, Jobserver, LostResult
from tests.mischief import leave_nested, leave_nested_blob, leave_nested_dead, touch_late
from tests.processes import ROOT, check_slots, pid_of, run_program
from tests.work import PATIENCE, Gate, identity, pass_gate

kept: list[object] = []  # what a program still has when its interpreter ends


def leave_running(method: str, mark: str, keep: int) -> None:
    js = Jobserver(method, 2)
    future = js.submit(touch_late, args=(mark, 0.5))
    if keep:
        kept.extend((js, future))


def leave_within(method: str, mark: str, _keep: int) -> None:
    with Jobserver(method, 2) as js:
        kept.append(js.submit(touch_late, args=(mark, 0.5)))


def leave_by_error(method: str, mark: str, _keep: int) -> None:
    with Jobserver(method, 2) as js:
        kept.append(js.submit(touch_late, args=(mark, 0.5)))
        sys.exit("no more")


@pytest.mark.parametrize("keep", [0, 1])
def test_an_interpreter_ends_with_work_running(method: str, tmp_path: Path, keep: int) -> None:
    """As with multiprocessing, what was started is not cut short, and nothing stays behind."""
    mark = tmp_path / "mark"
    done = run_program(leave_running, method, str(mark), keep)
    assert mark.exists()
    assert "Error" not in done.stderr


def test_an_interpreter_ends_after_the_last_exit(method: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    done = run_program(leave_within, method, str(mark), 1)
    assert mark.exists()
    assert "Error" not in done.stderr


def test_an_interpreter_ends_by_an_error(method: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    done = run_program(leave_by_error, method, str(mark), 1, status=1)
    assert mark.exists()
    assert done.stderr.strip().endswith("no more")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("ending", ["return", "error"])
def test_slots_of_nested_work_that_nobody_awaits_come_back(
    method: str, tmp_path: Path, ending: str, depth: int
) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 3) as js:
        future = js.submit(leave_nested, args=(js, gate.path, ending, depth))
        future.wait(0.2)
        gate.open()
        if ending == "return":
            assert future.result(PATIENCE) == "left"
        else:
            with pytest.raises(ValueError, match="left"):
                future.result(PATIENCE)
        check_slots(js, 3, tmp_path / "slots")


def test_so_do_those_of_nested_results_that_nobody_reads(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as js:
        future = js.submit(leave_nested_blob, args=(js, 32 * 1024 * 1024))
        assert future.result(PATIENCE) == "left"
        check_slots(js, 2, tmp_path / "slots")


def test_so_do_those_of_nested_losses_that_nobody_sees(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as js:
        assert js.submit(leave_nested_dead, args=(js,)).result(PATIENCE) == "left"
        check_slots(js, 2, tmp_path / "slots")


@contextmanager
def newborns_killed(method: str, kills: int) -> Iterator[None]:
    """Within, so many new workers are killed, each as early as it can be seen."""
    parent = os.getpid()
    if method == "forkserver":
        parent = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    source = f"from tests.mischief import kill_newborn; kill_newborn({parent}, {kills})"
    killer = subprocess.Popen(
        [sys.executable, "-c", source], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with killer:
        assert killer.stdout is not None
        assert killer.stdin is not None
        assert killer.stdout.readline() == b"ready\n"
        yield
        killer.stdin.close()
        assert killer.wait(PATIENCE) == 0


def outcome(future: Future[Any]) -> object:
    """The value, or what the lost worker ended with."""
    try:
        return future.result(PATIENCE)
    except LostResult as loss:
        return loss.exitcode


@pytest.mark.parametrize("size", [10, 4 * 1024 * 1024])
def test_a_worker_killed_while_it_is_launched(method: str, tmp_path: Path, size: int) -> None:
    """It is launched again, or its Future reports the loss; no error of a pipe comes through."""
    argument = b"x" * size
    with Jobserver(method, 2) as js:
        with newborns_killed(method, 4):
            outcomes: list[object] = []
            for _ in range(8):
                future = js.submit(identity, args=(argument,), timeout=PATIENCE)
                outcomes.append(outcome(future))
        assert set(outcomes) <= {argument, -signal.SIGKILL}
        check_slots(js, 2, tmp_path / "slots")


def test_a_spawned_worker_killed_before_it_is_told_its_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From 3.14 on the parent is told by its pipe; before, by the result channel."""
    spawn = util.spawnv_passfds
    killed: list[int] = []

    def killing(path: bytes, args: list[str], fds: list[int]) -> int:
        pid: int = spawn(path, args, fds)
        if not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    with Jobserver("spawn", 1) as js:
        with monkeypatch.context() as patch:
            patch.setattr(util, "spawnv_passfds", killing)
            assert outcome(js.submit(identity, args=("value",))) in {"value", -signal.SIGKILL}
        assert killed
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("delay", [0, 0.002, 0.01, 0.03, 0.1])
def test_a_worker_killed_just_after(method: str, tmp_path: Path, delay: float) -> None:
    """By somebody else, at an instant at which it may not have begun its work."""
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        futures = [js.submit(pass_gate, args=(gate.path, "value")) for _ in range(2)]
        time.sleep(delay)
        os.kill(pid_of(futures[0]), signal.SIGKILL)
        gate.open()
        assert futures[1].result(PATIENCE) == "value"
        assert outcome(futures[0]) in {"value", -signal.SIGKILL}
        check_slots(js, 2, tmp_path / "slots")
