"""Doubles of every protocol: one process in a world of its own, where time passes as it waits.

A `World` has a clock that nobody winds, descriptors that exist nowhere else, slots that are a
number, and workers that do what their `Script` says, when it says so. Time passes in two ways: a
test calls `World.advance`, or somebody waits in the `VirtualPoller`; then it leaps to whatever
happens next. A wait for which nothing will ever happen raises `Deadlock`.

    world = World()
    js = world.jobserver(slots=2)
    future = js(perform, Script(after=5), "x")
    assert not future.done(4) and future.result() == "x" and world.now == 5

What a Protocol asks of its callers is checked: a breach raises AssertionError, and is kept in
`World.breaches` as well, should somebody catch it.
"""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import termios
from collections import Counter
from collections.abc import Sequence
from typing import Callable, Final, Literal, Optional, Union, get_args

import attrs

from .. import memory, pickles, serving, wire, worker
from ..engine import Engine
from ..protocols import Closed, Grant, Post, Slot, Task
from ..resources import Resources
from ..server import Jobserver
from ..settings import Settings

Ending = Literal[
    "value", "error", "unpicklable", "garbled", "exit", "killed", "refused", "huge", "forks"
]
ENDINGS: Final[tuple[Ending, ...]] = get_args(Ending)

# Calls that the library makes into the world, at which an interrupt can be placed.
Place = Literal["poll", "take", "launch", "receive", "reap"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)

EXIT_STATUS: Final = 3  # of a worker whose work ends with SystemExit
PART_SECONDS: Final = 0.25  # from one part of an answer to the next
FIRST_PID: Final = 1 << 22  # Linux' limit, so that no process has such a number

# A huge answer comes in so many parts more, each of which is written when the last has been read.
# A chunk of three such answers fills as many pipes (64 KiB) at most.
_MORE_PARTS: Final = 4
_HUGE: Final = 100_000  # bytes

_FIRST_DESCRIPTOR: Final = 1 << 22  # above all that are the kernel's

_SPINS: Final = 1000  # waits in a row that return at once; real ones do so a few times

_identities = itertools.count()


class Deadlock(BaseException):
    """Somebody waits, and nothing will ever happen. No Exception, lest it be taken for one."""


@attrs.frozen
class Script:
    """What a piece of work does, and when."""

    ending: Ending = "value"
    after: Optional[float] = 0.0  # seconds; None: it stalls, until a signal or `go_on`
    lingers: float = 0.0  # seconds that the process goes on once it has answered for the last time
    parts: int = 1  # in which the answer arrives; death comes before the last one
    unbegun: int = 0  # so many workers that get it are killed before they begin it
    size: int = 0  # bytes that it has when it is pickled, besides

    def __reduce__(self) -> tuple[object, ...]:
        if self.ending == "refused":
            raise ValueError("its script says so")
        fields = self.ending, self.after, self.lingers, self.parts, self.unbegun
        return _arrive, (fields, bytes(self.size))


def _arrive(fields: tuple[Ending, Optional[float], float, int, int], cargo: bytes) -> Script:
    return Script(*fields, len(cargo))


@attrs.frozen
class Huge:
    """A value that is more than a pipe holds."""

    value: object

    def __reduce__(self) -> tuple[object, ...]:
        return _unpack, (self.value, bytes(_HUGE))


def _unpack(value: object, _: bytes) -> Huge:
    return Huge(value)


class _Killed(SystemExit):
    """The work is killed at this point: of a kind that ends the rest of a chunk as well."""


# The scripts that the work being done has come upon, and the values that came with them.
_stage: Optional[list[tuple[Script, object]]] = None


def perform(script: Script, *args: object) -> object:
    """Work for a `ScriptedLauncher`; its value is its first argument, or None."""
    assert _stage is not None, "scripts are for the workers of a ScriptedLauncher"
    value = args[0] if args else None
    _stage.append((script, value))
    if script.ending == "error":
        raise ValueError(value)
    if script.ending == "unpicklable":
        return lambda: value
    if script.ending == "exit":
        raise SystemExit(EXIT_STATUS)
    if script.ending == "killed":
        raise _Killed
    return Huge(value) if script.ending == "huge" else value


class Fate:
    """What becomes of one worker as time goes by. Pure: it knows no world; models use it, too.

    It waits for work, begins it, answers in parts, and waits again, or leaves: it closes its
    channel, and ends a while after that.
    """

    def __init__(self) -> None:
        self.begun: int = 0  # pieces of work
        self.answer: int = 0  # parts of the answer that are in the channel
        self.last: bool = False  # whether this answer is, or will be, the last
        self.closed: bool = False  # the channel, on the worker's side
        self.exitcode: Optional[int] = None  # None while it lives
        self.stopped: bool = False
        self.parts: int = 1  # of the answer
        self._waits = True  # for work
        self._inbox: Optional[tuple[Sequence[Script], Optional[float], int]] = None
        self._hung_up = False
        self._idle: Optional[float] = None  # seconds that it will wait for work
        self._killed = False  # before the last part of the answer
        self._status = 0
        self._timed = 1  # parts that wait for their time; the rest wait for the reader, as do those
        self._huge = False
        self._unread = False  # there is a part in the channel
        self._lingers = 0.0
        self._stalled = False
        self._next: Optional[float] = None  # when something happens
        self._left = 0.0  # seconds until `_next` when it was stopped
        self._pending: Optional[int] = None  # the signal that will kill it when it is continued

    @property
    def listens(self) -> bool:
        """Whether it sees that there is work for it, or never will be."""
        return self._waits and not self.stopped and self._inbox is None and not self._hung_up

    @property
    def unseen(self) -> bool:
        """Whether there is work for it that it has not looked at."""
        return self._inbox is not None

    @property
    def answered(self) -> bool:
        """Whether the answer is whole."""
        return self.answer == self.parts

    @property
    def awaits_reader(self) -> bool:
        """Whether it answers no further until what is in the channel has been read."""
        return self._huge and self._unread

    @property
    def due(self) -> Optional[float]:
        """When the next thing happens, if nobody sends a signal; None: never."""
        if self.stopped or self.exitcode is not None:
            return None
        if self._waits:
            return 0.0 if self._inbox is not None or self._hung_up else self._next
        return None if self._stalled or self.awaits_reader else self._next

    def hand(self, scripts: Sequence[Script], idle: Optional[float] = None, taken: int = 0) -> None:
        """There is work for it, which so many others have taken; it will wait for more then.

        `idle` is for how many seconds it will; None: there is nothing more.
        """
        self._inbox = scripts, idle, taken
        self.answer, self.parts = 0, 1

    def hang_up(self) -> None:
        """There is nothing more."""
        self._hung_up = True

    def happen(self, now: float) -> None:
        """What was due happens."""
        if self._waits:
            if self._inbox is not None:
                self._begin(*self._inbox, now)
            else:
                self._leave(now)
        elif self.closed:
            self._end(self._status)
        elif self._killed and self.answer == self.parts - 1:
            self._end(-signal.SIGKILL)
        else:
            self.answer += 1
            self._unread = True
            if not self.answered:
                self._next = now + (PART_SECONDS if self.answer < self._timed else 0)
            elif self.last:
                self._leave(now)
            else:
                assert self._idle is not None, "it is the last"
                self._waits, self._next = True, now + self._idle

    def read(self, now: float) -> None:
        """All that is in the channel has been read."""
        if self.awaits_reader and self._next is not None:
            self._next = max(now, self._next)
        self._unread = False

    def go_on(self, now: float) -> None:
        """End a stall."""
        if self._stalled:
            self._stalled = False
            self._next = now
            self._left = 0.0

    def signal(self, signum: int, now: float) -> None:
        """What the kernel does with a signal that the work does not handle."""
        if self.exitcode is not None:
            return
        if signum == signal.SIGSTOP:
            if not self.stopped:
                self.stopped = True
                self._left = 0.0 if self._next is None else max(0.0, self._next - now)
        elif signum == signal.SIGCONT:
            if self.stopped:
                self.stopped = False
                self._next = None if self._next is None else now + self._left
            if self._pending is not None:
                self._end(-self._pending)
        elif not self.stopped or signum == signal.SIGKILL:
            self._end(-signum)
        else:
            self._pending = self._pending or signum

    def _begin(
        self, scripts: Sequence[Script], idle: Optional[float], taken: int, now: float
    ) -> None:
        self._inbox = None
        if any(script.unbegun > taken for script in scripts):
            self._end(-signal.SIGKILL)
            return
        endings = {script.ending for script in scripts}
        self.begun += 1
        self._waits = False
        self._idle = idle
        self.last = idle is None or bool(endings & {"exit", "forks"})
        self._killed = "killed" in endings
        self._status = EXIT_STATUS if "exit" in endings else 0
        self._timed = max((script.parts for script in scripts), default=1)
        self._huge = "huge" in endings and not endings & {"exit", "killed", "garbled"}
        self.parts = self._timed + _MORE_PARTS * self._huge
        self._unread = False
        self._lingers = max((script.lingers for script in scripts), default=0.0)
        self._stalled = any(script.after is None for script in scripts)
        self._next = now + sum(script.after or 0.0 for script in scripts)

    def _leave(self, now: float) -> None:
        self._waits = False
        self.closed = True
        self._stalled = self._huge = False
        self._next = now + self._lingers

    def _end(self, exitcode: int) -> None:
        self.exitcode = exitcode
        self.closed = True


class World:
    """Time, descriptors and workers, as one process meets them."""

    def __init__(self) -> None:
        self.now: float = 0.0  # seconds
        self.workers: list[ScriptedWorker] = []  # all that were ever started
        self.begun: list[Begun] = []  # what work was begun
        self.breaches: list[str] = []
        self.descriptors: dict[int, str] = {}  # those that are open, and what they are
        self.watched: set[int] = set()
        self.channels: dict[int, ScriptedChannel] = {}  # by the descriptor to reply on
        self.receipts: dict[int, Optional[Slot]] = {}  # of workers that serve: the slots on them
        self.taken: Counter[bytes] = Counter()  # how many workers that serve have got some work
        self._living: list[ScriptedWorker] = []
        self._readable: dict[int, Callable[[], bool]] = {}
        self._numbers = itertools.count(_FIRST_DESCRIPTOR)
        self._agenda: list[tuple[float, Callable[[], None]]] = []
        self._interrupt: Optional[Place] = None
        self._short = False

    def jobserver(self, slots: int, *, inside: bool = False) -> Jobserver:
        """A new Jobserver in this world; `inside`: its process runs work on one of its slots."""
        return handle(self, VirtualSlots(self, slots, inside=inside))

    def clock(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass, and happen what is due meanwhile."""
        end = self.now + seconds
        while self.leap(end):
            pass
        self.now = end

    def leap(self, end: Optional[float]) -> bool:
        """Go to when something happens, but not beyond `end`; False when there is nothing."""
        self._living = [member for member in self._living if member.fate.exitcode is None]
        for member in self._living:
            member.look()
        times = [time for time, _ in self._agenda]
        times += [member.fate.due for member in self._living if member.fate.due is not None]
        time = min(times, default=None)
        if time is None or (end is not None and time > end):
            return False
        self.now = max(self.now, time)
        due = [action for when, action in self._agenda if when <= self.now]
        self._agenda = [entry for entry in self._agenda if entry[0] > self.now]
        for action in due:
            action()
        for member in self._living:
            if member.fate.due is not None and member.fate.due <= self.now:
                member.fate.happen(self.now)
                member.show()
        return True

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something else happen after so many seconds."""
        self._agenda.append((self.now + seconds, action))

    def add(self, worker: ScriptedWorker) -> None:
        """A worker is started."""
        self.workers.append(worker)
        self._living.append(worker)

    @property
    def living(self) -> list[ScriptedWorker]:
        """Workers that have not ended, in the order in which they were started."""
        return [worker for worker in self.workers if worker.fate.exitcode is None]

    def run_short(self, short: bool) -> None:
        """Have the system be out of what the next start of a worker needs; or not any more."""
        self._short = short

    def check_room(self) -> None:
        """A worker is about to be started."""
        if self._short:
            self._short = False
            raise OSError("no room for another process: the world says so")

    def interrupt(self, place: Optional[Place]) -> None:
        """Have SIGINT arrive at the next call of this kind; None: at no call any more."""
        self._interrupt = place

    def reach(self, place: Place) -> None:
        """A call of this kind is made."""
        if self._interrupt == place:
            self._interrupt = None
            signal.raise_signal(signal.SIGINT)

    def open(self, what: str, readable: Callable[[], bool]) -> int:
        """A new descriptor."""
        fd = next(self._numbers)
        self.descriptors[fd] = what
        self._readable[fd] = readable
        return fd

    def close(self, fd: int) -> None:
        self.check(fd in self.descriptors, f"descriptor {fd} is closed, which is not open")
        self.check(fd not in self.watched, f"{self.descriptors[fd]} is closed while it is watched")
        del self.descriptors[fd], self._readable[fd]

    def is_open(self, fd: int) -> bool:
        return fd in self.descriptors or _events(fd) != select.POLLNVAL

    def readable(self, fd: int) -> bool:
        """Also of a descriptor that is the kernel's."""
        if fd >= _FIRST_DESCRIPTOR:
            return fd in self._readable and self._readable[fd]()
        events = _events(fd)
        self.check(events != select.POLLNVAL, f"descriptor {fd} is closed while it is watched")
        return events != 0

    def check(self, kept: bool, breach: str) -> None:
        """Whether the caller keeps to the Protocol."""
        if not kept:
            self.breaches.append(breach)
            raise AssertionError(breach)

    def describe(self) -> str:
        """What somebody who waits in vain wants to know."""
        lines = [f"at {self.now} s nothing will ever happen to who waits for:"]
        serves = "a channel of a worker that serves"
        lines += [f"    {self.descriptors.get(fd, serves)}" for fd in sorted(self.watched)]
        lines += ["the workers:", *(f"    {worker.describe()}" for worker in self.workers)]
        return "\n".join(lines)


def _events(fd: int) -> int:
    """What poll(2) says of a descriptor of the kernel's."""
    kernel = select.poll()
    kernel.register(fd, select.POLLIN)
    found = kernel.poll(0)
    return found[0][1] if found else 0


def handle(world: World, slots: VirtualSlots) -> Jobserver:
    """A Jobserver over these slots, made as unpickling makes one."""
    resources = Resources(
        multiprocessing.get_context("spawn"),  # named in texts, never used
        Engine(slots, world.clock, lambda: VirtualPoller(world)),
        ScriptedLauncher(world),
        lambda: ScriptedChannel(world),
    )
    jobserver = Jobserver.__new__(Jobserver)
    jobserver.__setstate__((resources, Settings()))
    return jobserver


class VirtualSlots:
    """`protocols.SlotSource`: a number of slots, of which strangers may take some."""

    def __init__(self, world: World, count: int, *, inside: bool = False) -> None:
        self.identity: str = f"virtual {next(_identities)}"
        self.count = count
        self.free: int = count - inside
        self.hindered = False
        self.recovers = False  # in this world, nobody dies who holds a slot that is not given back
        self.recovered = 0
        self.closed: bool = False
        self._world = world
        self._inside = inside
        self._lent: Optional[Slot] = None
        self._out: set[Slot] = set()
        self._fd = world.open("a slot", lambda: self.free > 0)

    def used(self) -> int:
        return self.count - self.free

    @property
    def out(self) -> int:
        return len(self._out) + (self._lent is not None)

    def fileno(self) -> int:
        return self._fd

    def take(self) -> Optional[Slot]:
        self._world.check(not self.closed, "a slot is taken from a closed source")
        self._world.reach("take")
        if self.free == 0:
            return None
        self.free -= 1
        slot = Slot(b"+")
        self._out.add(slot)
        return slot

    def lend(self) -> Optional[Slot]:
        if not self._inside or self._lent is not None:
            return None
        self._lent = Slot(b"")
        return self._lent

    @property
    def lent(self) -> Optional[Slot]:
        return self._lent

    def places(self) -> frozenset[int]:
        return frozenset()

    def is_lent(self, slot: Optional[Slot]) -> bool:
        return slot is not None and slot is self._lent

    def relieve(self, slot: Optional[Slot]) -> bool:
        if slot is None or slot is not self._lent:
            return False
        self._world.reach("take")
        if self.free == 0:
            return False
        self.free -= 1
        self._lent = None
        slot.token = b"+"
        self._out.add(slot)
        return True

    def held(self, slot: Slot) -> tuple[str, int, Optional[int]]:
        return self.identity, slot.place, slot.relief

    def open_receipt(self) -> int:
        receipt = self._world.open("a receipt", lambda: False)
        self._world.receipts[receipt] = None
        return receipt

    def close_receipt(self, receipt: int) -> None:
        slot = self._world.receipts.pop(receipt)
        self._world.check(slot is None, "a receipt is closed that tells of a slot")
        self._world.close(receipt)

    def hand_over(self, slot: Slot, receipt: int) -> None:
        known = slot is self._lent or slot in self._out
        self._world.check(known, "a slot is handed over that is not out")
        told = self._world.receipts[receipt]
        self._world.check(told is None, "a slot is handed over to a receipt that has one")
        self._leave_receipt(slot)
        slot.receipt, slot.kept = receipt, True
        self._world.receipts[receipt] = slot

    def _leave_receipt(self, slot: Slot) -> None:
        if slot.receipt >= 0:
            self._world.receipts[slot.receipt] = None
            if not slot.kept:
                self.close_receipt(slot.receipt)
            slot.receipt, slot.kept = -1, False

    def grant(self, slot: Slot) -> Optional[Grant]:
        self._world.check(slot in self._out or slot is self._lent, "a grant for a slot not out")
        return Grant(-1, -1, -1, "")  # no program runs in this world

    def withdraw(self, grant: Grant) -> None:
        pass

    def give_back(self, slot: Slot, *, ended: bool = True) -> bool:
        self._world.check(ended, "a slot is given back of a worker that may still run")
        if slot is self._lent:
            self._lent = None
        else:
            self._world.check(slot in self._out, "a slot is given back that is not out")
            self._out.remove(slot)
            self.free += 1
        self._leave_receipt(slot)
        return True

    def audit(self) -> int:
        return 0

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._world.close(self._fd)

    def stranger_takes(self) -> None:
        """Another process of the tree takes a slot."""
        self.free -= 1

    def stranger_returns(self) -> None:
        """Another process of the tree gives a slot back."""
        self.free += 1


class VirtualPoller:
    """`protocols.Poller`: whoever waits here makes time pass."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._subjects: dict[int, object] = {}
        self._woken = False
        self._spins = 0
        self._fd = world.open("a poller", lambda: False)

    def watch(self, fd: int, subject: object) -> None:
        self._world.check(self._world.is_open(fd), f"descriptor {fd} is watched, not open")
        self._subjects.pop(fd, None)
        self._subjects[fd] = subject
        self._world.watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self._world.check(fd in self._subjects, f"descriptor {fd} is not watched")
        del self._subjects[fd]
        self._world.watched.discard(fd)

    def poll(self, timeout: Optional[float]) -> list[object]:
        """What is ready, in the order in which it came to be watched."""
        world = self._world
        world.reach("poll")
        end = None if timeout is None else world.now + timeout
        self._spins += timeout != 0
        world.check(self._spins < _SPINS, "somebody spins, on what is ready and is not taken")
        world.advance(0)
        while True:
            ready = [subject for fd, subject in self._subjects.items() if world.readable(fd)]
            if ready or self._woken:
                self._woken = False
                return ready
            self._spins = 0
            if not world.leap(end):
                if end is None:
                    raise Deadlock(world.describe())
                world.now = end
                return []
            world.advance(0)

    def wake(self) -> None:
        self._woken = True

    def close(self) -> None:
        self._world.watched.difference_update(self._subjects)
        self._world.close(self._fd)


class ScriptedChannel:
    """`protocols.Channel`: in memory, from a worker that a `Script` describes."""

    lasts: bool = False

    def __init__(self, world: World) -> None:
        self.fate: Optional[Fate] = None  # of the worker, once there is one
        self.frame: Optional[wire.Frame] = None  # what it will answer, if it lives to
        self.reply: int = world.open("the worker's end of a channel", lambda: False)
        self._world = world
        self._reply_closed = False
        self._seen = 0  # parts of the answer
        self._fd = world.open("a channel", self._readable)
        world.channels[self.reply] = self

    def close_reply(self) -> None:
        self._reply_closed = True
        self._world.close(self.reply)
        del self._world.channels[self.reply]

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Union[wire.Frame, Closed, None]:
        self._world.reach("receive")
        self._world.check(self._fd in self._world.descriptors, "a closed channel is read")
        if self.fate is None:
            return None
        self._seen = self.fate.answer
        self.fate.read(self._world.now)
        if self.fate.answered:
            return self.frame
        return Closed.CLOSED if self._at_end() else None

    def close(self) -> None:
        self._world.close(self._fd)

    def _readable(self) -> bool:
        return self.fate is not None and (self.fate.answer > self._seen or self._at_end())

    def _at_end(self) -> bool:
        return self.fate is not None and self.fate.closed and self._reply_closed


@attrs.frozen
class Begun:
    """A piece of work, at the moment at which a worker begins it."""

    pid: int
    task: Task
    values: tuple[object, ...]  # of the calls that come to be made


class ScriptedWorker:
    """`protocols.Worker`: does what its `Fate` says."""

    exitcode: Optional[int] = None

    def __init__(self, world: World) -> None:
        self.pid: int = FIRST_PID + len(world.workers)
        self.fate: Fate = Fate()
        self._world = world
        self._reaped = False
        self._fd: Optional[int] = None
        world.add(self)

    def poll(self) -> bool:
        self._world.reach("reap")
        self._world.check(not self._reaped, f"worker {self.pid} is reaped again")
        self._reaped = self.fate.exitcode is not None
        self.exitcode = self.fate.exitcode
        return self._reaped

    def fileno(self) -> int:
        if self._fd is None:
            self._fd = self._world.open("a worker's end", lambda: self.fate.exitcode is not None)
        return self._fd

    def send_signal(self, signum: int) -> None:
        self._world.check(not self._reaped, f"signal {signum} is sent to {self.pid}, reaped")
        self.suffer(signum)

    def suffer(self, signum: int) -> None:
        """A signal comes, from whomever."""
        self.fate.signal(signum, self._world.now)
        self.show()

    def close(self) -> None:
        self._world.check(self._reaped, f"worker {self.pid} is closed before it is reaped")
        if self._fd is not None:
            self._world.close(self._fd)

    def look(self) -> None:
        """See what there is to see for it, before time passes."""

    def show(self) -> None:
        """Have others see what has happened to it."""

    def describe(self) -> str:
        fate = self.fate
        if fate.exitcode is not None:
            ended = "reaped" if self._reaped else "not reaped"
            return f"worker {self.pid} ended with {fate.exitcode}, {ended}"
        when = "stalls, waits or is stopped" if fate.due is None else f"goes on at {fate.due} s"
        return f"worker {self.pid} {when}"


class ScriptedServant(ScriptedWorker):
    """`protocols.Servant`: a worker that serves, in virtual time, at descriptors of the kernel's.

    It is sent work, counts it and answers as a real one does; so all that its parent does about it
    is the real thing, but for the time that passes.
    """

    def __init__(self, world: World, post: Post) -> None:
        super().__init__(world)
        self._reply = os.dup(post.reply)
        os.set_blocking(self._reply, False)
        self._requests = socket.socket(fileno=os.dup(post.requests))
        self._requests.setblocking(False)
        self._count = os.dup(post.begun)
        self._receipt = post.receipt
        self._open = True
        self._most: Optional[int] = None  # pieces of work, once it was sent a signal
        self._work: Optional[Begun] = None  # that it has taken
        self._packet: wire.Packet = wire.pack_value(None)
        self._answer = b""  # what is to be sent of it
        self._counted = 0
        self._sent = 0  # parts of the answer

    def send_signal(self, signum: int) -> None:
        if self._open and self._most is None:
            has_more = self.fate.unseen or bool(_events(self._requests.fileno()))
            self._most = self._counted + has_more
        super().send_signal(signum)

    def await_end(self, timeout: Optional[float]) -> None:
        """Let time pass meanwhile."""
        world = self._world
        end = None if timeout is None else world.now + timeout
        while self.fate.exitcode is None:
            if not world.leap(end):
                if end is None:
                    raise Deadlock(world.describe())
                world.now = end
                return
        world.advance(0)

    def look(self) -> None:
        fate = self.fate
        if not self._open:
            return
        if fate.awaits_reader and not _unread(self._reply):
            fate.read(self._world.now)
        if not _events(self._requests.fileno()):
            return
        if fate.listens:
            try:
                request = serving.receive(self._requests)
            except BlockingIOError:
                self._world.check(False, f"worker {self.pid} is not sent one piece of work whole")
                raise
            if request is None:
                fate.hang_up()
            else:
                self._take(request)
        elif not fate.stopped and not fate.unseen:
            more = self._requests.recv(1, socket.MSG_PEEK)
            self._world.check(not more, f"worker {self.pid} is sent work while it has some")

    def _take(self, request: serving.Request) -> None:
        with request.stream as stream:
            start = stream.tell()
            content = stream.read()
            stream.seek(start)
            env, held, _, beside, for_executor = pickle.load(stream)
            call = worker.load_call(stream, beside)
            task = Task(call, env, held, for_executor=for_executor)
            stream.seek(start)  # for another one, as this one may not have begun it
        for fd in request.fds:
            os.close(fd)
        scripts, values, packet = _perform(task)
        self._work = Begun(self.pid, task, values)
        taken = self._world.taken[content]
        self._world.taken[content] += 1
        self.fate.hand(scripts, request.idle / 1000, taken)
        # Of somebody who is killed, nobody gets more than a part.
        self._packet = packet or wire.pack_value(None)

    def show(self) -> None:
        fate = self.fate
        if fate.begun > self._counted:
            self._begin()
        while self._sent < fate.answer:
            # Parts that are alike in size; but the first has the header, for what is less than that
            # is looked at by itself, and what comes at the same moment then takes one look more.
            size = -(-len(self._answer) // (fate.parts - self._sent))
            size = size if self._sent else max(size, wire.HEADER.size)
            part, self._answer = self._answer[:size], self._answer[size:]
            sent = os.write(self._reply, part)
            self._world.check(sent == len(part), "an answer is not read")
            self._sent += 1
        if fate.closed:
            self.let_go()

    def _begin(self) -> None:
        assert self._work is not None, "it has taken some"
        check = self._world.check
        self._counted = self.fate.begun
        os.pwrite(self._count, serving.BEGUN.pack(self._counted), 0)
        self._world.begun.append(self._work)
        self._answer = _in_bytes(self._packet, last=self.fate.last)
        self._sent = 0
        told = self._world.receipts.get(self._receipt)
        on_slot = self._work.task.held is not None
        check(on_slot == (told is not None), "a receipt does not tell of the slot that is in use")
        again = self._most is not None and self._counted > self._most
        check(not again, f"worker {self.pid} was sent a signal, and is used again")

    def let_go(self) -> None:
        """Close its ends, as one does who ends."""
        if self._open:
            self._open = False
            os.close(self._reply)
            os.close(self._count)
            self._requests.close()


class ScriptedLauncher:
    """`protocols.Launcher`: the work is done at once, here; what comes of it is told in time.

    Scripts that it comes upon, by `perform`, say when, and what else becomes of the worker. Env and
    preexec are not applied; they are in the task of what was `Begun`.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def launch(self, task: Task, reply: int) -> ScriptedWorker:
        world = self._world
        world.check_room()
        scripts, values, packet = _perform(task)
        if any(script.ending == "refused" for script in scripts):
            try:
                raise ValueError("frames of it lead here")
            except ValueError as cause:
                raise TypeError("the work is not picklable: its script says so") from cause
        worker = ScriptedWorker(world)
        worker.fate.hand(scripts)
        worker.fate.happen(world.now)
        if worker.fate.begun:
            world.begun.append(Begun(worker.pid, task, values))
        channel = world.channels[reply]
        channel.fate = worker.fate
        if packet is not None:
            body = memoryview(b"".join(packet.pickled.stream))
            text = str(packet.text, "utf-8")
            channel.frame = wire.Frame(packet.kind, text, body, packet.pickled.buffers)
        world.reach("launch")
        return worker

    def hire(self, post: Post) -> ScriptedServant:
        self._world.check_room()
        servant = ScriptedServant(self._world, post)
        self._world.reach("launch")
        return servant


def _perform(
    task: Task,
) -> tuple[list[Script], tuple[object, ...], Optional[wire.Packet]]:
    """Do the work: what was come upon, and how it ended; None if it was killed."""
    global _stage
    _, fn, args, kwargs = task.call
    seen: list[tuple[Script, object]] = []
    packet: Optional[wire.Packet] = None
    outer, _stage = _stage, seen
    try:
        packet = wire.pack_value(fn(*args, **kwargs))
    except _Killed:
        pass
    except BaseException as error:
        packet = wire.pack_error(error)
    finally:
        _stage = outer
    scripts = [script for script, _ in seen]
    if packet is not None and any(script.ending == "garbled" for script in scripts):
        packet = wire.Packet(wire.VALUE, "", pickles.Pickled())
        packet.pickled.write(b"garbled")
    return scripts, tuple(value for _, value in seen), packet


def _in_bytes(packet: wire.Packet, *, last: bool) -> bytes:
    """A packet as it is sent."""
    fd = memory.open_unnamed()
    try:
        packet.send(fd, last=last)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _unread(fd: int) -> int:
    """How many bytes are in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)
