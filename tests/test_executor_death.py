"""A worker's death fails exactly its own Future of a JobserverExecutor."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from jobserver import LostResult
from tests import executor_work as work
from tests.executor_help import executor_for
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    die,
    identity,
    os_exit,
    pass_gate,
    touch_and_pass_gate,
)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_killed_worker(method: str, signum: int, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with executor_for(method, 1) as executor:
        future = executor.submit(work.note_pid_and_die, str(note), signum)
        with pytest.raises(LostResult) as caught:
            future.result(PATIENCE)
    error = caught.value
    assert isinstance(error, BrokenProcessPool)
    assert error.pid == int(note.read_text())
    assert error.exitcode == -signum
    assert str(error.pid) in str(error)
    assert signal.Signals(signum).name in str(error)


@pytest.mark.parametrize("code", [0, 7])
def test_a_worker_that_left_without_a_result(method: str, code: int) -> None:
    with executor_for(method, 1) as executor:
        with pytest.raises(BrokenProcessPool) as caught:
            executor.submit(os_exit, code).result(PATIENCE)
    error: object = caught.value
    assert isinstance(error, LostResult)
    assert error.exitcode == code


def test_a_worker_that_became_another_program(method: str) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(work.become_another_program).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert isinstance(error, LostResult)
    assert isinstance(error, BrokenProcessPool)


def test_all_others_go_on(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 2) as executor, Gate(tmp_path) as gate:
        beside = executor.submit(touch_and_pass_gate, mark, gate.path, "beside")
        await_file(mark)
        dying = [executor.submit(die) for _ in range(3)]
        behind = [executor.submit(identity, number) for number in range(3)]
        assert all(isinstance(each.exception(PATIENCE), BrokenProcessPool) for each in dying)
        assert [future.result(PATIENCE) for future in behind] == [0, 1, 2]
        assert not beside.done()
        assert "active" in repr(executor)
        late = executor.submit(add, 1, 2)
        assert late.result(PATIENCE) == 3
        gate.open()
        assert beside.result(PATIENCE) == "beside"


def test_a_worker_killed_from_outside(method: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        future = executor.submit(work.hold_and_note_pid, str(note), gate.path)
        await_file(note)
        os.kill(int(note.read_text()), signal.SIGKILL)
        error = future.exception(PATIENCE)
        assert isinstance(error, LostResult)
        assert error.exitcode == -signal.SIGKILL
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


def test_a_death_in_a_map_is_at_its_position(method: str) -> None:
    with executor_for(method, 2) as executor:
        results = executor.map(work.die_at, [2] * 4, range(4))
        assert next(results) == 0
        assert next(results) == 1
        with pytest.raises(BrokenProcessPool):
            next(results)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


def test_a_death_after_shutdown(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        held = executor.submit(pass_gate, gate.path)
        dying = executor.submit(die)
        behind = executor.submit(add, 1, 2)
        executor.shutdown(wait=False)
        gate.open()
        executor.shutdown()
        assert held.exception() is None
        assert isinstance(dying.exception(), BrokenProcessPool)
        assert behind.result() == 3


def test_a_death_while_much_is_sent(method: str) -> None:
    with executor_for(method, 2) as executor:
        futures = [executor.submit(work.die_with, b"x" * (4 << 20)) for _ in range(4)]
        for future in futures:
            assert isinstance(future.exception(PATIENCE), BrokenProcessPool)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


def test_a_crash_while_the_result_is_dumped(method: str) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(work.make, work.KillsWhenDumped).exception(PATIENCE)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
    assert isinstance(error, LostResult)
    assert isinstance(error, BrokenProcessPool)


def test_the_exception_is_what_programs_catch_and_can_be_sent_on(method: str) -> None:
    with executor_for(method, 1) as executor:
        error = executor.submit(die).exception(PATIENCE)
    assert isinstance(error, concurrent.futures.BrokenExecutor)
    assert isinstance(error, LostResult)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, LostResult)
    assert isinstance(copy, BrokenProcessPool)
    assert (copy.pid, copy.exitcode, str(copy)) == (error.pid, error.exitcode, str(error))


def test_callbacks_run_for_a_death(method: str) -> None:
    seen: list[object] = []
    with executor_for(method, 1) as executor:
        future = executor.submit(die)
        future.add_done_callback(seen.append)
        concurrent.futures.wait([future], PATIENCE)
    assert seen == [future]
