"""Hypothesis machines that drive the library over doubles, beside models that foretell it.

    from hypothesis.stateful import run_state_machine_as_test
    from jobserver.testing.machines import Library

    run_state_machine_as_test(Library)

They drive the package in which they are: a copy under another name brings its own. When one finds
something, hypothesis prints the shortest program that shows it; it runs when it is pasted below

    from jobserver.testing.machines import *
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import os
import re
import signal
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Callable, ClassVar, Optional, TypeVar, cast

import attrs
from hypothesis import currently_in_test_context, target
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ..engine import Engine, advance_orphans
from ..errors import Blocked, CallbackRaised, LostResult
from ..future import Future
from ..lifecycle import Effect, Event, IllegalEvent, State, step
from ..protocols import Grant, Slot, SlotSource, Task
from ..resources import Resources
from ..run import Group
from ..server import Jobserver, share
from . import model as m
from .doubles import ENDINGS, PLACES, Deadlock, Place, Script, VirtualSlots, World, handle, perform
from .model import DEEDS, Callback, Gate, Reused

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

R = TypeVar("R")

__all__ = ("Callback", "Gate", "Library", "Life", "Reused", "Script", "Slots", "tally")

# What has been tried, by machine: (rule, what came of it), and how often. For reports.
tally: Counter[tuple[str, str, str]] = Counter()


class Life(RuleBasedStateMachine):
    """The table of a Future's life: any events in any order, legal or not."""

    visited: ClassVar[Counter[tuple[State, Event]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.state: State = State.RUNNING
        # The model: three facts, each of which becomes true once, in this order.
        self.settled: bool = False
        self.reaped: bool = False
        self.returned: bool = False

    @rule(event=st.sampled_from(Event))
    def happen(self, event: Event) -> None:
        self.visited[self.state, event] += 1
        expected = self.predict(event)
        tally["Life", event.value, "refused" if expected is None else "accepted"] += 1
        before = self.state
        try:
            transition = step(self.state, event)
        except IllegalEvent:
            assert expected is None, f"{event} is refused in {before}"
            assert self.state is before
            return
        assert expected is not None, f"{event} is accepted in {before}"
        self.state = transition.state
        effects = list(transition.effects)
        assert effects == expected, f"{event}: the effects are {effects}, not {expected}"

    def predict(self, event: Event) -> Optional[list[Effect]]:
        """The effects, in their order; None when the event cannot happen now."""
        seen = not self.reaped or self.returned  # an instant between the two, no user can see
        running = not self.reaped
        effects: dict[Event, tuple[bool, list[Effect]]] = {
            Event.DELIVERED: (not self.settled, [Effect.CLOSE_CHANNEL, Effect.REAP]),
            Event.CLOSED: (not self.settled, [Effect.CLOSE_CHANNEL, Effect.REAP]),
            Event.UNBEGUN: (not self.settled, [Effect.CLOSE_CHANNEL, Effect.RELAUNCH]),
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
        expected = {
            (False, False, False): State.RUNNING,
            (True, False, False): State.SETTLED,
            (True, True, False): State.REAPED,
            (True, True, True): State.DONE,
        }[facts]
        assert self.state is expected

    @classmethod
    def missed(cls) -> set[tuple[State, Event]]:
        """The pairs of state and event that were never tried."""
        return set(itertools.product(State, Event)) - set(cls.visited)


class Program:
    """A program of another kind, as it draws on slots by itself, and the slot on which it runs."""

    def __init__(self, slot: Slot, grant: Grant) -> None:
        self.slot = slot
        self.grant = grant
        self.tokens = 0
        self.inherited: list[int] = [os.dup(fd) for fd in grant.descriptors]

    def end(self) -> None:
        for fd in self.inherited:
            os.close(fd)


class Slots(RuleBasedStateMachine):
    """A source of slots, alone: the doubles' own; others put a subclass over another source."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: int = 0
        self.lends = True  # what this process runs on
        self.out: list[Slot] = []
        self.lent: Optional[Slot] = None
        self.closed: bool = False
        self.programs: list[Program] = []
        self.heirs: list[int] = []  # what those have that programs left behind
        self.missing: int = 0  # bytes that programs were killed with

    def make(self, count: int, inside: bool) -> SlotSource:
        """A new source; `inside`: this process runs on one of its slots."""
        self.world: World = World()
        return VirtualSlots(self.world, count, inside=inside)

    def readable(self) -> bool:
        """Whether a wait for a slot would end at once."""
        return self.world.readable(self.slots.fileno())

    @initialize(count=st.integers(1, 4), inside=st.sampled_from((True, False)))
    def begin(self, count: int, inside: bool) -> None:
        self.slots: SlotSource = self.make(count, inside)
        self.free: int = count - inside
        self.lendable: bool = inside and self.lends
        assert self.slots.count == count

    def tell(self, rule: str, outcome: object) -> None:
        self.uses += 1
        tally[type(self).__name__, rule, str(outcome)] += 1

    @rule()
    @precondition(lambda self: not self.closed)
    def take(self) -> None:
        slot = self.slots.take()
        assert (slot is not None) == (self.free > 0)
        self.tell("take", slot is not None)
        if slot is not None:
            self.free -= 1
            self.out.append(slot)

    @rule()
    @precondition(lambda self: not self.closed)
    def lend(self) -> None:
        slot = self.slots.lend()
        possible = self.lendable and self.lent is None
        assert (slot is not None) == possible
        self.tell("lend", slot is not None)
        self.lent = slot or self.lent

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.out and not self.closed)
    def give_back(self, which: int) -> None:
        self.slots.give_back(self.out.pop(which % len(self.out)))
        self.free += 1
        self.tell("give_back", "one of its own")

    @rule()
    @precondition(lambda self: self.lent is not None and not self.closed)
    def give_back_the_lent_one(self) -> None:
        assert self.lent is not None
        self.slots.give_back(self.lent)
        self.lent = None
        self.tell("give_back", "the lent one")

    @rule()
    @precondition(lambda self: not self.closed)
    def audit(self) -> None:
        recovered = self.slots.audit()
        assert recovered == self.recover()
        self.tell("audit", "some" if recovered else "none")

    def recover(self) -> int:
        """What comes free, if anybody looks now."""
        if self.programs or self.heirs:
            return 0
        found, self.missing = self.missing, 0
        self.free += found
        return found

    @rule(which=st.integers(0, 3), takes=st.integers(0, 3))
    @precondition(lambda self: self.out and self.slots.recovers and not self.closed)
    def run_a_program(self, which: int, takes: int) -> None:
        slot = self.out.pop(which % len(self.out))
        grant = self.slots.grant(slot)
        assert grant is not None, "nobody else is there to hinder it"
        program = Program(slot, grant)
        self.programs.append(program)
        program.tokens = min(takes, self.free)
        for _ in range(program.tokens):
            assert self.readable(), "a byte is missing"  # whose reader would wait for ever
            assert os.read(program.grant.read, 1)
        self.free -= program.tokens
        self.tell("run_a_program", f"takes {program.tokens}")

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: any(program.tokens for program in self.programs))
    def a_program_gives_a_byte_back(self, which: int) -> None:
        holders = [program for program in self.programs if program.tokens]
        program = holders[which % len(holders)]
        os.write(program.grant.write, b"!")
        program.tokens -= 1
        self.free += 1
        self.tell("a_program_gives_a_byte_back", "one of several" if program.tokens else "its last")

    @rule(which=st.integers(0, 3), heir=st.booleans())
    @precondition(lambda self: self.programs)
    def a_program_is_killed(self, which: int, heir: bool) -> None:
        program = self.programs.pop(which % len(self.programs))
        if heir:
            self.heirs.append(os.dup(program.inherited[-1]))
        self.missing += program.tokens
        self.end(program)
        self.free += 1
        self.recover()
        self.tell("a_program_is_killed", f"with {'some' if program.tokens else 'no'} bytes")

    def end(self, program: Program) -> None:
        program.end()
        self.slots.give_back(program.slot)
        self.slots.withdraw(program.grant)

    @rule()
    @precondition(lambda self: self.heirs)
    def an_heir_ends(self) -> None:
        os.close(self.heirs.pop())
        self.tell("an_heir_ends", "not the last" if self.heirs or self.programs else "the last")

    @rule()
    @precondition(lambda self: self.uses > 20 and self.is_unused())
    def close(self) -> None:
        self.slots.close()
        self.tell("close", "again" if self.closed else "first")
        self.closed = True

    def is_unused(self) -> bool:
        return not (self.out or self.lent or self.programs or self.heirs)

    @invariant()
    def slots_are_conserved(self) -> None:
        assert not self.slots.is_lent(None)
        assert not any(self.slots.is_lent(slot) for slot in self.out)
        assert self.lent is None or self.slots.is_lent(self.lent)
        if not self.closed:
            assert self.readable() == (self.free > 0)

    def teardown(self) -> None:
        if hasattr(self, "slots"):
            for slot in self.out:
                self.slots.give_back(slot)
            for program in self.programs:
                self.end(program)
            for heir in self.heirs:
                os.close(heir)
            if self.lent is not None:
                self.slots.give_back(self.lent)
            self.slots.close()


class Handle:
    """A handle of the library, and what the model knows of it."""

    def __init__(self, jobserver: Jobserver, told: m.Handle) -> None:
        self.jobserver = jobserver
        self.told = told


class Held:
    """A Future of the library, and the piece of work that the model has for it."""

    def __init__(self, future: Future[object], told: m.Piece) -> None:
        self.future = future
        self.told = told
        self.registered = 0  # callbacks


class Results:
    """An iterator of the library over a map's results, and the model's."""

    def __init__(self, iterator: Iterator[object], told: m.Map) -> None:
        self.iterator = iterator
        self.told = told


def with_handles(function: Callable[P, R]) -> Callable[P, R]:
    """A rule that needs a handle."""
    return precondition(lambda self: self.has_handles)(function)


def mark(name: str) -> None:
    """A preexec, told from others by its argument."""


SECONDS = st.sampled_from((0.0, 1.0, 0.25, 0.5, 2.0, 4.0))
TIMEOUTS: st.SearchStrategy[Optional[float]] = st.sampled_from((0.0, 1.0, 0.25, 4.0, None))

# Simplest first, for that is what a failure is reduced to. What one script seldom has is drawn
# together, as each draw takes longer than a step.
_TIMES = (0.0, 1.0, 0.25, 2.0, 8.0, None)
_RARE = (
    *[(0.0, 1, 0, 0)] * 5,
    *[(lingers, 1, 0, 0) for lingers in (0.5, 3.0)],
    *[(0.0, parts, 0, 0) for parts in (2, 4)],
    *[(0.0, 1, unbegun, 0) for unbegun in (1, 2)],
    (0.0, 1, 0, 100_000),
    (3.0, 2, 1, 100_000),
)
SCRIPTS = st.tuples(
    st.sampled_from(("value", *ENDINGS)), st.sampled_from(_TIMES), st.sampled_from(_RARE)
).map(lambda drawn: Script(drawn[0], drawn[1], *drawn[2]))

WORKERS = st.builds(
    Reused, max_tasks=st.sampled_from((None, 3, 2, 1)), idle=st.sampled_from((10.0, 1.0, 0.0))
)

ANSWERS: st.SearchStrategy[m.Answer] = st.sampled_from(
    (None, 0.25, 1.0, 0.0, "raises", "interrupts", "unfit")
)
GATES = st.builds(Gate, st.lists(ANSWERS, max_size=3).map(tuple))

CALLBACKS = st.builds(
    Callback, st.sampled_from(DEEDS), times=st.integers(0, 3), number=st.integers(0, 9)
)

SIGNALS = st.sampled_from(
    tuple(int(s) for s in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT))
)

SELDOM = Reused(max_tasks=2, idle=4.0)

ENV: Mapping[str, Optional[str]] = {"X": "0"}
ENVS = st.dictionaries(st.sampled_from("XY"), st.sampled_from(("1", "2", None)), min_size=1)

CHANGES: st.SearchStrategy[m.Change] = st.one_of(
    st.sampled_from(("copy", "preexec A", "preexec B")), ENVS, GATES, WORKERS
)


class Library(RuleBasedStateMachine):
    """The whole library in one process of a tree, over doubles: everything that a user can do.

    Each rule asks the model what will come of it, has the library do it, and compares; then the
    invariants compare everything that can be seen.
    """

    handles: Bundle[Handle] = Bundle("handles")
    futures: Bundle[Held] = Bundle("futures")
    maps: Bundle[Results] = Bundle("maps")

    found: ClassVar[Optional[str]] = None  # the rule that failed last, and how

    def __init__(self) -> None:
        super().__init__()
        self.world: World = World()
        self.log: list[m.Outcome] = []
        self.every_handle: list[Handle] = []
        self.every_map: list[Results] = []
        self.held: dict[int, Held] = {}  # the Futures that are kept, by number
        self.values: itertools.count[int] = itertools.count()
        self.threads: int = threading.active_count()
        self.step: str = "begin"  # the rule that was run last
        self.failed: bool = False
        self.has_handles: bool = True
        self.reached: set[tuple[str, object]] = set()
        self.descriptors: set[str] = _descriptors()
        self._warnings = warnings.catch_warnings(record=True)
        self.caught: list[warnings.WarningMessage] = self._warnings.__enter__()
        warnings.simplefilter("always")

    @initialize(target=handles, slots=st.integers(1, 3), inside=st.booleans(), workers=WORKERS)
    def begin(self, slots: int, inside: bool, workers: Reused) -> MultipleResults[Handle]:
        """With handles for fresh workers, for those that serve, and for those that seldom do."""
        self.model: m.Model = m.Model(slots, inside=inside)
        self.workers = workers
        self.every_handle += self._begin(slots, inside)
        return multiple(*self.every_handle)

    def _begin(self, slots: int, inside: bool) -> list[Handle]:
        self.slots: VirtualSlots = VirtualSlots(self.world, slots, inside=inside)
        root = handle(self.world, self.slots)
        resources, _ = share(root)
        self.resources: weakref.ReferenceType[Resources] = weakref.ref(resources)
        self.engine: Engine = resources.engine
        self.group: Group = resources.group
        plain = Handle(root, m.Handle(0))
        reusing = root.replace_workers(self.workers.max_tasks, self.workers.idle).revise_env(ENV)
        often = Handle(reusing, plain.told.derive(1, self.workers).derive(1, ENV))
        reusing = root.replace_workers(SELDOM.max_tasks, SELDOM.idle)
        return [plain, often, Handle(reusing, plain.told.derive(2, SELDOM))]

    # How things are compared.

    def both(
        self, step: str, foretold: Callable[[], object], done: Callable[[], object]
    ) -> m.Outcome:
        """Ask the model, then the library: what comes of it, which is the same."""
        self.step = step
        expected = what_comes_of(foretold)
        actual = what_comes_of(done)
        # Wherever an interrupt was placed, it has come by now or never will.
        for each in (self.model, self.world):
            each.interrupt(None)
            each.run_short(False)
        self.same("what came of it", actual, expected)
        self.reached.add((step, expected[0]))
        tally[type(self).__name__, step, str(expected[0])] += 1
        self.promises_are_kept()
        return expected

    def same(self, what: str, actual: object, foretold: object) -> None:
        if actual != foretold:
            self.failed = True
            text = f"{self.step}: {what} is {actual!r}, not {foretold!r}"
            type(self).found = text
            raise AssertionError(text)

    def promises_are_kept(self) -> None:
        """Compare all that can be seen. No invariant, lest it be in every line of a program."""
        world, told, slots = self.world, self.model, self.slots
        self.same("what was breached", world.breaches, [])
        self.same("the time", world.now, told.now)
        self.same("what callbacks and gates saw", self.log, told.log)
        self.same("the number of free slots", slots.free, told.free)
        self.same("the number of workers", len(world.workers), len(told.workers))
        begun = [(each.pid, each.values, *settings_of(each.task)) for each in world.begun]
        # What is begun at one moment is so in no order, but for what one worker begins.
        self.same("what was begun", sorted(begun, key=_first), sorted(told.begun, key=_first))
        self.same("what is open", len(world.descriptors), told.descriptors)
        on_slots = sum(slot is not None for slot in world.receipts.values())
        self.same("how many receipts tell of a slot", on_slots, told.receipts)
        self.same("whether the slots are closed", slots.closed, told.released)
        for held in self.held.values():
            self.same("the repr", repr(held.future), held.told.describe())
        self.same("what was warned of", [warned_of(each) for each in self.caught], told.warned)
        self.same("the number of threads", threading.active_count(), self.threads)
        for seen in (self.log, told.log, self.caught, told.warned, world.begun, told.begun):
            seen.clear()
        for what, count in told.reached.items():
            tally[type(self).__name__, "a worker that serves", what] += count
        told.reached.clear()

    # Handles.

    @rule(target=handles, base=handles, change=CHANGES)
    @with_handles
    def derive(self, base: Handle, change: m.Change) -> Handle:
        return self._derived(base, change)

    def _derived(self, base: Handle, change: m.Change) -> Handle:
        told = base.told.derive(len(self.every_handle), change)
        made: list[Jobserver] = []

        def derive() -> None:
            made.append(self._derive(base, change, told))

        def foretold() -> None:
            if change != "copy":
                self.model.check_open()

        self.both("derive", foretold, derive)
        if not made:
            return base
        self.every_handle.append(Handle(made[0], told))
        return self.every_handle[-1]

    def _derive(self, base: Handle, change: m.Change, told: m.Handle) -> Jobserver:
        if isinstance(change, Gate):
            return base.jobserver.replace_sleep(self._gate(told.number, change))
        if isinstance(change, Reused):
            return base.jobserver.replace_workers(change.max_tasks, change.idle)
        if isinstance(change, str):
            copied = change == "copy"
            js = base.jobserver
            return copy.copy(js) if copied else js.replace_preexec(mark, change)
        return base.jobserver.revise_env(change)

    def _gate(self, number: int, gate: Gate) -> Callable[[], Optional[float]]:
        answers = list(gate.answers)

        def ask() -> Optional[float]:
            self.log.append(("gate", number, self.slots.free, self.world.now))
            answer = answers.pop(0) if answers else None
            if answer == "raises":
                raise LookupError("the gate")
            if answer == "interrupts":
                raise KeyboardInterrupt
            return True if answer == "unfit" else answer

        return ask

    @rule(handle=handles)
    @with_handles
    def enter(self, handle: Handle) -> None:
        def enter() -> None:
            handle.jobserver.__enter__()

        self.both("enter", self.model.enter, enter)

    @rule(handle=handles)
    @with_handles
    @precondition(lambda self: self.model.entries > 0)
    def leave(self, handle: Handle) -> None:
        self.both("leave", self.model.exit, lambda: handle.jobserver.__exit__(None, None, None))

    @rule(handle=handles)
    @with_handles
    def reclaim(self, handle: Handle) -> None:
        self.both("reclaim", self.model.reclaim, handle.jobserver.reclaim_resources)

    @rule(handle=handles, timeout=TIMEOUTS)
    @with_handles
    def drain(self, handle: Handle, timeout: Optional[float]) -> None:
        told = functools.partial(self.model.drain, timeout)
        self.both("drain", told, lambda: handle.jobserver.drain(timeout))

    @rule()
    @precondition(lambda self: self.has_handles and self.model.submitted > 3)
    def forget_all_handles(self) -> None:
        """Nobody has a handle any more, nor the iterator of a map."""
        self._forget()

    def _forget(self) -> None:
        self.interrupt(None)
        for results in list(self.every_map):
            self._abandon(results)
        self.has_handles = False

        def forget() -> None:
            for each in self.every_handle:
                del each.jobserver

        self.both("forget_all_handles", self.model.forget, forget)

    @rule()
    @precondition(lambda self: self.model.closed)
    def begin_again(self) -> None:
        """When all of the old is over, new slots and handles take the place of the old ones."""
        self._finish()
        self.model = self.model.successor()
        made = self._begin(self.model.slots, self.model.inside)
        for number, each in enumerate(self.every_handle):
            each.jobserver = made[number % len(made)].jobserver
            each.told = made[number % len(made)].told
        self.has_handles = True

    def _finish(self) -> None:
        """All work ends, everybody learns of it, and nothing is left."""
        self.interrupt(None)
        self.run_short(False)

        def foretold() -> None:
            if not self.model.released:
                self.model.look()

        for _ in range(2):  # as what was not begun is given to others
            self.advance(16.0)  # strangers are back
            while self.model.living:
                self.kill(0, signal.SIGKILL)
            # What the making of any Jobserver does for those that nobody has any more.
            self.both("finish", foretold, advance_orphans)
        for held in list(self.held.values()):
            while held.told.callbacks:
                self._done("finish", held, 0)
        self.same("what is left open", self.world.descriptors, {})
        self.same("what is left open of the kernel's", _descriptors(), self.descriptors)

    # Submissions.

    @rule(
        target=futures,
        handle=handles,
        script=SCRIPTS,
        consume=st.sampled_from((1, 1, 0)),
        timeout=TIMEOUTS,
    )
    @with_handles
    def submit(
        self, handle: Handle, script: Script, consume: int, timeout: Optional[float]
    ) -> MultipleResults[Held]:
        return self._submit_once(handle, script, consume, timeout)

    @rule(
        target=futures,
        base=handles,
        gate=GATES,
        script=SCRIPTS,
        consume=st.sampled_from((1, 1, 0)),
        timeout=TIMEOUTS,
    )
    @with_handles
    def submit_through_a_gate(
        self, base: Handle, gate: Gate, script: Script, consume: int, timeout: Optional[float]
    ) -> MultipleResults[Held]:
        """One that has not been asked before: it soon has no more to say."""
        return self._submit_once(self._derived(base, gate), script, consume, timeout)

    def _submit_once(
        self, handle: Handle, script: Script, consume: int, timeout: Optional[float]
    ) -> MultipleResults[Held]:
        value = next(self.values)
        submit = functools.partial(
            handle.jobserver.submit,
            perform,
            args=(script, value),
            consume=consume,
            timeout=timeout,
        )
        calls = [(script, value)]
        return self._submit("submit", handle, calls, submit, consume=consume, timeout=timeout)

    @rule(target=futures, handle=handles, script=SCRIPTS)
    @with_handles
    def call(self, handle: Handle, script: Script) -> MultipleResults[Held]:
        return self._call("call", handle, script)

    @rule(target=futures, handle=handles, script=SCRIPTS, consume=st.sampled_from((1, 1, 0)))
    @with_handles
    def saturate(self, handle: Handle, script: Script, consume: int) -> MultipleResults[Held]:
        """Unbounded submissions, one more than there are slots."""
        made = [
            self._call("saturate", handle, script, consume) for _ in range(self.model.slots + 1)
        ]
        return multiple(*(held for each in made for held in each.values))

    @rule(target=futures, handle=handles, script=SCRIPTS, signum=SIGNALS)
    @with_handles
    def call_and_signal(self, handle: Handle, script: Script, signum: int) -> MultipleResults[Held]:
        """Its worker may not have begun it."""
        made = self._call("call_and_signal", handle, script)
        for held in made.values:
            self._wait("call_and_signal", held, 0, signum)
        return made

    @rule(target=futures, handle=handles, scripts=st.lists(SCRIPTS, min_size=2, max_size=4))
    @with_handles
    def one_after_another(self, handle: Handle, scripts: list[Script]) -> MultipleResults[Held]:
        """Whoever has served one of them may serve the next."""
        kept: list[Held] = []
        for script in scripts:
            made = self._call("one_after_another", handle, script)
            for held in made.values:
                self._done("one_after_another", held, 4.0)
                kept.append(held)
        return multiple(*kept)

    def _call(
        self, step: str, handle: Handle, script: Script, consume: int = 1
    ) -> MultipleResults[Held]:
        value = next(self.values)
        calls = [(script, value)]
        js = handle.jobserver
        if consume:
            return self._submit(step, handle, calls, lambda: js(perform, script, value))
        submit = functools.partial(js.submit, perform, args=calls[0], consume=0)
        return self._submit(step, handle, calls, submit, consume=0)

    def _submit(
        self,
        step: str,
        handle: Handle,
        calls: Sequence[tuple[Script, object]],
        submit: Callable[[], Future[object]],
        *,
        consume: int = 1,
        timeout: Optional[float] = None,
    ) -> MultipleResults[Held]:
        pieces: list[m.Piece] = []
        made: list[Future[object]] = []

        def foretold() -> None:
            pieces.append(self.model.submit(handle.told, calls, consume, timeout))

        self.both(step, foretold, lambda: made.append(submit()))
        kept = [Held(future, piece) for future, piece in zip(made, pieces)]
        self.held.update((held.told.number, held) for held in kept)
        return multiple(*kept)

    # Maps.

    @rule(
        target=maps,
        handle=handles,
        scripts=st.lists(SCRIPTS, max_size=6),
        timeout=st.sampled_from((None, 0.0, 1.0, 4.0)),
        chunksize=st.sampled_from((1, 1, 2, 3)),
        buffersize=st.sampled_from((None, 1, 2)),
    )
    @with_handles
    def map(
        self,
        handle: Handle,
        scripts: list[Script],
        timeout: Optional[float],
        chunksize: int,
        buffersize: Optional[int],
    ) -> MultipleResults[Results]:
        calls = [(script, next(self.values)) for script in scripts]
        told: list[m.Map] = []
        made: list[Iterator[object]] = []

        def foretold() -> None:
            told.append(
                m.Map(
                    self.model,
                    handle.told,
                    calls,
                    timeout=timeout,
                    chunksize=chunksize,
                    buffersize=buffersize,
                )
            )

        def submit() -> None:
            iterator = handle.jobserver.map(
                perform, calls, timeout=timeout, chunksize=chunksize, buffersize=buffersize
            )
            made.append(iterator)

        self.both("map", foretold, submit)
        results = [Results(*each) for each in zip(made, told)]
        self.every_map += results
        return multiple(*results)

    @rule(results=maps)
    def next_of_map(self, results: Results) -> None:
        self._next_of_map("next_of_map", results)

    def _next_of_map(self, step: str, results: Results) -> m.Outcome:
        return self.both(step, results.told.next, lambda: next(results.iterator))

    @rule(results=maps)
    def rest_of_map(self, results: Results) -> None:
        for _ in range(6):
            what = self._next_of_map("rest_of_map", results)
            if what[0] in ("StopIteration", "Blocked", "Deadlock"):
                break

    @rule(results=consumes(maps))
    def abandon_map(self, results: Results) -> None:
        if results in self.every_map:
            self._abandon(results)

    def _abandon(self, results: Results) -> None:
        def abandon() -> None:
            results.iterator = iter(())

        self.interrupt(None)
        self.every_map.remove(results)
        self.both("abandon_map", results.told.abandon, abandon)

    # Futures.

    @rule(held=futures, timeout=TIMEOUTS)
    def done(self, held: Held, timeout: Optional[float]) -> None:
        self._done("done", held, timeout)

    def _done(self, step: str, held: Held, timeout: Optional[float]) -> None:
        told = functools.partial(self.model.done, held.told, timeout)
        self.both(step, told, lambda: held.future.done(timeout))

    @rule(held=futures, timeout=TIMEOUTS, signum=st.one_of(st.none(), SIGNALS))
    def wait(self, held: Held, timeout: Optional[float], signum: Optional[int]) -> None:
        self._wait("wait", held, timeout, signum)

    def _wait(self, step: str, held: Held, timeout: Optional[float], signum: Optional[int]) -> None:
        told = functools.partial(self.model.wait, held.told, timeout, signum)
        self.both(step, told, lambda: held.future.wait(timeout, signal=signum))

    @rule(held=futures, timeout=TIMEOUTS)
    def result(self, held: Held, timeout: Optional[float]) -> None:
        told = functools.partial(self.model.result, held.told, timeout)
        self.both("result", told, lambda: held.future.result(timeout))

    @rule(held=futures, callback=CALLBACKS)
    def when_done(self, held: Held, callback: Callback) -> None:
        def register() -> int:
            return self._register(held, callback)

        told = functools.partial(self.model.when_done, held.told, callback)
        what = self.both("when_done", told, register)
        tally[type(self).__name__, "callback " + callback.deed, str(what[0])] += 1

    def _register(self, held: Held, callback: Callback) -> int:
        held.registered += 1
        number = held.told.number
        return held.future.when_done(self._called, number, held.registered - 1, callback=callback)

    def _called(self, number: int, seqno: int, *, callback: Callback) -> None:
        """What every callback does. It keeps no Future."""
        self.log.append(("callback", number, seqno, self.slots.free, self.world.now))
        deed = callback.deed
        held = self.held.get(number)
        if deed == "raises":
            raise LookupError("the callback")
        if deed == "claims":
            raise CallbackRaised(77) from LookupError("the claim")
        if deed == "interrupts":
            raise KeyboardInterrupt
        if deed == "registers" and callback.times and held is not None:
            self._register(held, attrs.evolve(callback, times=callback.times - 1))
        if deed == "elsewhere" and callback.number in self.held:
            self._register(self.held[callback.number], Callback())
        if deed == "asks" and held is not None:
            held.future.done()
        if deed == "submits":
            self._submit_from_callback(callback)
        if deed == "drains":
            self._any_handle().drain(0)

    def _any_handle(self) -> Jobserver:
        if not self.has_handles:
            raise RuntimeError("the Jobserver is closed")  # as it would say
        return self.every_handle[0].jobserver

    def _submit_from_callback(self, callback: Callback) -> None:
        js = self._any_handle()
        js = js.replace_workers() if callback.number % 2 else js
        future = js.submit(perform, args=(Script(), m.INNER), timeout=0)
        piece = self.model.inner.popleft()
        self.held[piece.number] = Held(future, piece)

    @rule(held=consumes(futures))
    def drop(self, held: Held) -> None:
        def drop() -> None:
            del held.future, self.held[held.told.number]

        self.both("drop", functools.partial(self.model.drop, held.told), drop)

    # The world.

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.step = "advance"
        self.world.advance(seconds)
        self.model.advance(seconds)

    @rule()
    def go_on(self) -> None:
        """All work that stalls goes on."""
        self.step = "go_on"
        for worker in self.world.living:
            worker.fate.go_on(self.world.now)
        self.model.go_on()

    @rule(number=st.integers(0, 5), signum=SIGNALS)
    def kill(self, number: int, signum: int) -> None:
        """Somebody else sends a signal to one of the workers that live."""
        self.step = "kill"
        living = self.world.living
        if living:
            living[number % len(living)].suffer(signum)
        self.model.signal(number, signum)

    @rule(seconds=TIMEOUTS)
    @precondition(lambda self: not self.model.released and self.model.free > 0)
    def stranger_takes(self, seconds: Optional[float]) -> None:
        """Another process takes a slot, for so many seconds or until it is told."""
        self.step = "stranger_takes"
        self.slots.stranger_takes()
        self.model.stranger_takes()
        if seconds is not None:
            self.world.later(seconds, self.slots.stranger_returns)
            self.model.stranger_will_return(seconds)

    @rule()
    @precondition(lambda self: self.model.staying > 0)
    def stranger_returns(self) -> None:
        self.step = "stranger_returns"
        self.slots.stranger_returns()
        self.model.stranger_returns()

    @rule(place=st.sampled_from(PLACES))
    def interrupt(self, place: Optional[Place]) -> None:
        """SIGINT arrives at the next call of this kind, if the next rule makes one."""
        self.step = "interrupt"
        self.world.interrupt(place)
        self.model.interrupt(place)

    @rule(short=st.just(True))
    def run_short(self, short: bool) -> None:
        """The next worker that the next rule starts cannot be started."""
        self.step = "run_short"
        self.world.run_short(short)
        self.model.run_short(short)

    def teardown(self) -> None:
        try:
            if not self.failed and self.step != "begin":
                if self.has_handles:
                    self._forget()
                self._finish()
                if currently_in_test_context():  # and not in a program that somebody has pasted
                    target(float(len(self.reached)), label="different things that came of rules")
        except BaseException:
            self.failed = True
            raise
        finally:
            if self.failed:
                self._leave_nothing()
            self._warnings.__exit__(None, None, None)

    def _leave_nothing(self) -> None:
        """After a failure: what is left must not warn, nor wait, in the middle of another run."""
        for worker in self.world.living:
            worker.suffer(signal.SIGKILL)
        resources = self.resources()
        # Descriptors of the kernel's; whatever has failed may do so again.
        if resources is not None:
            with contextlib.suppress(Exception, Deadlock):
                resources.crew.close()
            resources.crew.after_fork()
        # As in a fork: its runs are another's, or they would be waited for at the end.
        for run in self.group.tracked:
            run.owner_pid = 0
            with contextlib.suppress(Exception):
                run.worker.close()
        self.engine.after_fork()
        if resources is not None:
            resources.closed = True
        for results in self.every_map:
            results.iterator = iter(())
        for owner in (*self.every_handle, *self.held.values()):
            vars(owner).clear()
        del resources
        if self.resources() is not None:
            gc.collect()


def what_comes_of(call: Callable[[], object]) -> m.Outcome:
    """What a call returns or raises, in words that can be compared."""
    try:
        return "value", call()
    except m.Foretold as foretold:
        return foretold.what
    except BaseException as error:
        return name_of(error)


def name_of(error: BaseException) -> m.Outcome:
    """What is compared of an exception: what users can rely on."""
    name = type(error).__name__
    text = str(error)
    cause = None if error.__cause__ is None else type(error.__cause__).__name__
    if isinstance(error, CallbackRaised):
        inner = None if error.__cause__ is None else name_of(error.__cause__)
        return name, error.seqno, inner
    if isinstance(error, LostResult):
        return name, error.pid, error.exitcode, cause
    if isinstance(error, (Blocked, Deadlock, KeyboardInterrupt, StopIteration)):
        return (name,)
    for phrase, known in PHRASES.items():
        if phrase in text:
            return name, known
    return (name, *error.args, cause) if cause else (name, *error.args)


# Parts of texts, and what the model calls them.
PHRASES = {
    "Jobserver is closed": "closed",
    "its script says so": "refused",
    "the world says so": "short",
    "not picklable": "not picklable",
    "not reconstructable": "not reconstructable",
    "given to replace_sleep must": "the gate",
}


def settings_of(task: Task) -> m.Outcome:
    """The env, and the argument with which `mark` would be called as preexec."""
    preexec = task.call[0]
    marked = preexec.args[0] if isinstance(preexec, functools.partial) else None
    return tuple(task.env), marked


def _first(begun: m.Outcome) -> int:
    return cast("int", begun[0])


def _descriptors() -> set[str]:
    """What this process has open, but for the descriptor of the listing itself."""
    return {fd for fd in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{fd}")}


def warned_of(warning: warnings.WarningMessage) -> m.Outcome:
    text = str(warning.message)
    for found in (
        re.search(r"suppressed CallbackRaised\(seqno=(\d+)\)", text),
        re.search(r"with (\d+) running Futures", text),
    ):
        if found is not None:
            return warning.category.__name__, int(found[1])
    found = re.search(r"Callbacks of (a|\d+) Futures? can no longer run", text)
    lost = [f"callbacks of {found[1].replace('a', '1')}"] if found else []
    if text.startswith("Dropping Future("):
        return warning.category.__name__, "dropped", *lost
    return (warning.category.__name__, *(lost or [text]))
