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
from collections import Counter
from typing import Any, Callable, ClassVar, Final, Optional

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ..protocols import Kernel
from ..server import Jobserver, share
from ..slots import SlotPool
from .machines import tally
from .processes import (
    adopt_orphans,
    children_of,
    connections_of,
    descendants_of,
    descriptors_of,
    ends_within,
    has_answered,
    is_stopped,
    reap_orphans,
    tasks_of,
)
from .puppets import (
    EXITCODE,
    HUGE,
    IDLE,
    PATIENCE,
    PLAIN,
    Outcome,
    Stage,
    Via,
    Voice,
    close,
    listen,
)
from .troupe import Claim, Member, Process, Thread, Unit

__all__ = ("MACHINES", "Forked", "Served", "Spawned", "Trees")

_DEPTH: Final = 3  # of a tree, below the root
_THREADS: Final = 2  # of a member, beside its main one
_PAUSE: Final = 0.0005  # seconds between two looks at the kernel

_addresses = itertools.count()


def some(kind: str) -> st.SearchStrategy[Any]:
    """Of the members that a method of the machine gives."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, kind)()))


def there_are(kind: str) -> Callable[[Any], Any]:
    """Precondition: a method of the machine gives some."""
    return precondition(lambda machine: bool(getattr(machine, kind)()))


MOST = st.sampled_from((1, None, 2))  # pieces of work that a worker may serve
HANDLES = st.tuples(st.integers(0, 1), MOST)
LOOKS = st.sampled_from(("result", "done", "wait", "reclaim", "enter_and_leave"))
CHORES = st.sampled_from(("copy", "env", "forget", "refuse"))
SIGNALS = st.sampled_from((int(signal.SIGKILL), int(signal.SIGTERM)))
TREES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from((1, 1, 0)), MOST), max_size=5)
ENDINGS = st.sampled_from(("answers", "raises", "exits", "leaves", "unpicklable"))


class Trees(RuleBasedStateMachine):
    """A tree of real processes, three deep."""

    method: ClassVar[str]
    most: ClassVar[int]  # members that live at once

    def __init__(self) -> None:
        super().__init__()
        self.begun: bool = False
        self.known: set[int] = set()  # those below this process that are not the tree's
        # Who has introduced himself, and is not expected yet.
        self.voices: dict[str, tuple[int, Voice, int]] = {}
        self.members: list[Member] = []
        self.processes: list[Process] = []
        self.units: list[Unit] = []
        self.claims: list[Claim] = []
        self.missing: int = 0  # slots that came free unseen, at most: an audit puts them back
        self.names: itertools.count[int] = itertools.count()

    @initialize(slots=st.sampled_from((2, 1, 3)), tree=TREES)
    def begin(self, slots: int, tree: list[tuple[int, int, Optional[int]]]) -> None:
        """With a tree that has grown a little: below whom a puppet is, what it takes, and where."""
        _start_helpers(self.method)
        gc.collect()
        adopt_orphans()
        self.begun = True
        self.known = descendants_of(os.getpid())
        self.tasks_before: int = tasks_of(os.getpid())
        self.descriptors: dict[str, str] = descriptors_of()
        self.address: str = f"\0jobserver-trees-{os.getpid()}-{next(_addresses)}"
        self.listener: socket.socket = listen(self.address)
        self.slots = slots
        self.js: Jobserver = Jobserver(self.method, slots)
        pool = share(self.js)[0].engine.slots
        assert isinstance(pool, SlotPool)
        self.kernel: Kernel = pool.kernel  # for the oracle only
        self.stage: Stage = Stage(self.js, self.address)
        self.processes.append(Process(0, os.getpid(), entered=1))
        self.members.append(Member(0, None, process=self.processes[0]))
        for number, consume, most in tree:
            by = self.members[min(number, len(self.members) - 1)]
            if by in self.submitters():
                self.try_to_submit(by, consume, via=(0, most))
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
        """All but the root and those that may have answered."""
        return [m for m in self.alive()[1:] if not m.leaving or (m.answers and m.process.serves)]

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

    def employers(self) -> list[Member]:
        """Those that have submitted what is not over."""
        return [member for member in self.endable() if member.unfinished]

    def plain(self) -> list[Member]:
        """Those that end when they are told to, and whose submitters can be asked at once."""
        return [
            member
            for member in self.endable()
            if member.parent is not None and member.parent.obeys and not member.unfinished
        ]

    def idle(self) -> list[Process]:
        """Workers that have nothing to do, as everybody knows: not too many for those who do.

        A submitter that had more than slots would part with one, and which is not foretold when it
        hears of an end at the same time.
        """
        return [
            process
            for member in self.obedient()
            if len(member.process.at_hand) + len(member.unfinished) <= self.slots
            for process in [*member.process.all_idle(), *self.answered(member)]
        ]

    @staticmethod
    def answered(parent: Member) -> list[Process]:
        """The workers that have answered to one who does not know it yet."""
        return [
            child.process
            for child in parent.unfinished
            if child.ended and not child.process.ended and not parent.looks
        ]

    def next_in_turn(self) -> list[Process]:
        """Workers that are idle, and of which it is known whose work is theirs next."""
        if self.claims or not self.free:
            return []
        able = [member for member in self.submitters() if not member.unseen]
        return [m.process.at_hand[0] for m in able if len(m.process.at_hand) == 1]

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

    def meet(self, name: str) -> tuple[int, Voice, int]:
        """Who comes: the process id, the voice, and the descriptor on which it will answer."""
        while name not in self.voices:
            try:
                connection, _ = self.listener.accept()
            except socket.timeout:
                self.same("who came", None, name)
                raise
            voice = Voice(connection)
            came, pid, answering = self.hear(voice)
            self.same(f"whether {came} came before", came in self.voices, False)
            self.voices[came] = pid, voice, answering
        return self.voices[name]

    # The model of slots.

    def born(self, member: Member, unit: Optional[Unit]) -> None:
        """A puppet has been submitted, and comes to the stage."""
        assert member.parent is not None
        if member not in self.members:
            self.members.append(member)
        member.born = True
        pid, member.voice, answering = self.meet(str(member.number))
        process = member.process = self.process_of(member, pid)
        process.answering = answering
        process.served += 1
        process.entered += 1
        process.closed = False
        member.unit = unit
        if unit is not None and unit not in self.units:
            self.units.append(unit)
            self.missing = min(self.missing, self.free)
        if unit is not None and member not in unit.chain:
            unit.chain.append(member)
        member.parent.children.append(member)

    def process_of(self, member: Member, pid: int) -> Process:
        """Who runs it: a worker that is idle and may serve it, if there is one, else a new one."""
        assert member.parent is not None
        idle = member.parent.process
        able = {process.pid: process for process in idle.fit(member.most)}
        self.same(f"whether an idle worker has {member}", pid in able, bool(able))
        if able:
            idle.idle.remove(able[pid])
            return able[pid]
        return self.arrived(pid, os.pidfd_open(pid), serves=member.most != 1)

    def arrived(self, pid: int, pidfd: int, *, serves: bool) -> Process:
        living = [process.pid for process in self.processes if not process.ended]
        self.same(f"whether process {pid} was there before", pid in living, False)
        process = Process(len(self.processes), pid, serves, pidfd=pidfd)
        self.processes.append(process)
        return process

    def expect(
        self, parent: Member, consume: int = 1, callbacks: int = 0, most: Optional[int] = 1
    ) -> Member:
        """The next member, of which nobody knows yet."""
        calls: list[object] = list(range(callbacks))
        return Member(len(self.members), parent, consume, most, calls, born=False)

    def submitted(self, member: Member) -> None:
        """It has been, on a slot of its own if it takes one."""
        self.born(member, Unit([member]) if member.consume else None)

    def ended(self, member: Member, fate: Outcome, *, read: bool = False) -> None:
        """A member is over, or about to be: it has answered, if its process stays, or that ends.

        `read`: somebody has the answer already.
        """
        assert member.parent is not None
        if not member.stays:
            self.over(member.process)
        elif not read and not member.parent.looks:
            self.same(f"whether {member} answers in time", self.answers(member.process), True)
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
                self.bury(child.process)
        self.recount()
        if member.orphaned:
            self.bury(member.process)
        elif member.parent.looks and not member.parent.stopped:
            self.noticed(member.parent)
        self.settle_claims()

    def answers(self, process: Process) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not has_answered(process.pid, process.answering):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def over(self, process: Process) -> None:
        """A process ends by itself, or has been killed; and so do its workers that are idle."""
        if not process.ended:
            ends = ends_within(process.pidfd, PATIENCE)
            self.same(f"whether {process} ends in time", ends, True)
            process.end()
        self.dismissed(process)

    def dismissed(self, process: Process) -> None:
        """The idle workers of a process leave."""
        for idle in process.idle:
            self.bury(idle)
        process.idle = []

    def bury(self, orphan: Process) -> None:
        """Reap one whose submitter is dead; a forkserver does it by itself."""
        self.over(orphan)
        # Unless it was reaped before: by one that waited for whoever it lent its slot to, or, an
        # idle one, by its submitter, which ended in order.
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
        assert member.parent is not None
        member.done = True
        unit = member.unit
        if unit is not None and unit in self.units and not unit.in_use:
            self.units.remove(unit)
        if member.stays and member.is_kept:
            member.parent.process.idle.append(member.process)
            self.trim(member.parent.process)
        elif member.stays:
            self.over(member.process)

    def trim(self, process: Process) -> None:
        """It has no more idle workers than slots; the one that was idle for longest leaves."""
        while len(process.at_hand) > self.slots:
            poll = select.poll()
            leaving = {idle.pidfd: idle for idle in process.at_hand}
            for pidfd in leaving:
                poll.register(pidfd, select.POLLIN)
            ended = poll.poll(PATIENCE * 1000)
            self.same(f"whether one of too many leaves {process}", bool(ended), True)
            for pidfd, _ in ended:
                self.over(leaving[pidfd])

    def noticed(self, parent: Member) -> None:
        """A member moves along what has ended below it."""
        if parent.obeys:
            self.look(parent)
        for child in parent.unfinished:
            if child.ended and not child.is_outlived:
                self.reaped(child)
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
        if parent.process.at_hand != parent.process.idle:
            self.value(parent, None, "reclaim", PLAIN)
            parent.process.idle = parent.process.at_hand

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
        via=HANDLES,
        callbacks=st.integers(0, 2),
    )
    @there_are("submitters")
    def submit(self, by: Member, consume: int, timeout: float, via: Via, callbacks: int) -> None:
        """Accepted if there is a slot, or one that the submitter itself can free."""
        outcome = self.try_to_submit(by, consume, timeout, via, callbacks)
        if outcome == "accepted":
            outcome += f" {self.members[-1].worker}"
        self.tell("submit", f"{outcome} at depth {by.depth}")

    def try_to_submit(
        self,
        by: Member,
        consume: int,
        timeout: float = 0,
        via: Via = PLAIN,
        callbacks: int = 0,
    ) -> str:
        if self.claims:
            self.looked(by)
        member = self.expect(by, consume, callbacks, via[1])
        accepted = bool(not consume or self.free)
        if not accepted and any(self.would_free(child) for child in by.unseen):
            accepted = True
            # A forkserver takes its time to tell of an end, and so does one that is to leave.
            leaving = [child for child in by.unseen if child.stays and not child.is_kept]
            timeout = PATIENCE if leaving or not self.reaps else timeout
        args = member.number, consume, timeout, via, callbacks
        foretold = ("value", None) if accepted else ("Blocked",)
        self.same(f"what submit{args} gives", self.command(by, "submit", *args), foretold)
        self.look(by)
        if accepted:
            self.submitted(member)
        self.settle_claims()
        return "accepted" if accepted else "Blocked"

    @rule(
        by=some("submitters"),
        consumes=st.lists(st.sampled_from((1, 1, 0)), min_size=2, max_size=3),
        via=HANDLES,
    )
    @there_are("submitters")
    def grow(self, by: Member, consumes: list[int], via: Via) -> None:
        """One below the other, as long as there are slots."""
        for consume in consumes:
            if by in self.submitters():
                self.try_to_submit(by, consume, via=via)
                by = by.unfinished[-1] if by.unfinished else by
        self.tell("grow", f"to depth {by.depth}")

    @rule(by=some("submitters"), via=HANDLES)
    @there_are("submitters")
    def fill(self, by: Member, via: Via) -> None:
        """Leave no slot free."""
        while self.free and by in self.submitters():
            self.try_to_submit(by, 1, via=via, callbacks=1)
        self.tell("fill", f"at depth {by.depth}")

    @staticmethod
    def would_free(child: Member) -> bool:
        unit = child.unit
        return (
            unit is not None and not child.done and unit.chain[0] is child and not unit.below(child)
        )

    @rule(by=some("lenders"), via=HANDLES)
    @there_are("lenders")
    def saturate(self, by: Member, via: Via) -> None:
        """Without end, in a full tree: it runs on the slot of its submitter."""
        member = self.expect(by, most=via[1])
        assert by.voice is not None
        by.voice.say(("submit", member.number, 1, None, via, 0))
        self.born(member, by.unit)
        by.claim = Claim(by, member, None, lent=True)
        self.claims.append(by.claim)
        self.tell("saturate", f"{len(self.claims)} lend, {member.worker}")

    @rule(by=some("hungry"))
    @there_are("hungry")
    def wait_for_a_slot(self, by: Member) -> None:
        """Whose work has no slot to lend waits in its main thread; others have one do it."""
        member = self.expect(by)
        self.members.append(member)
        if by.unit is None and by.voice is not None:
            by.voice.say(("submit", member.number, 1, None, PLAIN, 0))
            by.claim = Claim(by, member, None, lent=False)
            self.claims.append(by.claim)
        else:
            thread = self.start_thread(by, None, "submit", member.number, 1, PATIENCE, PLAIN, 0)
            self.claims.append(Claim(by, member, thread, lent=False))
        self.tell("wait_for_a_slot", "in a thread" if by.claim is None else "without one to lend")

    @rule(by=some("eaters"), count=st.integers(2, 3), most=MOST)
    @there_are("eaters")
    def submit_and_wait_at_once(self, by: Member, count: int, most: Optional[int]) -> None:
        """In several threads, on what slots there are or on the submitter's own."""
        most = self.foretold_most(by, most)
        outcomes = self.command(by, "at_once", count, most)
        self.same("whether there are outcomes", outcomes[0], "value")
        self.same("what came of each", [outcome[0] for outcome in outcomes[1]], ["value"] * count)
        self.results(by, [outcome[1] for outcome in outcomes[1]], count, most)
        self.send_away(by, most)
        self.tell("submit_and_wait_at_once", f"{self.kind(most)} with {self.free} free")

    @rule(
        by=some("eaters"),
        count=st.integers(0, 3),
        taken=st.integers(0, 3),
        chunksize=st.integers(1, 2),
        buffersize=st.sampled_from((None, 1, 2)),
        via=HANDLES,
    )
    @there_are("eaters")
    def map(
        self,
        by: Member,
        *,
        count: int,
        taken: int,
        chunksize: int,
        buffersize: Optional[int],
        via: Via,
    ) -> None:
        via = via[0], self.foretold_most(by, via[1])
        if via[1] != 1:
            taken = count  # else nobody would tell who has served
        outcome = self.command(by, "map", count, taken, chunksize, buffersize, via)
        self.same("whether there are results", outcome[0], "value")
        self.results(by, outcome[1], min(count, taken), via[1], chunksize)
        self.send_away(by, via[1])
        self.value(by, True, "await_tracked", len(by.unfinished))
        how = "abandoned" if taken < count else "consumed"
        self.tell("map", f"{self.kind(via[1])}, {how}")

    @rule(
        by=some("eaters"),
        count=st.integers(2, 5),
        most=st.sampled_from((None, 2, 3)),
        leave=st.booleans(),
    )
    @there_are("eaters")
    def submit_one_by_one(self, by: Member, count: int, most: Optional[int], leave: bool) -> None:
        """More than a worker may serve; or each to one that is just about to leave."""
        most = self.foretold_most(by, most)
        able = [process.pid for process in by.process.fit(most)]
        # One that is about to leave must not make others leave that are one too many beside it.
        leave = leave and len(by.process.at_hand) + len(by.unfinished) < self.slots
        outcome = self.command(by, "one_by_one", count, (0, most), 0.0 if leave else IDLE)
        self.same("whether there are results", outcome[0], "value")
        pids = [pid for _, pid in outcome[1]]
        if not leave:
            self.same("whether an idle worker is the first", pids[0] in able, bool(able))
        self.results(by, outcome[1], count, most)
        if leave:
            for process in [p for p in by.process.at_hand if p.pid in pids]:
                self.over(process)
        self.send_away(by, most if leave else 1)
        how = "about to leave" if leave else f"{len(set(pids))} for {count}"
        self.tell("submit_one_by_one", f"{self.kind(most)}, {how}")

    def send_away(self, by: Member, most: Optional[int]) -> None:
        """If workers served again: how many there are depends on who was fast, so none stays."""
        if most != 1:
            for process in by.process.at_hand:
                self.kill_idle(process, signal.SIGTERM)
        self.looked(by)

    def foretold_most(self, by: Member, most: Optional[int]) -> Optional[int]:
        """As asked; but without a bound where it may have too many come to be idle."""
        if most == 1:
            return most
        self.looked(by)
        return most if by.process.fit(most) == by.process.at_hand else None

    def results(
        self,
        by: Member,
        found: list[tuple[int, int]],
        count: int,
        most: Optional[int],
        chunksize: int = 1,
    ) -> None:
        """What came of echoes that all have ended, and in which processes."""
        self.same("what came of them", [value for value, _ in found], list(range(count)))
        pids = Counter(pid for _, pid in found[::chunksize])
        if most == 1:
            self.same("how often a fresh worker served", max(pids.values(), default=1), 1)
            return
        able = {process.pid: process for process in by.process.fit(most)}
        for pid, served in pids.items():
            process = able.get(pid) or self.new_one(pid)
            process.served += served
            left = 1 if most is None else most - process.served
            self.same(f"whether {process} served too often", left < 0, False)
            if not left:
                self.over(process)
            elif pid not in able and not process.ended:
                by.process.idle.append(process)

    def new_one(self, pid: int) -> Process:
        """One that has served, and may have left since."""
        try:
            return self.arrived(pid, os.pidfd_open(pid), serves=True)
        except ProcessLookupError:
            process = self.arrived(pid, -1, serves=True)
            process.ended = True
            return process

    @staticmethod
    def kind(most: Optional[int]) -> str:
        return {1: "fresh", None: "reused"}.get(most, "reused within bounds")

    @rule(process=some("next_in_turn"), then=st.sampled_from(("goes on", "killed", "cancelled")))
    @there_are("next_in_turn")
    def submit_to_a_stopped_worker(self, process: Process, then: str) -> None:
        """It begins when it goes on; if it is killed, another one is given the work."""
        by = self.owner_of(process)
        self.send(process, signal.SIGSTOP)
        member = self.expect(by, most=None)
        self.value(by, None, "submit", member.number, 1, 0, (0, None), 0)
        self.look(by)
        if then == "goes on":
            self.send(process, signal.SIGCONT)
            self.submitted(member)
        elif then == "killed":
            self.kill_idle(process, signal.SIGKILL)
            self.value(by, False, "done", member.number)
            by.process.idle = by.process.at_hand
            self.submitted(member)
        else:
            self.value(by, True, "wait", member.number, PATIENCE, int(signal.SIGKILL))
            self.over(process)
            by.process.idle = by.process.at_hand
            self.cancelled(member, process)
            self.look(by)
        self.tell("submit_to_a_stopped_worker", f"{then} at depth {by.depth}")

    def owner_of(self, process: Process) -> Member:
        return next(m for m in self.obedient() if process in m.process.idle)

    def cancelled(self, member: Member, process: Process) -> None:
        """It was killed by its submitter before it began."""
        by = member.parent
        assert by is not None
        member.process = process
        member.born = member.ended = member.done = True
        member.fate = "LostResult", process.pid, -int(signal.SIGKILL)
        self.members.append(member)
        by.children.append(member)

    # Ends.

    @rule(member=some("endable"), ending=ENDINGS, closing=st.booleans())
    @there_are("endable")
    def end(self, member: Member, ending: str, closing: bool) -> None:
        """By itself. But for a sudden exit, it waits for what it has submitted."""
        if closing:
            self.value(member, None, "leave")
            self.left(member.process)
            self.looked(member)
        outcome = f"{member.worker}, {ending}" + (" before others" if member.unfinished else "")
        self.say_end(member, ending)
        self.told_to_end(member, ending)
        self.tell("end", outcome)

    @rule(member=some("employers"), ending=st.sampled_from(("answers", "raises", "unpicklable")))
    @there_are("employers")
    def end_before_others(self, member: Member, ending: str) -> None:
        """It is not done before they are: whatever it answers, its submitter must wait."""
        parent = member.parent
        assert parent is not None
        self.say_end(member, ending)
        self.told_to_end(member, ending)
        if parent.obeys and not member.ended:
            self.value(parent, False, "done", member.number, 0.01)
            self.looked(parent)
        self.tell("end_before_others", f"{member.worker}, {ending}")

    def left(self, process: Process) -> None:
        """A process has left a scope: if it is in no other, its idle workers leave."""
        process.entered -= 1
        process.closed = not process.entered
        if process.closed:
            self.dismissed(process)

    def told_to_end(self, member: Member, ending: str) -> None:
        """It ends, or it has answered and waits for those below it."""
        member.fate = {
            "answers": ("value", member.number),
            "raises": ("ValueError", f"puppet {member.number}"),
            "unpicklable": ("RuntimeError", "not picklable"),
        }.get(ending, ("LostResult", member.pid, EXITCODE))
        member.answers = member.fate[0] != "LostResult"
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
        member.answers = True
        self.ended(member, fate, read=True)
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
        about += ", leaving" if member.leaving else ""
        signum = int(signal.SIGKILL) if member.stopped else signum
        self.end_by_signal(member, signum, asked=asked)
        self.tell("kill", f"{member.worker}, {signal.Signals(signum).name}{about}")

    def end_by_signal(self, member: Member, signum: int, *, asked: bool) -> None:
        parent = member.parent
        assert parent is not None
        if asked and parent.obeys:
            self.value(parent, True, "wait", member.number, PATIENCE, signum)
        else:
            os.kill(member.pid, signum)
        member.answers = False
        member.fate = "LostResult", member.pid, -signum
        self.ended(member, ())
        if asked and parent.obeys:
            self.looked(parent)

    @rule(process=some("idle"), signum=SIGNALS)
    @there_are("idle")
    def kill_an_idle_worker(self, process: Process, signum: int) -> None:
        """Nothing is lost with one that has answered."""
        owners = [m for m in self.obedient() if process in [*m.process.idle, *self.answered(m)]]
        self.kill_idle(process, signum)
        for owner in owners:
            if owner.looks:
                self.noticed(owner)
        whose = f"at depth {owners[0].depth}" if owners else "of one that is idle"
        self.tell("kill_an_idle_worker", f"{signal.Signals(signum).name} {whose}")

    def kill_idle(self, process: Process, signum: int) -> None:
        self.send(process, signum)
        self.over(process)

    def send(self, process: Process, signum: int) -> None:
        os.kill(process.pid, signum)
        deadline = time.monotonic() + PATIENCE
        while signum == signal.SIGSTOP and not is_stopped(process.pid):
            self.same(f"whether {process} stops in time", time.monotonic() < deadline, True)
            time.sleep(_PAUSE)

    @rule(member=some("stoppable"), asked=st.booleans())
    @there_are("stoppable")
    def stop(self, member: Member, asked: bool) -> None:
        self.signal(member, signal.SIGSTOP, asked)
        member.stopped = True
        where = "above others" if member.unfinished else "a leaf"
        self.tell("stop", f"{member.worker}, {where}")

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
        self.tell("go_on_after_stop", f"{member.worker}, {outcome}")

    def signal(self, member: Member, signum: int, asked: bool) -> None:
        assert member.parent is not None
        if asked and member.parent.obeys:
            self.value(member.parent, False, "wait", member.number, 0, signum)
            member.process.signalled = True
            self.looked(member.parent)
        else:
            os.kill(member.pid, signum)

    # Looks.

    @rule(by=some("obedient"), how=LOOKS, via=HANDLES)
    @there_are("obedient")
    def see(self, by: Member, how: str, via: Via) -> None:
        """Whatever a member asks for, it moves along all that has ended below it."""
        outcome = f"{how}, {len(by.unseen)} ended"
        if how == "reclaim":
            self.value(by, None, "reclaim", via)
        elif how == "enter_and_leave":
            self.value(by, None, "enter_and_leave")
        elif how != "result" and by.unseen:
            self.value(by, True, how, by.unseen[-1].number, PATIENCE)
        self.looked(by)
        self.tell("see", outcome)

    @rule(by=some("obedient"), what=CHORES, via=HANDLES)
    @there_are("obedient")
    def do(self, by: Member, what: str, via: Via) -> None:
        """What has nothing to do with what runs."""
        if what == "forget":
            for child in [child for child in by.children if child.seen]:
                self.value(by, None, "forget", child.number)
                by.children.remove(child)
        elif what != "refuse":
            self.value(by, None, "derive", what)
        elif (self.method != "fork" or via[1] != 1) and self.free and not self.claims:
            # What cannot be pickled; a fork of a fresh worker pickles nothing.
            foretold = "TypeError", "not picklable"
            self.same("what comes of it", self.command(by, "refuse", via), foretold)
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
        busy = [
            (
                member,
                self.children_now(member.process),
                None if member.leaving else tasks_of(member.pid),
                is_stopped(member.pid),
                self.shared(member),
            )
            for member in self.alive()
        ]
        idle = [
            (process, self.children_now(process), tasks_of(process.pid))
            for process in self.all_idle()
        ]
        return [*busy, *idle]

    def foretold(self) -> list[object]:
        busy = [
            (
                member,
                sorted(self.children(member)) if self.reaps else [],
                None if member.leaving else self.tasks(member),
                member.stopped,
                # The pipe of tokens, and that of its own answers if it serves; of the channel of a
                # fresh worker, the two have different ends.
                1 + member.process.serves if self.shares(member) else None,
            )
            for member in self.alive()
        ]
        idle = [
            (process, sorted(other.pid for other in process.at_hand) if self.reaps else [], 1)
            for process in self.all_idle()
        ]
        return [*busy, *idle]

    def all_idle(self) -> list[Process]:
        owners = [member.process for member in self.alive()]
        return [process for owner in owners for process in owner.all_idle()]

    def children_now(self, process: Process) -> list[int]:
        """Those that the kernel knows of."""
        if not self.reaps:
            return []
        # Whether it has heard that an idle one has ended is known once it has been asked.
        ended = {idle.pid for idle in process.idle if idle.ended}
        return sorted(set(children_of(process.pid)) - self.known - ended)

    def children(self, parent: Member) -> list[int]:
        """Those that a member must have, zombies included."""
        children = [
            child.pid
            for child in parent.unfinished
            if child.born and not (child.ended and parent.looks)
        ]
        children += [process.pid for process in parent.process.at_hand]
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
        shared = connections_of(member.pid) & connections_of(member.parent.pid)
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
        for number in range(self.slots):
            via = (0, None) if number % 2 else PLAIN
            self.same("what submit gives", self.try_to_submit(self.root, 1, via=via), "accepted")
        self.missing = 0
        self.same("what one more gives", self.try_to_submit(self.root, 1), "Blocked")
        self.same("the number of free slots", self.kernel.waiting(), 0)
        self.end_all()
        self.looked(self.root)
        self.the_kernel_agrees()
        self.same("the number of free slots", self.kernel.waiting(), self.slots)
        self.value(self.root, None, "leave")
        self.left(self.root.process)
        again = self.command(self.root, "submit", 0, 1, 0, PLAIN, 0)
        self.same("what a closed handle gives", again, ("RuntimeError", "is closed"))
        self.same("who is there unexpectedly", select.select([self.listener], [], [], 0)[0], [])
        close(self.listener)
        self.same("what is open", descriptors_of(), self.descriptors)
        self.same("whether nobody is left", self.is_alone(), True)

    def end_all(self) -> None:
        """From the leaves up: those that wait for others end by themselves then."""
        while killable := self.killable():
            self.end_by_signal(killable[-1], signal.SIGKILL, asked=True)
            # Whoever waits, and is next, has taken note of this end before it is killed itself.
            self.the_kernel_agrees()

    def leave_nothing(self) -> None:
        """After a failure: nothing must be left that disturbs another run."""
        # Whoever hears nobody any more ends; so does whoever comes now, and was not expected.
        close(self.listener)
        for _, voice, _ in self.voices.values():
            voice.close()
        for process in self.processes[1:]:
            if not process.ended:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
                process.end()
        # A thread that waited for a slot has one now, and submits before it ends.
        self.is_alone()
        self.stage.perform("await_tracked", 0)
        self.stage.perform("leave")

    def is_alone(self) -> bool:
        """Whether all others end: also forkservers of members, once those that they serve have."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            reap_orphans(self.known)
            others = descendants_of(os.getpid()) - self.known
            if not others and tasks_of(os.getpid()) == self.tasks_before:
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
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    if method == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()
