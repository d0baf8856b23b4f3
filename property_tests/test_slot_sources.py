"""Tier 1: the accounting of slots, of the pool and of its double, against a model that predicts."""

from __future__ import annotations

import importlib
import select
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test


def over_the_pool(subject: ModuleType, machines: Any) -> Any:
    """The machine of a source of slots, over the library's own."""
    pool = importlib.import_module(f"{subject.__name__}.slots").SlotPool

    class Pool(machines.Slots):  # type: ignore[misc]  # of whichever subject
        def make(self, count: int, inside: bool) -> object:
            # This process runs on no slot: one is taken in the place of its own.
            made = pool.create(count)
            self.lends = False
            if inside:
                self.out.append(made.take())
            return made

        def readable(self) -> bool:
            return bool(select.select([self.slots.fileno()], [], [], 0)[0])

    return Pool


@pytest.mark.parametrize("source", ["pool", "double"])
def test_any_use(source: str, subject: ModuleType, machines: Any) -> None:
    machine = machines.Slots if source == "double" else over_the_pool(subject, machines)
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=50))
