"""Hypothesis machines over real processes: trees of puppets, beside a model that foretells.

    from hypothesis.stateful import run_state_machine_as_test
    from jobserver.testing.trees import Forked

    run_state_machine_as_test(Forked)

`Forked`, `Spawned` and `Served` (by a forkserver) are one machine, `Trees`. What it knows of the
processes it has from the kernel: bytes in the pipe of tokens, children and zombies, threads,
descriptors. A failure is a program that runs when it is pasted below

    from jobserver.testing.trees import *

Linux only. Nothing is left to chance: every puppet waits for its next command, so the model knows
who holds which slot. Where several might have a slot that comes free, it is kept from happening.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, ClassVar, Final, Optional

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ..protocols import Kernel
from ..server import Jobserver, share
from ..slots import SlotPool
from .machines import tally
from .processes import adopt_orphans, children_of, reap_orphans, stat_of
from .puppets import EXITCODE, HUGE, PATIENCE, Outcome, Stage, Voice, close, listen

__all__ = ("MACHINES", "Forked", "Served", "Spawned", "Trees")

_DEPTH: Final = 3  # of a tree, below the root
_THREADS: Final = 2  # of a member, beside its main one
_PAUSE: Final = 0.0005  # seconds between two looks at the kernel

_addresses = itertools.count()


@attrs.define(eq=False, repr=False)
class Member:
    """A process of the tree, and what the model knows of it. The root is the machine's own."""

    number: int
    parent: Optional[Member]
    consume: int = 0
    calls: list[object] = attrs.field(factory=list[object])  # what its callbacks will have noted
    unit: Optional[Unit] = None  # the slot that it runs on
    pid: int = 0
    pidfd: int = -1
    voice: Optional[Voice] = None
    children: list[Member] = attrs.field(factory=list["Member"])
    claim: Optional[Claim] = None  # what keeps it from obeying
    threads: list[Thread] = attrs.field(factory=list["Thread"])
    born: bool = True  # its submission has been accepted
    stopped: bool = False
    leaving: bool = False  # it has answered, and waits for its children
    ended: bool = False
    done: bool = False  # its submitter has reaped it
    seen: bool = False  # and the machine has seen what came of it
    fate: Outcome = ()  # what comes of it

    def __repr__(self) -> str:
        return f"state.members[{self.number}]"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))  # hypothesis would print all attributes

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def obeys(self) -> bool:
        idle = self.claim is None and not self.stopped
        return self.born and idle and not self.leaving and not self.ended

    @property
    def orphaned(self) -> bool:
        return self.parent is not None and self.parent.ended

    @property
    def looks(self) -> bool:
        """Whether something in it waits, and so moves along whatever ends."""
        return self.leaving or self.claim is not None or bool(self.threads)

    @property
    def is_outlived(self) -> bool:
        """Whether it ran on the slot of its submitter, and lent it to one that still does."""
        unit = self.unit
        return unit is not None and unit.chain[0] is not self and bool(unit.below(self))

    @property
    def unfinished(self) -> list[Member]:
        return [child for child in self.children if not child.done]

    @property
    def unseen(self) -> list[Member]:
        """Children that have ended, unknown to the machine until their parent is asked."""
        return [child for child in self.children if child.ended and not child.seen]


@attrs.define(eq=False)
class Unit:
    """A slot in use: by the first that ran on it, by whom that lent it to, and so on."""

    chain: list[Member]

    @property
    def in_use(self) -> bool:
        first = self.chain[0]
        assert first.parent is not None
        kept = not first.done and not first.parent.ended
        return kept or any(not member.ended for member in self.chain)

    def below(self, member: Member) -> list[Member]:
        """Who runs deeper on it than a member."""
        deeper = self.chain[self.chain.index(member) + 1 :]
        return [other for other in deeper if not other.ended]


@attrs.define(eq=False)
class Claim:
    """A call of `submit` that has not returned."""

    by: Member
    member: Member  # whom it submits
    thread: Optional[Thread]  # that calls, if it is not the main one
    lent: bool  # the slot of the submitter; else it waits for one, and nothing runs


@attrs.define(eq=False)
class Thread:
    """A thread of a member that does one thing."""

    name: str
    voice: Voice
    awaits: Optional[Member] = None


def some(kind: str) -> st.SearchStrategy[Any]:
    """Of the members that a method of the machine gives."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, kind)()))


def there_are(kind: str) -> Callable[[Any], Any]:
    """Precondition: a method of the machine gives some."""
    return precondition(lambda machine: bool(getattr(machine, kind)()))


HANDLES = st.integers(0, 1)
LOOKS = st.sampled_from(("result", "done", "wait", "reclaim", "enter_and_leave"))
CHORES = st.sampled_from(("copy", "env", "forget", "refuse"))
SIGNALS = st.sampled_from((int(signal.SIGKILL), int(signal.SIGTERM)))
TREES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from((1, 1, 0))), max_size=5)
ENDINGS = st.sampled_from(("answers", "raises", "exits", "leaves", "unpicklable"))


class Trees(RuleBasedStateMachine):
    """A tree of real processes, three deep."""

    method: ClassVar[str]
    most: ClassVar[int]  # members that live at once

    def __init__(self) -> None:
        super().__init__()
        self.begun: bool = False
        self.known: set[int] = set()  # children of this process that are not the tree's
        self.voices: dict[str, tuple[int, Voice]] = {}  # who has introduced himself, unexpected yet
        self.members: list[Member] = []
        self.units: list[Unit] = []
        self.claims: list[Claim] = []
        self.missing: int = 0  # slots that came free unseen, at most: an audit puts them back
        self.names: itertools.count[int] = itertools.count()

    @initialize(slots=st.sampled_from((2, 1, 3)), tree=TREES)
    def begin(self, slots: int, tree: list[tuple[int, int]]) -> None:
        """With a tree that has grown a little: below whom a puppet is, and what it takes."""
        _start_helpers(self.method)
        gc.collect()
        adopt_orphans()
        self.begun = True
        self.known = set(children_of(os.getpid()))
        self.tasks_before: int = _tasks(os.getpid())
        self.descriptors: dict[str, str] = _descriptors()
        self.address: str = f"\0jobserver-trees-{os.getpid()}-{next(_addresses)}"
        self.listener: socket.socket = listen(self.address)
        self.slots = slots
        self.js: Jobserver = Jobserver(self.method, slots)
        pool = share(self.js)[0].engine.slots
        assert isinstance(pool, SlotPool)
        self.kernel: Kernel = pool.kernel  # for the oracle only
        self.stage: Stage = Stage(self.js, self.address)
        self.members.append(Member(0, None, pid=os.getpid()))
        for number, consume in tree:
            by = self.members[min(number, len(self.members) - 1)]
            if by in self.submitters():
                self.try_to_submit(by, consume)
        self.tell("begin", f"{len(self.units)} of {slots} in use")

    # What members can be commanded to do something.

    @property
    def root(self) -> Member:
        return self.members[0]

    @property
    def free(self) -> int:
        return self.slots - len(self.units)

    def obedient(self) -> list[Member]:
        return [member for member in self.members if member.obeys]

    def submitters(self) -> list[Member]:
        """Those below which there may be another."""
        if len(self.alive()) > self.most:
            return []
        return [member for member in self.obedient() if member.depth < _DEPTH]

    def puppets(self) -> list[Member]:
        return [member for member in self.obedient() if member.parent is not None]

    def lenders(self) -> list[Member]:
        """Those who would lend their slot, were they to wait for one."""
        if self.free or (self.claims and not self.claims[-1].lent):
            return []
        last = self.claims[-1].member if self.claims else None
        return [
            member
            for member in self.submitters()
            if self.is_deepest(member) and last in (None, member) and not member.unseen
        ]

    def hungry(self) -> list[Member]:
        """Those who would wait for a slot until one comes free, and nobody else does."""
        if self.free or self.claims:
            return []
        return [member for member in self.submitters() if not member.unseen]

    def eaters(self) -> list[Member]:
        """Those who can have a slot for a moment, one after the other."""
        if self.claims:
            return []
        return [member for member in self.obedient() if self.free or self.is_deepest(member)]

    def alive(self) -> list[Member]:
        return [member for member in self.members if member.born and not member.ended]

    def killable(self) -> list[Member]:
        """All but the root and those that have answered."""
        return [member for member in self.alive()[1:] if not member.leaving]

    def stoppable(self) -> list[Member]:
        """Those that are in the middle of nothing."""
        return [member for member in self.puppets() if not member.looks]

    def stopped(self) -> list[Member]:
        return [member for member in self.alive() if member.stopped]

    def awaitable(self) -> list[Member]:
        """Those for which a thread of their submitters can wait."""
        return [
            member
            for member in self.alive()[1:]
            if member.parent is not None
            and member.parent.obeys
            and len(member.parent.threads) < _THREADS
            and member not in [thread.awaits for thread in member.parent.threads]
        ]

    def endable(self) -> list[Member]:
        claimants = [claim.by for claim in self.claims]
        return [member for member in self.puppets() if member not in claimants]

    def plain(self) -> list[Member]:
        """Those that end when they are told to, and whose submitters can be asked at once."""
        return [
            member
            for member in self.endable()
            if member.parent is not None and member.parent.obeys and not member.unfinished
        ]

    def chatty(self) -> list[Member]:
        """Those whose slot a callback of theirs can have, as nobody else wants it.

        And no other thread is told of what it raises.
        """
        if self.claims:
            return []
        awaited = [thread.awaits for member in self.alive() for thread in member.threads]
        return [m for m in self.plain() if m.unit is not None and m not in awaited]

    @staticmethod
    def is_deepest(member: Member) -> bool:
        """Whether it runs on a slot that it has not lent."""
        return member.unit is not None and not member.unit.below(member)

    def parents_of_ended(self) -> list[Member]:
        return [member for member in self.obedient() if member.unseen]

    # How things are said and compared.

    def tell(self, rule_: str, outcome: str) -> None:
        """At the end of every rule. No invariant, lest it be in every line of a program."""
        self.the_kernel_agrees()
        tally[type(self).__name__, rule_, outcome] += 1

    def same(self, what: str, actual: object, foretold: object) -> None:
        if actual != foretold:
            raise AssertionError(f"{what} is {actual!r}, not {foretold!r}")

    def command(self, member: Member, name: str, *args: object) -> Outcome:
        """Have the main thread of a member do something; what comes of it."""
        if member.voice is None:
            return self.stage.perform(name, *args)
        member.voice.say((name, *args))
        return self.hear(member.voice)

    def hear(self, voice: Voice) -> Outcome:
        try:
            message = voice.hear()
        except socket.timeout:
            message = ("nothing was heard",)
        if message is None:
            message = ("the end",)
        return message

    def value(self, member: Member, foretold: object, name: str, *args: object) -> None:
        """As `command`, of which the outcome is known."""
        self.same(
            f"{name}{args} of {member}", self.command(member, name, *args), ("value", foretold)
        )

    def meet(self, name: str) -> tuple[int, Voice]:
        """The process id and the voice of who comes."""
        while name not in self.voices:
            try:
                connection, _ = self.listener.accept()
            except socket.timeout:
                self.same("who came", None, name)
                raise
            voice = Voice(connection)
            came, pid = self.hear(voice)
            self.same(f"whether {came} came before", came in self.voices, False)
            self.voices[came] = pid, voice
        return self.voices[name]

    # The model of slots.

    def born(self, member: Member, unit: Optional[Unit]) -> None:
        """A puppet has been submitted, and comes to the stage."""
        assert member.parent is not None
        if member not in self.members:
            self.members.append(member)
        member.born = True
        member.pid, member.voice = self.meet(str(member.number))
        member.pidfd = os.pidfd_open(member.pid)
        member.unit = unit
        if unit is not None and unit not in self.units:
            self.units.append(unit)
            self.missing = min(self.missing, self.free)
        if unit is not None and member not in unit.chain:
            unit.chain.append(member)
        member.parent.children.append(member)

    def expect(self, parent: Member, consume: int = 1, callbacks: int = 0) -> Member:
        """The next member, of which nobody knows yet."""
        calls: list[object] = list(range(callbacks))
        return Member(len(self.members), parent, consume, calls, born=False)

    def submitted(self, member: Member) -> None:
        """It has been, on a slot of its own if it takes one."""
        self.born(member, Unit([member]) if member.consume else None)

    def ended(self, member: Member, fate: Outcome) -> None:
        """The process of a member is over, or is about to be."""
        self.same(f"whether {member} ended in time", _await_end(member.pidfd), True)
        os.close(member.pidfd)
        member.ended = True
        member.fate = member.fate or fate
        member.claim = None
        if member.voice is not None:
            member.voice.close()
        for thread in member.threads:
            thread.voice.close()
        member.threads = []
        for claim in self.claims:
            if claim.by is member and not claim.member.born:
                claim.member.ended = True  # it never will be
        self.claims = [claim for claim in self.claims if claim.by is not member]
        for child in member.children:
            if child.ended and not child.done:
                self.bury(child)
        self.recount()
        assert member.parent is not None
        if member.orphaned:
            self.bury(member)
        elif member.parent.looks and not member.parent.stopped:
            self.noticed(member.parent)
        self.settle_claims()

    def bury(self, orphan: Member) -> None:
        """Reap one whose submitter is dead; a forkserver does it by itself."""
        # Unless it was reaped before, by one that waited for whoever it lent its slot to.
        with contextlib.suppress(ChildProcessError):
            if self.reaps:
                os.waitpid(orphan.pid, 0)

    def recount(self) -> None:
        """Slots whose users are all gone: nobody who lives has put them back."""
        for unit in list(self.units):
            if not unit.in_use:
                self.units.remove(unit)
                self.missing += 1

    def reaped(self, member: Member) -> None:
        """Its submitter knows that it has ended."""
        member.done = True
        unit = member.unit
        if unit is not None and unit in self.units and not unit.in_use:
            self.units.remove(unit)

    def noticed(self, parent: Member) -> None:
        """A member moves along what has ended below it."""
        for child in parent.unfinished:
            if child.ended and not child.is_outlived:
                self.reaped(child)
        if parent.obeys:
            self.look(parent)
        for thread in list(parent.threads):
            if thread.awaits is not None and thread.awaits.done:
                self.same(
                    f"what {thread.name} waited for", self.hear(thread.voice), ("value", True)
                )
                self.part(parent, thread)
        if parent.leaving and not parent.unfinished:
            self.ended(parent, ())

    def part(self, member: Member, thread: Thread) -> None:
        thread.voice.close()
        member.threads.remove(thread)

    def look(self, parent: Member) -> None:
        """Ask a member for what came of those that have ended below it."""
        for child in parent.unseen:
            self.value(parent, True, "wait", child.number)
            if not child.done:
                self.reaped(child)
            child.seen = True
            for _ in range(2):
                came = self.command(parent, "result", child.number)
                self.same(f"what came of {child}", came, child.fate)
            self.value(parent, child.calls, "noted", child.number, len(child.calls))
            self.value(parent, len(child.calls), "when_done", child.number, "notes")
            called = [*child.calls, "noted"]
            self.value(parent, called, "noted", child.number, len(called))

    def looked(self, parent: Member) -> None:
        """A member has done something that moves along what has ended below it."""
        self.look(parent)
        self.settle_claims()

    def settle_claims(self) -> None:
        """Whoever waits for what has come goes on."""
        for claim in reversed(self.claims):
            if self.is_over(claim):
                self.claims.remove(claim)
                self.go_on(claim)
                self.settle_claims()
                return

    def is_over(self, claim: Claim) -> bool:
        """Whether a submission returns; slots that it is given are accounted for."""
        member = claim.member
        if not claim.lent:
            if not self.free:
                return False
            self.submitted(member)
            return True
        if member.ended and not member.is_outlived:
            if not member.done:
                self.reaped(member)
            return True
        assert member.unit is not None
        if not self.free or member.unit.below(member):
            return False
        # Relieved: it has a slot of its own.
        member.unit.chain.remove(member)
        member.unit = Unit([member])
        self.units.append(member.unit)
        self.missing = min(self.missing, self.free)
        return True

    def go_on(self, claim: Claim) -> None:
        by, thread = claim.by, claim.thread
        voice = by.voice if thread is None else thread.voice
        assert voice is not None
        self.same(f"what the submission of {claim.member} gives", self.hear(voice), ("value", None))
        if thread is not None:
            self.part(by, thread)
        by.claim = None
        self.look(by)

    # Submissions.

    @rule(
        by=some("submitters"),
        consume=st.sampled_from((1, 1, 1, 0)),
        timeout=st.sampled_from((0.0, 0.001)),
        handle=HANDLES,
        callbacks=st.integers(0, 2),
    )
    @there_are("submitters")
    def submit(self, by: Member, consume: int, timeout: float, handle: int, callbacks: int) -> None:
        """Accepted if there is a slot, or one that the submitter itself can free."""
        outcome = self.try_to_submit(by, consume, timeout, handle, callbacks)
        self.tell("submit", f"{outcome} at depth {by.depth}")

    def try_to_submit(
        self, by: Member, consume: int, timeout: float = 0, handle: int = 0, callbacks: int = 0
    ) -> str:
        if self.claims:
            self.looked(by)
        member = self.expect(by, consume, callbacks)
        accepted = bool(not consume or self.free)
        if not accepted and any(self.would_free(child) for child in by.unseen):
            accepted = True
            # A forkserver takes its time to tell of an end.
            timeout = timeout if self.reaps else PATIENCE
        args = member.number, consume, timeout, handle, callbacks
        foretold = ("value", None) if accepted else ("Blocked",)
        self.same(f"what submit{args} gives", self.command(by, "submit", *args), foretold)
        self.look(by)
        if accepted:
            self.submitted(member)
        self.settle_claims()
        return "accepted" if accepted else "Blocked"

    @rule(
        by=some("submitters"), consumes=st.lists(st.sampled_from((1, 1, 0)), min_size=2, max_size=3)
    )
    @there_are("submitters")
    def grow(self, by: Member, consumes: list[int]) -> None:
        """One below the other, as long as there are slots."""
        for consume in consumes:
            if by in self.submitters():
                self.try_to_submit(by, consume)
                by = by.unfinished[-1] if by.unfinished else by
        self.tell("grow", f"to depth {by.depth}")

    @rule(by=some("submitters"))
    @there_are("submitters")
    def fill(self, by: Member) -> None:
        """Leave no slot free."""
        while self.free and by in self.submitters():
            self.try_to_submit(by, 1, callbacks=1)
        self.tell("fill", f"at depth {by.depth}")

    @staticmethod
    def would_free(child: Member) -> bool:
        unit = child.unit
        return (
            unit is not None and not child.done and unit.chain[0] is child and not unit.below(child)
        )

    @rule(by=some("lenders"), handle=HANDLES)
    @there_are("lenders")
    def saturate(self, by: Member, handle: int) -> None:
        """Without end, in a full tree: it runs on the slot of its submitter."""
        member = self.expect(by)
        assert by.voice is not None
        by.voice.say(("submit", member.number, 1, None, handle, 0))
        self.born(member, by.unit)
        by.claim = Claim(by, member, None, lent=True)
        self.claims.append(by.claim)
        self.tell("saturate", f"{len(self.claims)} lend")

    @rule(by=some("hungry"))
    @there_are("hungry")
    def wait_for_a_slot(self, by: Member) -> None:
        """Whose work has no slot to lend waits in its main thread; others have one do it."""
        member = self.expect(by)
        self.members.append(member)
        if by.unit is None and by.voice is not None:
            by.voice.say(("submit", member.number, 1, None, 0, 0))
            by.claim = Claim(by, member, None, lent=False)
            self.claims.append(by.claim)
        else:
            thread = self.start_thread(by, None, "submit", member.number, 1, PATIENCE, 0, 0)
            self.claims.append(Claim(by, member, thread, lent=False))
        self.tell("wait_for_a_slot", "in a thread" if by.claim is None else "without one to lend")

    @rule(by=some("eaters"), count=st.integers(2, 3))
    @there_are("eaters")
    def submit_and_wait_at_once(self, by: Member, count: int) -> None:
        """In several threads, on what slots there are or on the submitter's own."""
        foretold = [("value", value) for value in range(count)]
        self.value(by, foretold, "at_once", count)
        self.looked(by)
        self.tell("submit_and_wait_at_once", f"with {self.free} free")

    @rule(
        by=some("eaters"),
        count=st.integers(0, 3),
        taken=st.integers(0, 3),
        chunksize=st.integers(1, 2),
        buffersize=st.sampled_from((None, 1, 2)),
    )
    @there_are("eaters")
    def map(
        self, by: Member, count: int, taken: int, chunksize: int, buffersize: Optional[int]
    ) -> None:
        foretold = list(range(min(count, taken)))
        self.value(by, foretold, "map", count, taken, chunksize, buffersize)
        self.looked(by)
        self.value(by, True, "await_tracked", len(by.unfinished))
        self.tell("map", "abandoned" if taken < count else "consumed")

    # Ends.

    @rule(member=some("endable"), ending=ENDINGS, closing=st.booleans())
    @there_are("endable")
    def end(self, member: Member, ending: str, closing: bool) -> None:
        """By itself. But for a sudden exit, it waits for what it has submitted."""
        if closing:
            self.value(member, None, "leave")
            self.looked(member)
        outcome = ending + (" before others" if member.unfinished else "")
        self.say_end(member, ending)
        self.told_to_end(member, ending)
        self.tell("end", outcome)

    def told_to_end(self, member: Member, ending: str) -> None:
        """It ends, or it has answered and waits for those below it."""
        member.fate = {
            "answers": ("value", member.number),
            "raises": ("ValueError", f"puppet {member.number}"),
            "unpicklable": ("RuntimeError", "not picklable"),
        }.get(ending, ("LostResult", member.pid, EXITCODE))
        if ending == "exits" or not member.unfinished:
            self.ended(member, ())
            return
        member.leaving = True
        for thread in list(member.threads):
            self.part(member, thread)
        self.noticed(member)
        self.settle_claims()

    @staticmethod
    def say_end(member: Member, ending: str) -> None:
        assert member.voice is not None
        member.voice.say(("end", ending))

    @rule(member=some("plain"))
    @there_are("plain")
    def end_with_a_huge_answer(self, member: Member) -> None:
        """More than a pipe holds: it ends while somebody reads."""
        self.say_end(member, "huge")
        self.end_seen(member, ("value", HUGE))
        self.tell("end_with_a_huge_answer", "value")

    def end_seen(self, member: Member, fate: Outcome, waited: Outcome = ("value", True)) -> None:
        """Its submitter is waiting when it ends."""
        assert member.parent is not None
        outcome = self.command(member.parent, "wait", member.number)
        self.same(f"what waiting for {member} gives", outcome, waited)
        self.ended(member, fate)
        self.looked(member.parent)

    @rule(member=some("chatty"), deed=st.sampled_from(("submits", "raises")))
    @there_are("chatty")
    def end_with_a_callback(self, member: Member, deed: str) -> None:
        """One that submits on the slot that has just come back, or one that raises."""
        assert member.parent is not None
        seqno = len(member.calls)
        self.value(member.parent, seqno, "when_done", member.number, deed)
        member.calls.append(member.number if deed == "submits" else "raised")
        self.say_end(member, "answers")
        waited = ("value", True) if deed == "submits" else ("CallbackRaised", seqno)
        self.end_seen(member, ("value", member.number), waited)
        self.tell("end_with_a_callback", waited[0])

    @rule(member=some("killable"), signum=SIGNALS, asked=st.booleans())
    @there_are("killable")
    def kill(self, member: Member, signum: int, asked: bool) -> None:
        """By its submitter, if that can be asked, or by somebody else."""
        lent = member.claim is not None and member.claim.lent
        about = " amid a chain" if lent else " above others" if member.unfinished else ""
        signum = int(signal.SIGKILL) if member.stopped else signum
        self.end_by_signal(member, signum, asked=asked)
        self.tell("kill", signal.Signals(signum).name + about)

    def end_by_signal(self, member: Member, signum: int, *, asked: bool) -> None:
        parent = member.parent
        assert parent is not None
        if asked and parent.obeys:
            self.value(parent, True, "wait", member.number, PATIENCE, signum)
        else:
            os.kill(member.pid, signum)
        self.ended(member, ("LostResult", member.pid, -signum))
        if asked and parent.obeys:
            self.looked(parent)

    @rule(member=some("stoppable"), asked=st.booleans())
    @there_are("stoppable")
    def stop(self, member: Member, asked: bool) -> None:
        self.signal(member, signal.SIGSTOP, asked)
        member.stopped = True
        self.tell("stop", "above others" if member.unfinished else "a leaf")

    @rule(member=some("stopped"), asked=st.booleans(), told=st.booleans())
    @there_are("stopped")
    def go_on_after_stop(self, member: Member, asked: bool, told: bool) -> None:
        """Whatever it has been told meanwhile, it does now."""
        parent = member.parent
        assert parent is not None
        if told:
            self.say_end(member, "answers")
            if parent.obeys:
                self.value(parent, False, "done", member.number, 0.001)
                self.looked(parent)
        self.signal(member, signal.SIGCONT, asked and not told)
        member.stopped = False
        outcome = "with ended ones below" if member.unseen else "to end" if told else "to obey"
        if told:
            self.told_to_end(member, "answers")
        self.tell("go_on_after_stop", outcome)

    def signal(self, member: Member, signum: int, asked: bool) -> None:
        assert member.parent is not None
        if asked and member.parent.obeys:
            self.value(member.parent, False, "wait", member.number, 0, signum)
            self.looked(member.parent)
        else:
            os.kill(member.pid, signum)

    # Looks.

    @rule(by=some("obedient"), how=LOOKS, handle=HANDLES)
    @there_are("obedient")
    def see(self, by: Member, how: str, handle: int) -> None:
        """Whatever a member asks for, it moves along all that has ended below it."""
        outcome = f"{how}, {len(by.unseen)} ended"
        if how == "reclaim":
            self.value(by, None, "reclaim", handle)
        elif how == "enter_and_leave":
            self.value(by, None, "enter_and_leave")
        elif how != "result" and by.unseen:
            self.value(by, True, how, by.unseen[-1].number, PATIENCE)
        self.looked(by)
        self.tell("see", outcome)

    @rule(by=some("obedient"), what=CHORES)
    @there_are("obedient")
    def do(self, by: Member, what: str) -> None:
        """What has nothing to do with what runs."""
        if what == "forget":
            for child in [child for child in by.children if child.seen]:
                self.value(by, None, "forget", child.number)
                by.children.remove(child)
        elif what != "refuse":
            self.value(by, None, "derive", what)
        elif self.method != "fork" and self.free and not self.claims:
            # What cannot be pickled; a fork pickles nothing.
            foretold = "TypeError", "not picklable"
            self.same("what comes of it", self.command(by, "refuse"), foretold)
            self.looked(by)
        self.tell("do", what)

    @rule(member=some("awaitable"))
    @there_are("awaitable")
    def await_in_a_thread(self, member: Member) -> None:
        """A thread waits for it, beside whatever the main one does from now on."""
        parent = member.parent
        assert parent is not None
        self.start_thread(parent, member, "wait", member.number)
        self.looked(parent)
        self.tell("await_in_a_thread", "root" if parent.parent is None else "puppet")

    def start_thread(
        self, member: Member, awaits: Optional[Member], command: str, *args: object
    ) -> Thread:
        name = f"{member.number}.{next(self.names)}"
        self.value(member, None, "in_thread", name, command, *args)
        thread = Thread(name, self.meet(name)[1], awaits)
        member.threads.append(thread)
        return thread

    # What the kernel says.

    def the_kernel_agrees(self) -> None:
        """At once, or once those that are at it have done what they must do by themselves."""
        deadline = time.monotonic() + PATIENCE
        while not self.slots_agree() or self.facts() != self.foretold():
            if time.monotonic() > deadline:
                self.same("what there is", (self.kernel.waiting(), self.facts()), self.foretold())
                self.same("the number of free slots", self.kernel.waiting(), self.free)
            time.sleep(_PAUSE)
        for member in self.obedient():
            self.value(member, self.report(member), "report")

    @staticmethod
    def report(parent: Member) -> tuple[int, dict[int, tuple[str, list[object]]]]:
        """What a member tells of its Futures: those it has seen the end of, and the others."""
        kept: dict[int, tuple[str, list[object]]] = {}
        for child in parent.children:
            if child.seen:
                kept[child.number] = "Future(done, callbacks=0", [*child.calls, "noted"]
            else:
                kept[child.number] = f"Future(running, callbacks={len(child.calls)}", []
        return len(parent.unfinished), kept

    def slots_agree(self) -> bool:
        waiting = self.kernel.waiting()
        if waiting > self.free:
            self.same("the number of free slots", waiting, self.free)
        return waiting >= self.free - self.missing

    def facts(self) -> list[object]:
        return [
            (
                member,
                sorted(set(children_of(member.pid)) - self.known) if self.reaps else [],
                None if member.leaving else _tasks(member.pid),
                _is_stopped(member.pid),
                self.shared(member),
            )
            for member in self.alive()
        ]

    def foretold(self) -> list[object]:
        return [
            (
                member,
                sorted(self.children(member)) if self.reaps else [],
                None if member.leaving else self.tasks(member),
                member.stopped,
                # The pipe of tokens; of result channels, the two have different ends.
                1 if self.shares(member) else None,
            )
            for member in self.alive()
        ]

    def children(self, parent: Member) -> list[int]:
        """Those that a member must have, zombies included."""
        children = [
            child.pid
            for child in parent.unfinished
            if child.born and not (child.ended and parent.looks)
        ]
        if parent is self.root:
            children += [member.pid for member in self.alive() if member.orphaned]
        return children

    def tasks(self, member: Member) -> int:
        return len(member.threads) + (1 if member.number else self.tasks_before)

    def shares(self, member: Member) -> bool:
        """Whether a member has something in common with its submitter, as one that was forked."""
        parent = member.parent
        forked = self.method == "fork" and parent is not None and not parent.ended
        return forked and not member.leaving

    def shared(self, member: Member) -> Optional[int]:
        """How many pipes and sockets it has that its submitter has as well."""
        if not self.shares(member):
            return None
        assert member.parent is not None
        shared = _connections(member.pid) & _connections(member.parent.pid)
        return len(shared.difference(self.descriptors.values()))

    @property
    def reaps(self) -> bool:
        """Whether workers are children of their submitters. Those of a forkserver are its own."""
        return self.method != "forkserver"

    # The end.

    def teardown(self) -> None:
        if not self.begun:
            return
        finished = False
        try:
            # Hypothesis ends a run that failed, or that it breaks off, as any other.
            if sys.exc_info()[0] is None:
                self.finish()
                finished = True
        finally:
            if not finished:
                self.leave_nothing()
            close(self.listener)
            adopt_orphans(adopt=False)

    def finish(self) -> None:
        """All end. Then all slots are there, and not one too many; and nothing is left."""
        self.end_all()
        self.looked(self.root)
        self.the_kernel_agrees()
        self.same("the number of slots in use", len(self.units), 0)
        for _ in range(self.slots):
            self.same("what submit gives", self.try_to_submit(self.root, 1), "accepted")
        self.missing = 0
        self.same("what one more gives", self.try_to_submit(self.root, 1), "Blocked")
        self.same("the number of free slots", self.kernel.waiting(), 0)
        self.end_all()
        self.looked(self.root)
        self.the_kernel_agrees()
        self.same("the number of free slots", self.kernel.waiting(), self.slots)
        self.value(self.root, None, "leave")
        again = self.command(self.root, "submit", 0, 1, 0, 0, 0)
        self.same("what a closed handle gives", again, ("RuntimeError", "is closed"))
        self.same("who is there unexpectedly", select.select([self.listener], [], [], 0)[0], [])
        close(self.listener)
        self.same("what is open", _descriptors(), self.descriptors)
        self.same("whether nobody is left", self.is_alone(), True)

    def end_all(self) -> None:
        """From the leaves up: those that wait for others end by themselves then."""
        while killable := self.killable():
            self.end_by_signal(killable[-1], signal.SIGKILL, asked=True)

    def leave_nothing(self) -> None:
        """After a failure: nothing must be left that disturbs another run."""
        # Whoever hears nobody any more ends; so does whoever comes now, and was not expected.
        close(self.listener)
        for _, voice in self.voices.values():
            voice.close()
        for member in self.alive()[1:]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
            os.close(member.pidfd)
        # A thread that waited for a slot has one now, and submits before it ends.
        self.is_alone()
        self.stage.perform("await_tracked", 0)
        self.stage.perform("leave")

    def is_alone(self) -> bool:
        """Whether all others end: also forkservers of members, once those that they serve have."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            reap_orphans(self.known)
            others = set(children_of(os.getpid())) - self.known
            if not others and _tasks(os.getpid()) == self.tasks_before:
                return True
            time.sleep(_PAUSE)
        return False


class Forked(Trees):
    """A tree of forked processes."""

    method = "fork"
    most = 8


class Spawned(Trees):
    """A tree of spawned processes."""

    method = "spawn"
    most = 5


class Served(Trees):
    """A tree of processes that a forkserver forks."""

    method = "forkserver"
    most = 5


MACHINES: Final[dict[str, type[Trees]]] = {each.method: each for each in (Forked, Spawned, Served)}


def _start_helpers(method: str) -> None:
    """What multiprocessing keeps until the interpreter ends is there before anything is counted."""
    if method != "fork":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
    if method == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _await_end(pidfd: int) -> bool:
    """Whether a process ends, and is at least a zombie, before patience does."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(PATIENCE * 1000))


def _tasks(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def _is_stopped(pid: int) -> bool:
    fields = stat_of(pid)
    return fields is not None and fields[0] == "T"


def _connections(pid: int) -> set[str]:
    """The pipes and the ends of sockets that a process has."""
    names = _descriptors(pid).values()
    return {name for name in names if name.startswith(("pipe:", "socket:"))}


def _descriptors(pid: Optional[int] = None) -> dict[str, str]:
    """What is open in a process, by default this one."""
    found: dict[str, str] = {}
    folder = f"/proc/{pid or 'self'}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found[fd] = os.readlink(f"{folder}/{fd}")
    return found
