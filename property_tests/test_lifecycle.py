"""Tier 1: the table of a Future's life, against a model that was written without looking at it."""

from __future__ import annotations

import importlib
from types import ModuleType

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

TIMES = 10  # as many examples as a machine of real processes has


def test_any_life(machines: ModuleType) -> None:
    machines.Life.visited.clear()
    current = settings(stateful_step_count=50)
    run_state_machine_as_test(
        machines.Life, settings=settings(current, max_examples=TIMES * current.max_examples)
    )
    for (state, event), count in sorted(machines.Life.visited.items(), key=str):
        print(f"{count:6} {state.value:8} {event.value}")
    assert not machines.Life.missed()


def test_every_state_and_event_is_in_the_diagram(subject: ModuleType) -> None:
    lifecycle = importlib.import_module(f"{subject.__name__}.lifecycle")
    drawn = lifecycle.diagram()
    for named in (*lifecycle.State, *lifecycle.Event):
        assert named.value in drawn
