"""Tier 2: the whole library over doubles, beside a model that foretells what comes of it."""

from __future__ import annotations

from types import ModuleType

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

TIMES = 60  # as many examples as a machine of real processes has
MOST = 4000  # examples at once, so that they end before a hang is suspected


def test_any_program(machines: ModuleType) -> None:
    current = settings(stateful_step_count=50)
    count = min(TIMES * current.max_examples, MOST)
    run_state_machine_as_test(machines.Library, settings=settings(current, max_examples=count))
