"""Every state that a small tree can come to, whoever goes on next and whoever is killed when."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any, Optional

import attrs

from jobserver.slots import DEPTHS

from .programs import (
    ROOT,
    THREAD,
    Memory,
    Request,
    computing,
    freeze,
    has_answered,
    is_idle,
    is_newborn,
    make_pool,
    next_request,
    owes,
    simulated,
)
from .world import (
    GATE,
    GATE_FILE,
    OUTER_PIPE,
    OUTER_READ,
    OUTER_WRITE,
    PIPE,
    READ,
    RECEIPTS,
    RECEIPTS_FILE,
    WRITE,
    Description,
    Lives,
    Process,
    World,
)

# What concerns nobody else, whenever it happens.
_PRIVATE = ("choose", "new_place", "open")

BYSTANDER = 0  # the process that has the slots as well, does nothing and is not killed


@attrs.frozen
class Member:
    """A process that is there from the beginning, and holds no slot."""

    submissions: int = 0
    below: tuple[int, ...] = ()  # submissions of each worker, of each worker of those, ...
    commands: int = 0  # programs that it runs, which take bytes as make's clients do
    inside: int = 0  # programs that each of its workers runs
    takes: int = 1  # how often such a program takes a byte beside its own slot, at most
    gives: int = 0  # how often it lends its own slot to the pipe, at most, and takes it back
    audits: int = 0  # at any time, besides those that waiting makes
    helpers: int = 0  # processes that it forks, which hold nothing
    blind: bool = False  # whether it may hear of an answer and never of the worker's end
    threads: tuple[Member, ...] = ()  # further ones of the process, each with a pool of its own


@attrs.frozen
class Tree:
    """What is explored."""

    name: str
    slots: int
    members: tuple[Member, ...]
    kills: Optional[int] = None  # at most; None: everybody
    joined: bool = False  # whether the slots are make's, and the first member is who joined
    slow: bool = False  # whether the kernel opens a dead process's gate before it does the rest
    # Whether everybody comes to an end. A program that has lent its slot does not if who took the
    # byte is killed, and all who would give it back: nobody can tell who has a missing byte.
    ends: bool = True


class Violated(AssertionError):
    """A promise is broken; the message tells the steps that lead there."""


@attrs.define
class Reach:
    """How much was explored."""

    states: int = 0
    transitions: int = 0
    idle: int = 0  # states in which nobody holds a slot
    endings: int = 0  # states in which nobody is left
    most: int = 0  # computed at once


class _Explorer:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.lives = Lives()
        self.requests: dict[int, tuple[Optional[Request], int]] = {}
        self.computing: dict[int, int] = {}
        self.resting: dict[int, bool] = {}
        self.reach = Reach()
        self.index: dict[Any, int] = {}
        self.origins: list[tuple[int, str]] = []  # of each state: the one before, and the step
        self.before: list[list[int]] = []  # those from which it is one step, no kill
        self.endings: list[int] = []

    def explore(self) -> Reach:
        pending: deque[tuple[int, World, int]] = deque()
        for world in self._initial():
            self._reached(world, None, "", 0, pending)
        while pending:
            number, world, kills = pending.popleft()
            for label, following in self._steps(world):
                self._reached(following, number, label, kills, pending)
            if self.tree.kills is None or kills < self.tree.kills:
                for pid, process in enumerate(world.processes):
                    if process.threads and pid != BYSTANDER:
                        following = world.copy()
                        self._kill(following, pid)
                        self._reached(following, number, f"kill {pid}", kills + 1, pending)
        if self.tree.ends:
            self._check_progress()
        self.reach.states = len(self.origins)
        return self.reach

    def _reached(
        self,
        world: World,
        origin: Optional[int],
        label: str,
        kills: int,
        pending: deque[tuple[int, World, int]],
    ) -> None:
        self.reach.transitions += 1
        world, key = world.canonical(self.lives)
        counted = key if self.tree.kills is None else (key, kills)
        number = self.index.get(counted)
        if number is None:
            number = self.index[counted] = len(self.origins)
            self.origins.append((-1 if origin is None else origin, label))
            self.before.append([])
            pending.append((number, world, kills))
            self._check(number, world)
        if origin is not None and not label.startswith("kill"):
            self.before[number].append(origin)

    def _check(self, number: int, world: World) -> None:
        running = sum(
            self._computing(thread) for process in world.processes for thread in process.threads
        )
        self.reach.most = max(self.reach.most, running)
        # A program that was killed has left what it had lent to the pipe, until an audit drains it.
        most = self.tree.slots + world.owed
        if running > most:
            raise Violated(f"{running} compute on {self.tree.slots} slots:\n{self._story(number)}")
        if self.tree.joined and running + world.outer > most:
            raise Violated(
                f"{running} compute, and make has {world.outer} of {self.tree.slots} slots:\n"
                + self._story(number)
            )
        if world.bytes > most:
            raise Violated(
                f"{world.bytes} bytes for {self.tree.slots} slots:\n{self._story(number)}"
            )
        living = [process for process in world.processes[BYSTANDER + 1 :] if process.alive]
        if not living:
            self.endings.append(number)
            self.reach.endings += 1
        if all(
            process.threads and all(self._is_at_rest(thread) for thread in process.threads)
            for process in living
        ):
            self.reach.idle += 1
            left = self._audited(world) + self.tree.joined  # the implicit one has no byte
            if left != self.tree.slots:
                raise Violated(
                    f"{left} of {self.tree.slots} slots are there when nobody holds one:\n"
                    + self._story(number)
                )

    def _check_progress(self) -> None:
        """Whether every state can come to an end without further kills."""
        fine = bytearray(len(self.origins))
        pending = list(self.endings)
        for number in pending:
            fine[number] = True
        while pending:
            for number in self.before[pending.pop()]:
                if not fine[number]:
                    fine[number] = True
                    pending.append(number)
        stuck = fine.find(0)
        if stuck >= 0:
            raise Violated(f"there is no way on:\n{self._story(stuck)}")

    def _story(self, number: int) -> str:
        lines: list[str] = []
        while number >= 0:
            number, label = self.origins[number]
            lines.append(label)
        return "\n".join(reversed(lines))

    def _computing(self, thread: int) -> int:
        found = self.computing.get(thread)
        if found is None:
            found = self.computing[thread] = computing(self.lives[thread][0])
        return found

    def _is_at_rest(self, thread: int) -> bool:
        """Whether a thread holds no slot, and is not between the steps of anything."""
        found = self.resting.get(thread)
        if found is None:
            memory, answers = self.lives[thread]
            # A child that has just been forked may have a copy of what a killed holder held.
            idle = is_idle(memory) and (self.tree.kills == 0 or not is_newborn(memory))
            requests = (next_request(memory, answers[:n])[0] for n in range(len(answers)))
            between = any(request and request[0] not in _PRIVATE for request in requests)
            found = self.resting[thread] = idle and not between
        return found

    # What comes first and next.

    def _initial(self) -> list[World]:
        world = World()
        files = {READ: PIPE, WRITE: PIPE, RECEIPTS: RECEIPTS_FILE, GATE: GATE_FILE}
        if self.tree.joined:
            world.outer = self.tree.slots - 1
            files |= {OUTER_READ: OUTER_PIPE, OUTER_WRITE: OUTER_PIPE}
        else:
            world.bytes = self.tree.slots
        for fd, file in files.items():
            world.descriptions[fd] = Description(file)
        shared = {fd: fd for fd in files}
        world.processes.append(Process(dict(shared), ()))
        for member in self.tree.members:
            role = THREAD if member.threads else ROOT
            first = self.tree.joined and member is self.tree.members[0]
            threads = [
                self._thread(each, role, implicit=first and each is member)
                for each in (member, *member.threads)
            ]
            world.processes.append(Process(dict(shared), tuple(threads)))
        worlds = [world]
        for pid, member in enumerate(self.tree.members, 1):
            for tid in range(1 + len(member.threads)):
                worlds = [settled for world in worlds for settled in self._settled(world, pid, tid)]
        return worlds

    def _thread(self, member: Member, role: str, *, implicit: bool = False) -> int:
        pool = make_pool(self.tree.slots, joined=self.tree.joined, implicit=implicit)
        memory = Memory(role, pool)
        memory.submissions = member.submissions
        memory.below = member.below
        memory.commands = member.commands
        memory.inside = member.inside
        memory.takes = member.takes
        memory.gives = member.gives
        memory.audits = member.audits
        memory.helpers = member.helpers
        memory.blind = member.blind
        return self.lives.number(freeze(memory), ())

    def _steps(self, world: World) -> Generator[tuple[str, World], None, None]:
        for pid, process in enumerate(world.processes):
            if process.alive and not process.threads and pid != BYSTANDER:
                following = world.copy()
                following.end(pid)
                yield f"{pid} is gone", following
            for tid, thread in enumerate(process.threads):
                request, _ = self._next(thread)
                assert request is not None, "settled"
                following = world.copy()
                answer = self._answer(following, pid, request)
                label = f"{pid}.{tid} {self._operation(thread)}: {request[:2]} -> {answer}"
                if request[0] == "exit":
                    self._exit(following, pid, tid)
                    yield label, following
                    continue
                self._note(following, pid, tid, answer)
                for settled in self._settled(following, pid, tid):
                    yield label, settled

    def _kill(self, world: World, pid: int) -> None:
        threads = world.processes[pid].threads
        world.owed += sum(owes(self.lives[thread][0]) for thread in threads)
        if self.tree.slow:
            process = world.processes[pid]
            process.threads = ()
            process.turnstile = False
            process.locks.clear()
        else:
            world.end(pid)

    @staticmethod
    def _exit(world: World, pid: int, tid: int) -> None:
        process = world.processes[pid]
        process.threads = process.threads[:tid] + process.threads[tid + 1 :]
        if not process.threads:
            world.end(pid)

    def _operation(self, thread: int) -> str:
        return str(dict(self.lives[thread][0])["operation"])

    def _settled(self, world: World, pid: int, tid: int) -> list[World]:
        """Let a thread go on until it asks what concerns others; ways part where it chooses."""
        while True:
            process = world.processes[pid]
            request, following = self._next(process.threads[tid])
            if request is None:
                self._set(world, pid, tid, following)
            elif request[0] == "choose":
                worlds: list[World] = []
                for choice in range(request[1]):
                    chosen = world.copy()
                    self._note(chosen, pid, tid, choice)
                    worlds += self._settled(chosen, pid, tid)
                return worlds
            elif self._is_private(world, pid, request):
                self._note(world, pid, tid, self._answer(world, pid, request))
            else:
                return [world]

    def _next(self, thread: int) -> tuple[Optional[Request], int]:
        found = self.requests.get(thread)
        if found is None:
            request, memory = next_request(*self.lives[thread])
            following = self.lives.number(memory, ()) if request is None else -1
            found = self.requests[thread] = request, following
        return found

    def _note(self, world: World, pid: int, tid: int, answer: Any) -> None:
        memory, answers = self.lives[world.processes[pid].threads[tid]]
        self._set(world, pid, tid, self.lives.number(memory, (*answers, answer)))

    @staticmethod
    def _set(world: World, pid: int, tid: int, thread: int) -> None:
        threads = list(world.processes[pid].threads)
        threads[tid] = thread
        world.processes[pid].threads = tuple(threads)

    @staticmethod
    def _is_private(world: World, pid: int, request: Request) -> bool:
        """Whether nobody else can tell when it happens, before or after what others do."""
        process = world.processes[pid]
        name = request[0]
        if name.endswith("turnstile"):
            return len(process.threads) == 1
        if name == "close":
            description = world.descriptions[process.descriptors[request[1]]]
            return not description.places and description.file not in process.locks
        return name in _PRIVATE

    def _answer(self, world: World, pid: int, request: Request) -> Any:
        """Carry out what a thread asks for."""
        name, *args = request
        if name == "exit":
            return None
        if name == "new_place":
            return world.new_block(self.lives) * DEPTHS
        if name == "fork":
            child = world.fork(pid, self.lives.number(args[0], ()))
            assert self._next(world.processes[child].threads[0])[0], "it asks at once"
            return child
        if name == "has_answered":
            process = world.processes[args[0]]
            return all(has_answered(self.lives[thread][0]) for thread in process.threads)
        # The others are calls of the kernel's.
        return getattr(world, name)(pid, *args)

    def _audited(self, world: World) -> int:
        """How many bytes are there after an audit, if nobody else does anything meanwhile."""
        world = world.copy()
        auditor = self._thread(Member(audits=1), THREAD)
        world.processes[BYSTANDER].threads = (auditor,)
        while True:
            (thread,) = world.processes[BYSTANDER].threads
            request, following = self._next(thread)
            if request is None:
                self._set(world, BYSTANDER, 0, following)
            elif request[0] == "exit":
                return world.outer if self.tree.joined else world.bytes
            else:
                answer = 1 if request[0] == "choose" else self._answer(world, BYSTANDER, request)
                self._note(world, BYSTANDER, 0, answer)


def explore(tree: Tree) -> Reach:
    """Explore all of it; Violated when a promise is broken."""
    with simulated():
        return _Explorer(tree).explore()
