"""A Future's life: every state, every event and every transition, as one table.

Everything that decides what happens next is in this file, and nothing in this file happens: no
I/O, no clock, no lock. `run` carries out the effects that a transition returns, in their order,
and tells the table what came of them as the next event.

The order that users rely on is the order of the states. The result settles first; then the worker
is reaped and its descriptors are closed; then its slot goes back; then, and only then, callbacks
run. So a callback can submit new work even when there is one slot.

Two things may surprise. A worker's death is no event while it is RUNNING: the result channel is
the contract, and a worker that died has closed it, unless a process that it left behind holds it
open on purpose. And SETTLED lasts until the worker is gone, since a worker that has answered may
still be running its exit handlers.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

import attrs


class State(enum.Enum):
    """Where a Future is."""

    RUNNING = "running"  # the worker has the work
    SETTLED = "settled"  # the result is known, the worker still there
    REAPED = "reaped"  # the worker is gone and its descriptors are closed
    DONE = "done"  # the slot is back


class Event(enum.Enum):
    """What can happen to it."""

    DELIVERED = "delivered"  # the channel delivered a whole frame
    CLOSED = "closed"  # the channel closed before the end of a frame
    UNBEGUN = "unbegun"  # it closed, and the work had not begun
    EXITED = "exited"  # the worker was seen to be gone
    RETURNED = "returned"  # the slot went back
    SIGNAL = "signal"  # the user wants a signal sent to the worker
    REGISTER = "register"  # the user registers a callback


class Effect(enum.Enum):
    """What has to be done in the world, in the order given."""

    CLOSE_CHANNEL = "close channel"
    RELAUNCH = "relaunch"  # have another worker for the work
    REAP = "reap"  # now if it has exited, else as soon as it has
    CLOSE_WORKER = "close worker"
    RETURN_SLOT = "return slot"
    ANNOUNCE = "announce"  # whoever waits may see it; callbacks are due
    KILL = "send signal"
    QUEUE = "queue callback"
    ISSUE = "issue callbacks"


@attrs.frozen
class Transition:
    """Where an event leads, and what has to be done on the way."""

    state: State
    effects: tuple[Effect, ...] = ()


class IllegalEvent(Exception):
    """The table has no such event in this state: a bug in this library, never the user's."""


_SETTLE: Final = Transition(State.SETTLED, (Effect.CLOSE_CHANNEL, Effect.REAP))

TABLE: Final = MappingProxyType(
    {
        State.RUNNING: {
            Event.DELIVERED: _SETTLE,
            Event.CLOSED: _SETTLE,
            Event.UNBEGUN: Transition(State.RUNNING, (Effect.CLOSE_CHANNEL, Effect.RELAUNCH)),
            Event.SIGNAL: Transition(State.RUNNING, (Effect.KILL,)),
            Event.REGISTER: Transition(State.RUNNING, (Effect.QUEUE,)),
        },
        State.SETTLED: {
            Event.EXITED: Transition(State.REAPED, (Effect.CLOSE_WORKER, Effect.RETURN_SLOT)),
            Event.SIGNAL: Transition(State.SETTLED, (Effect.KILL,)),
            Event.REGISTER: Transition(State.SETTLED, (Effect.QUEUE,)),
        },
        State.REAPED: {
            Event.RETURNED: Transition(State.DONE, (Effect.ANNOUNCE,)),
        },
        State.DONE: {
            Event.SIGNAL: Transition(State.DONE),
            Event.REGISTER: Transition(State.DONE, (Effect.QUEUE, Effect.ISSUE)),
        },
    }
)


def step(state: State, event: Event) -> Transition:
    """What `event` does in `state`. IllegalEvent when the state does not accept it."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise IllegalEvent(
            f"{event.value!r} cannot happen to a Future that is {state.value}"
        ) from None


def diagram() -> str:
    """The table as a Mermaid state diagram, as ARCHITECTURE.md shows it."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.RUNNING.value}"]
    for state, row in TABLE.items():
        for event, transition in row.items():
            effects = "".join(f"<br/>{effect.value}" for effect in transition.effects)
            lines.append(f"    {state.value} --> {transition.state.value}: {event.value}{effects}")
    lines.append(f"    {State.DONE.value} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
