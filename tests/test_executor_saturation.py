"""An executor made inside a worker cannot stand still in a full tree, however it is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobserver import Jobserver
from tests import executor_work as work
from tests.executor_help import await_true, context_of, kill_workers, sharing_executor
from tests.work import PATIENCE


@pytest.mark.parametrize("means", work.MEANS)
def test_in_work_of_a_jobserver_with_one_slot(method: str, means: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        future = js(work.fan_out, js, 4, means)
        if not future.wait(PATIENCE):
            kill_workers()
        assert future.result(PATIENCE) == [0, 1, 2, 3]


@pytest.mark.parametrize("means", work.MEANS)
def test_in_work_of_an_executor_with_one_slot(method: str, means: str) -> None:
    with Jobserver(context_of(method), 1) as js, sharing_executor(js) as executor:
        assert executor.submit(work.fan_out, js, 4, means).result(PATIENCE) == [0, 1, 2, 3]


@pytest.mark.parametrize("means", work.MEANS)
def test_two_wide_in_work_that_fills_the_tree(method: str, means: str) -> None:
    with Jobserver(context_of(method), 2) as js, sharing_executor(js) as executor:
        futures = [executor.submit(work.fan_out, js, 3, means) for _ in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [[0, 1, 2]] * 2


def test_work_left_behind_by_work_is_done(method: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Jobserver(context_of(method), 1) as js, sharing_executor(js) as executor:
        assert executor.submit(work.leave_behind, js, str(path)).result(PATIENCE) == "left"
        # The worker ends, and its interpreter waits for what it left pending.
        await_true(lambda: path.exists() and path.read_text() == "first second", "what was left")
        assert executor.submit(work.pid_for, None).result(PATIENCE)


@pytest.mark.parametrize("slots", [1, 2])
def test_deep(method: str, slots: int) -> None:
    with Jobserver(context_of(method), slots) as js, sharing_executor(js) as executor:
        assert executor.submit(work.descend, js, 3).result(2 * PATIENCE) == 3


@pytest.mark.parametrize("slots", [1, 2])
def test_wide(slots: int) -> None:
    with Jobserver("fork", slots) as js, sharing_executor(js) as executor:
        futures = [executor.submit(work.fan_out, js, 10, "result") for _ in range(3)]
        assert [future.result(2 * PATIENCE) for future in futures] == [list(range(10))] * 3
