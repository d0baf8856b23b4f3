"""The table of a Future's life, against a model that was written without looking at it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import ClassVar, Optional

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jobserver.lifecycle import Effect, Event, IllegalEvent, State, diagram, step


class Life(RuleBasedStateMachine):
    """Any events in any order, legal or not."""

    visited: ClassVar[Counter[tuple[State, Event]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.state = State.RUNNING
        # The model: four facts, each of which becomes true once, in this order.
        self.settled = self.reaped = self.returned = False

    @rule(event=st.sampled_from(Event))
    def happen(self, event: Event) -> None:
        self.visited[self.state, event] += 1
        expected = self.predict(event)
        if expected is None:
            before = self.state
            with pytest.raises(IllegalEvent):
                step(self.state, event)
            assert self.state is before
            return
        transition = step(self.state, event)
        self.state = transition.state
        assert list(transition.effects) == expected

    def predict(self, event: Event) -> Optional[list[Effect]]:
        """The effects, in their order; None when the event cannot happen now."""
        seen = not self.reaped or self.returned  # an instant between the two, no user can see
        running = not self.reaped
        effects: dict[Event, tuple[bool, list[Effect]]] = {
            Event.DELIVERED: (not self.settled, [Effect.CLOSE_CHANNEL, Effect.REAP]),
            Event.CLOSED: (not self.settled, [Effect.CLOSE_CHANNEL, Effect.REAP]),
            Event.EXITED: (
                self.settled and not self.reaped,
                [Effect.CLOSE_WORKER, Effect.RETURN_SLOT],
            ),
            Event.RETURNED: (self.reaped and not self.returned, [Effect.ANNOUNCE]),
            Event.SIGNAL: (seen, [Effect.KILL] if running else []),
            Event.REGISTER: (seen, [Effect.QUEUE] + ([] if running else [Effect.ISSUE])),
        }
        possible, expected = effects[event]
        if not possible:
            return None
        self.settled |= event in (Event.DELIVERED, Event.CLOSED)
        self.reaped |= event is Event.EXITED
        self.returned |= event is Event.RETURNED
        return expected

    @invariant()
    def the_state_says_what_has_happened(self) -> None:
        facts = (self.settled, self.reaped, self.returned)
        assert (
            self.state
            is {
                (False, False, False): State.RUNNING,
                (True, False, False): State.SETTLED,
                (True, True, False): State.REAPED,
                (True, True, True): State.DONE,
            }[facts]
        )


def test_any_life() -> None:
    Life.visited.clear()
    machine = Life.TestCase("runTest")
    machine.runTest()
    missed = set(itertools.product(State, Event)) - set(Life.visited)
    for (state, event), count in sorted(Life.visited.items(), key=str):
        print(f"{count:6} {state.value:8} {event.value}")
    assert not missed, f"never tried: {missed}"


def test_every_state_and_event_is_in_the_diagram() -> None:
    drawn = diagram()
    for state in State:
        assert state.value in drawn
    for event in Event:
        assert event.value in drawn
