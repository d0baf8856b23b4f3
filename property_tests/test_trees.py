"""Tier 3: trees of real processes, beside a model that foretells what comes of it."""

from __future__ import annotations

import importlib
from types import ModuleType

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test


def test_any_tree(method: str, subject: ModuleType) -> None:
    machine = importlib.import_module(f"{subject.__name__}.testing.trees").MACHINES[method]
    current = settings(stateful_step_count=25)
    # A process costs from a millisecond under fork to a tenth of a second under spawn.
    if method != "fork":
        current = settings(current, max_examples=max(1, current.max_examples // 4))
    run_state_machine_as_test(machine, settings=current)
