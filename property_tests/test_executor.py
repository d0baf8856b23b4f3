"""Tier 4: an executor over real processes, against a model of concurrent.futures' semantics."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

TIMES = {"fork": 4.0, "spawn": 0.25, "forkserver": 0.5}  # as many examples as other machines have
STEPS = 25
MOST = 300  # examples at once, so that they end before a hang is suspected


def test_any_program(method: str, executors: Any) -> None:
    machine = type("Executor", (executors.Executor,), {"method": method})
    current = settings()
    examples = min(round(TIMES[method] * current.max_examples), MOST)
    run_state_machine_as_test(
        machine, settings=settings(current, max_examples=examples, stateful_step_count=STEPS)
    )
