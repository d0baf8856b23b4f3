"""Tier 3: slots and Futures over real processes; a model predicts who is refused and when."""

from __future__ import annotations

import copy
import shutil
import signal
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.work import PATIENCE, Gate, pass_gate, raise_value_error

SLOTS = 3


class Held:
    """Work that runs until the machine lets it go, and what the model knows of it."""

    def __init__(self, future: Any, gate: Gate, value: int, consume: int) -> None:
        self.future = future
        self.gate = gate
        self.value = value
        self.consume = consume
        self.called: list[int] = []
        self.registered = 0


class Tree(RuleBasedStateMachine):
    """One process's view: submissions, endings of every kind, callbacks, handles."""

    running = Bundle("running")
    method = "fork"
    subject: ClassVar[Any]  # the package

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.js = self.subject.Jobserver(self.method, SLOTS)
        self.handles = [self.js]
        self.held: list[Held] = []
        self.count = 0

    def taken(self) -> int:
        return sum(held.consume for held in self.held)

    @rule(
        target=running,
        which=st.integers(0, 5),
        consume=st.sampled_from([0, 1, 1, 1]),
        callbacks=st.integers(0, 2),
    )
    @precondition(lambda self: self.taken() < SLOTS and len(self.held) < 6)
    def submit(self, which: int, consume: int, callbacks: int) -> Held:
        """There is a slot, so it is accepted at once."""
        self.count += 1
        gate = Gate(self.directory, str(self.count))
        js = self.handles[which % len(self.handles)]
        future = js.submit(pass_gate, args=(gate.path, self.count), consume=consume, timeout=0)
        held = Held(future, gate, self.count, consume)
        for _ in range(callbacks):
            assert future.when_done(held.called.append, held.registered) == held.registered
            held.registered += 1
        self.held.append(held)
        return held

    @rule(timeout=st.sampled_from([0, 0.001]))
    @precondition(lambda self: self.taken() == SLOTS)
    def submit_to_a_full_tree(self, timeout: float) -> None:
        with pytest.raises(self.subject.Blocked):
            self.js.submit(pass_gate, args=("never",), timeout=timeout)

    @rule(held=consumes(running))
    def finish(self, held: Held) -> None:
        held.gate.open()
        assert held.future.result(PATIENCE) == held.value
        self.ended(held)

    @rule(held=consumes(running), signum=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def kill(self, held: Held, signum: signal.Signals) -> None:
        assert held.future.wait(PATIENCE, signal=signum)
        with pytest.raises(self.subject.LostResult) as caught:
            held.future.result()
        assert caught.value.exitcode == -signum
        self.ended(held)

    @rule(held=consumes(running))
    def stop_and_continue(self, held: Held) -> None:
        assert not held.future.wait(0, signal=signal.SIGSTOP)
        held.gate.open()
        assert not held.future.done(0.01)
        assert held.future.wait(PATIENCE, signal=signal.SIGCONT)
        assert held.future.result() == held.value
        self.ended(held)

    def ended(self, held: Held) -> None:
        """Callbacks ran once each, in order; then nothing of it is left."""
        assert held.called == list(range(held.registered))
        assert held.future.when_done(held.called.append, -1) == held.registered
        assert held.called[-1] == -1
        held.gate.__exit__(None, None, None)
        self.held.remove(held)

    @rule()
    @precondition(lambda self: self.taken() < SLOTS)
    def fail(self) -> None:
        future = self.js.submit(raise_value_error, args=("as told",), timeout=0)
        for _ in range(2):
            with pytest.raises(ValueError, match="as told"):
                future.result(PATIENCE)

    @rule(name=st.sampled_from(["copy", "env"]))
    def derive(self, name: str) -> None:
        new = copy.copy(self.js) if name == "copy" else self.js.revise_env({"X": "1"})
        self.handles = [*self.handles[-3:], new]

    @rule()
    def enter_and_leave_inner_scopes(self) -> None:
        with self.js:
            with copy.copy(self.js):
                pass
            self.js.reclaim_resources()
            # The outer scope is the machine's own handle, entered again so that it stays open.
            self.js.__enter__()
        self.js.reclaim_resources()
        self.js.__enter__()

    @invariant()
    def what_runs_is_tracked(self) -> None:
        assert f"tracked={len(self.held)}" in repr(self.js)
        for held in self.held:
            assert not held.future.done()
            assert held.called == []

    def teardown(self) -> None:
        for held in list(self.held):
            self.finish(held)
        # All slots are back, and there is not one too many.
        with Gate(self.directory, "last") as gate:
            futures = [
                self.js.submit(pass_gate, args=(gate.path,), timeout=0) for _ in range(SLOTS)
            ]
            with pytest.raises(self.subject.Blocked):
                self.js.submit(pass_gate, args=(gate.path,), timeout=0)
            gate.open()
            for future in futures:
                assert future.wait(PATIENCE)
        shutil.rmtree(self.directory)


def test_any_schedule(method: str, subject: ModuleType) -> None:
    machine = type("Tree", (Tree,), {"method": method, "subject": subject})
    # A process costs from a millisecond under fork to a tenth of a second under spawn.
    current = settings()
    if method != "fork":
        current = settings(current, max_examples=max(1, current.max_examples // 4))
    run_state_machine_as_test(machine, settings=settings(current, stateful_step_count=20))
