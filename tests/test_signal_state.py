"""Workers and helpers start with the signal handling of a new program, not with the program's."""

from __future__ import annotations

import pytest

from tests.faces import FACES
from tests.processes import run_program
from tests.signal_programs import (
    blocked_child_signal,
    cancel_beside_loop,
    group_signalled,
    ignored_in_commands,
    preexec_installs,
    start_as_new,
)


@pytest.mark.parametrize("name", FACES)
def test_a_worker_starts_as_new(name: str) -> None:
    run_program(start_as_new, name, "fork")


@pytest.mark.parametrize("afresh", ["spawn", "forkserver"])
def test_so_does_one_started_afresh(afresh: str) -> None:
    run_program(start_as_new, "fresh", afresh)


@pytest.mark.parametrize("reused", [False, True])
def test_sigterm_cancels_beside_an_event_loop_that_handles_it(reused: bool) -> None:
    run_program(cancel_beside_loop, reused)


def test_a_signal_to_the_group_runs_the_handler_in_the_program_only() -> None:
    """The forker lives on, runs no handler of the program and prints nothing."""
    done = run_program(group_signalled)
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert done.stderr == ""


def test_preexec_may_install_a_handler() -> None:
    run_program(preexec_installs)


@pytest.mark.parametrize("name", FACES)
def test_the_forkserver_works_though_its_signal_is_blocked(name: str) -> None:
    """multiprocessing alone waits for ever."""
    run_program(blocked_child_signal, name)


def test_commands_ignore_what_the_program_ignores() -> None:
    """Those of `run`, and the one of `python -m jobserver`: as with subprocess, the oracle."""
    run_program(ignored_in_commands)
