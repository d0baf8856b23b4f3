"""Who there is in a tree of puppets, as its machine has it: processes, their work, slots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final, Optional

import attrs

from .puppets import Outcome, Voice

__all__ = ("Claim", "Member", "Process", "Thread", "Unit")


@attrs.define(eq=False, repr=False)
class Process:
    """A worker, or the root: who runs one piece of work, or one after the other."""

    number: int
    pid: int
    serves: bool = False  # one after the other
    answering: int = -1  # the descriptor of its result channel, in the process itself
    pidfd: int = -1
    served: int = 0  # pieces of work that it was given
    entered: int = 0  # scopes of its handles that it is in
    closed: bool = False  # it has left the last of them, and is to have no workers that are idle
    signalled: bool = False  # by its submitter, who gives it nothing more to do then
    ended: bool = False
    idle: list[Process] = attrs.field(factory=list["Process"])  # its own, until it hears of an end

    def __repr__(self) -> str:
        return f"state.processes[{self.number}]"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))  # hypothesis would print all attributes

    @property
    def at_hand(self) -> list[Process]:
        return [process for process in self.idle if not process.ended]

    def fit(self, most: Optional[int]) -> list[Process]:
        """Those that it can give one more piece of work, of no more than so many."""
        if most == 1:
            return []
        return [process for process in self.at_hand if most is None or process.served < most]

    def all_idle(self) -> Iterator[Process]:
        """Those below it that have nothing to do: its own, and theirs."""
        for process in self.at_hand:
            yield process
            yield from process.all_idle()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            os.close(self.pidfd)


_NOBODY: Final = Process(-1, 0, ended=True)


@attrs.define(eq=False, repr=False)
class Member:
    """A piece of work, and what the model knows of it. The root is the machine's own."""

    number: int
    parent: Optional[Member]
    consume: int = 0
    most: Optional[int] = 1  # pieces of work that its worker may serve
    calls: list[object] = attrs.field(factory=list[object])  # what its callbacks will have noted
    unit: Optional[Unit] = None  # the slot that it runs on
    process: Process = _NOBODY  # once it is born
    voice: Optional[Voice] = None
    children: list[Member] = attrs.field(factory=list["Member"])
    claim: Optional[Claim] = None  # what keeps it from obeying
    threads: list[Thread] = attrs.field(factory=list["Thread"])
    born: bool = True  # its submission has been accepted
    stopped: bool = False
    answers: bool = False  # it has been told to, and not to end its process
    leaving: bool = False  # it has returned, and waits for its children
    ended: bool = False
    done: bool = False  # its submitter has its answer, or has reaped it
    seen: bool = False  # and the machine has seen what came of it
    fate: Outcome = ()  # what comes of it

    def __repr__(self) -> str:
        return f"state.members[{self.number}]"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))  # hypothesis would print all attributes

    @property
    def pid(self) -> int:
        return self.process.pid

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
    def worker(self) -> str:
        """What its process is, in words."""
        served = self.process.served
        return "fresh" if not self.process.serves else "served before" if served > 1 else "serves"

    @property
    def stays(self) -> bool:
        """Whether its process lives on when it has answered."""
        return self.answers and self.process.serves and not self.orphaned

    @property
    def is_kept(self) -> bool:
        """Whether that process is to be given more to do."""
        assert self.parent is not None
        process = self.process
        worn = self.most is not None and process.served >= self.most
        return not worn and not process.signalled and not self.parent.process.closed

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
