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


def test_a_signal_reaches_the_worker_that_takes_over(machines: ModuleType) -> None:
    """The first died before it had begun, and only a finalizer has noticed that."""
    state = machines.Library()
    try:
        *_, handle = state.begin(slots=1, inside=False, workers=machines.Reused())
        script = machines.Script(unbegun=1)
        (future,) = state.submit(consume=1, handle=handle, script=script, timeout=0.0)
        state.forget_all_handles()
        state.wait(held=future, signum=15, timeout=0.0)
    finally:
        state.teardown()
