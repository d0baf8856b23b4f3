"""Tier 3: trees of real processes, beside a model that foretells what comes of it."""

from __future__ import annotations

import importlib
from types import ModuleType

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

# How many examples of a profile one of these is worth: a process costs from a millisecond under
# fork to a tenth of a second under spawn.
COST = {"fork": 1, "spawn": 4, "forkserver": 4}
MOST = 100  # examples at once, so that they end before a hang is suspected


def test_any_tree(method: str, subject: ModuleType) -> None:
    machine = importlib.import_module(f"{subject.__name__}.testing.trees").MACHINES[method]
    current = settings(stateful_step_count=25)
    count = min(current.max_examples, MOST) // COST[method]
    run_state_machine_as_test(machine, settings=settings(current, max_examples=max(1, count)))
