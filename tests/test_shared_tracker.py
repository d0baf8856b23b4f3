"""Forked workers share one resource tracker with their program, which has none until it is used."""

from __future__ import annotations

from multiprocessing import shared_memory

import pytest

from tests import tracker_programs as programs
from tests.faces import FACES
from tests.processes import run_program


@pytest.mark.parametrize("name", FACES)
def test_memory_made_in_work_is_there_after_it(name: str) -> None:
    assert run_program(programs.made_in_work, name).stderr == ""


@pytest.mark.parametrize("name", FACES)
def test_memory_lent_to_work_is_there_after_it(name: str) -> None:
    assert run_program(programs.lent_to_work, name).stderr == ""


def test_processes_that_need_a_tracker_at_once_share_it() -> None:
    assert run_program(programs.nested_and_at_once, 4).stderr == ""


def test_what_another_process_removed_is_not_missed() -> None:
    assert run_program(programs.unlinked_elsewhere).stderr == ""


@pytest.mark.parametrize("program", [programs.left_behind, programs.killed_with_the_tree])
def test_what_nobody_removes_is_removed_in_the_end(program: object) -> None:
    assert callable(program)
    done = run_program(program)
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(done.stdout.strip())
    assert "leaked shared_memory" in done.stderr


def test_those_who_share_nothing_have_no_tracker() -> None:
    assert run_program(programs.unused).stderr == ""


def test_spawned_workers_share_it() -> None:
    assert run_program(programs.beside_spawn).stderr == ""
