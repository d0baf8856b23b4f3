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

import itertools
import multiprocessing
import signal
from collections.abc import Sequence
from typing import Callable, Final, Literal, Optional, Union, get_args

import attrs

from .. import wire
from ..engine import Engine
from ..protocols import Closed, Grant, Post, Slot, Task
from ..resources import Resources
from ..server import Jobserver
from ..settings import Settings

Ending = Literal["value", "error", "unpicklable", "garbled", "exit", "killed", "refused", "short"]
ENDINGS: Final[tuple[Ending, ...]] = get_args(Ending)

# Calls that the library makes into the world, at which an interrupt can be placed.
Place = Literal["poll", "take", "launch", "receive", "reap"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)

EXIT_STATUS: Final = 3  # of a worker whose work ends with SystemExit
PART_SECONDS: Final = 0.25  # from one part of an answer to the next
FIRST_PID: Final = 1 << 22  # Linux' limit, so that no process has such a number

_SPINS: Final = 1000  # waits in a row that return at once; real ones do so a few times

_identities = itertools.count()


class Deadlock(BaseException):
    """Somebody waits, and nothing will ever happen. No Exception, lest it be taken for one."""


@attrs.frozen
class Script:
    """What a piece of work does, and when."""

    ending: Ending = "value"
    after: Optional[float] = 0.0  # seconds; None: it stalls, until a signal or `go_on`
    lingers: float = 0.0  # seconds that the process goes on once it has answered
    parts: int = 1  # in which the answer arrives; death comes before the last one


class _Killed(BaseException):
    """The work is killed at this point."""


# The scripts that the work of the worker being launched has come upon.
_stage: Optional[list[Script]] = None


def perform(script: Script, *args: object) -> object:
    """Work for a `ScriptedLauncher`; its value is its first argument, or None."""
    assert _stage is not None, "scripts are for the workers of a ScriptedLauncher"
    _stage.append(script)
    value = args[0] if args else None
    if script.ending == "error":
        raise ValueError(value)
    if script.ending == "unpicklable":
        return lambda: value
    if script.ending == "exit":
        raise SystemExit(EXIT_STATUS)
    if script.ending == "killed":
        raise _Killed
    return value


class Fate:
    """What becomes of one worker as time goes by. Pure: it knows no world; models use it, too."""

    def __init__(self, scripts: Sequence[Script], start: float) -> None:
        self.answer: int = 0  # parts of the answer that are in the channel
        self.closed: bool = False  # the channel, on the worker's side
        self.exitcode: Optional[int] = None  # None while it lives
        self._killed = any(script.ending == "killed" for script in scripts)
        self._status = EXIT_STATUS if any(script.ending == "exit" for script in scripts) else 0
        self._parts = max((script.parts for script in scripts), default=1)
        self._lingers = max((script.lingers for script in scripts), default=0.0)
        self._stalled = any(script.after is None for script in scripts)
        self._next = start + sum(script.after or 0.0 for script in scripts)
        self._left: Optional[float] = None  # seconds until `_next` when it was stopped
        self._pending: Optional[int] = None  # the signal that will kill it when it is continued

    @property
    def answered(self) -> bool:
        """Whether the answer is whole."""
        return self.answer == self._parts

    @property
    def due(self) -> Optional[float]:
        """When the next thing happens, if nobody sends a signal; None: never."""
        waits = self._stalled or self._left is not None or self.exitcode is not None
        return None if waits else self._next

    def happen(self) -> None:
        """What was due happens."""
        if self.answered:
            self._end(self._status)
        elif self._killed and self.answer == self._parts - 1:
            self._end(-signal.SIGKILL)
        else:
            self.answer += 1
            self.closed = self.answered
            self._next += self._lingers if self.answered else PART_SECONDS

    def go_on(self, now: float) -> None:
        """End a stall."""
        if self._stalled:
            self._stalled = False
            self._next = now
            self._left = None if self._left is None else 0.0

    def signal(self, signum: int, now: float) -> None:
        """What the kernel does with a signal that the work does not handle."""
        if self.exitcode is not None:
            return
        if signum == signal.SIGSTOP:
            if self._left is None:
                self._left = max(0.0, self._next - now)
        elif signum == signal.SIGCONT:
            if self._left is not None:
                self._next, self._left = now + self._left, None
            if self._pending is not None:
                self._end(-self._pending)
        elif self._left is None or signum == signal.SIGKILL:
            self._end(-signum)
        else:
            self._pending = self._pending or signum

    def _end(self, exitcode: int) -> None:
        self.exitcode = exitcode
        self.closed = True


class World:
    """Time, descriptors and workers, as one process meets them."""

    def __init__(self) -> None:
        self.now: float = 0.0  # seconds
        self.workers: list[ScriptedWorker] = []  # all that were ever launched
        self.breaches: list[str] = []
        self.descriptors: dict[int, str] = {}  # those that are open, and what they are
        self.watched: set[int] = set()
        self.channels: dict[int, ScriptedChannel] = {}  # by the descriptor to reply on
        self._readable: dict[int, Callable[[], bool]] = {}
        self._numbers = itertools.count(1000)
        self._agenda: list[tuple[float, Callable[[], None]]] = []
        self._interrupt: Optional[Place] = None

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
        times = [time for time, _ in self._agenda]
        times += [worker.fate.due for worker in self.workers if worker.fate.due is not None]
        time = min(times, default=None)
        if time is None or (end is not None and time > end):
            return False
        self.now = max(self.now, time)
        due = [action for when, action in self._agenda if when <= self.now]
        self._agenda = [entry for entry in self._agenda if entry[0] > self.now]
        for action in due:
            action()
        for worker in self.workers:
            if worker.fate.due is not None and worker.fate.due <= self.now:
                worker.fate.happen()
        return True

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something else happen after so many seconds."""
        self._agenda.append((self.now + seconds, action))

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

    def readable(self, fd: int) -> bool:
        return fd in self._readable and self._readable[fd]()

    def check(self, kept: bool, breach: str) -> None:
        """Whether the caller keeps to the Protocol."""
        if not kept:
            self.breaches.append(breach)
            raise AssertionError(breach)

    def describe(self) -> str:
        """What somebody who waits in vain wants to know."""
        lines = [f"at {self.now} s nothing will ever happen to who waits for:"]
        lines += [f"    {self.descriptors[fd]}" for fd in sorted(self.watched)]
        lines += ["the workers:", *(f"    {worker.describe()}" for worker in self.workers)]
        return "\n".join(lines)


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
        return -1

    def close_receipt(self, receipt: int) -> None:
        pass

    def hand_over(self, slot: Slot, receipt: int) -> None:
        pass

    def grant(self, slot: Slot) -> Optional[Grant]:
        self._world.check(slot in self._out or slot is self._lent, "a grant for a slot not out")
        return Grant(-1, -1, -1, "")  # no program runs in this world

    def withdraw(self, grant: Grant) -> None:
        pass

    def give_back(self, slot: Slot, *, ended: bool = True) -> bool:
        self._world.check(ended, "a slot is given back of a worker that may still run")
        if slot is self._lent:
            self._lent = None
            return True
        self._world.check(slot in self._out, "a slot is given back that is not out")
        self._out.remove(slot)
        self.free += 1
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
        self._world.check(fd in self._world.descriptors, f"descriptor {fd} is watched, not open")
        self._world.check(fd not in self._subjects, f"descriptor {fd} is watched twice")
        self._subjects[fd] = subject
        self._world.watched.add(fd)

    def unwatch(self, fd: int) -> None:
        self._world.check(fd in self._subjects, f"descriptor {fd} is not watched")
        del self._subjects[fd]
        self._world.watched.discard(fd)

    def poll(self, timeout: Optional[float]) -> list[object]:
        """What is ready, in the order in which the descriptors were opened."""
        world = self._world
        world.reach("poll")
        end = None if timeout is None else world.now + timeout
        self._spins += timeout != 0
        world.check(self._spins < _SPINS, "somebody spins, on what is ready and is not taken")
        world.advance(0)
        while True:
            ready = [self._subjects[fd] for fd in sorted(self._subjects) if world.readable(fd)]
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
        if self.fate.answered:
            return self.frame
        return Closed.CLOSED if self._at_end() else None

    def close(self) -> None:
        self._world.close(self._fd)

    def _readable(self) -> bool:
        return self.fate is not None and (self.fate.answer > self._seen or self._at_end())

    def _at_end(self) -> bool:
        return self.fate is not None and self.fate.closed and self._reply_closed


class ScriptedWorker:
    """`protocols.Worker`: does what its `Fate` says, and knows what it was given to do."""

    exitcode: Optional[int] = None

    def __init__(self, world: World, task: Task, fate: Fate) -> None:
        self.pid: int = FIRST_PID + len(world.workers)
        self.task = task
        self.fate = fate
        self._world = world
        self._reaped = False
        self._fd: Optional[int] = None

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
        self.fate.signal(signum, self._world.now)

    def close(self) -> None:
        self._world.check(self._reaped, f"worker {self.pid} is closed before it is reaped")
        if self._fd is not None:
            self._world.close(self._fd)

    def describe(self) -> str:
        fate = self.fate
        if fate.exitcode is not None:
            ended = "reaped" if self._reaped else "not reaped"
            return f"worker {self.pid} ended with {fate.exitcode}, {ended}"
        when = "stalls or is stopped" if fate.due is None else f"goes on at {fate.due} s"
        return f"worker {self.pid} {when}"


class ScriptedLauncher:
    """`protocols.Launcher`: the work is done at once, here; what comes of it is told in time.

    Scripts that it comes upon, by `perform`, say when, and what else becomes of the worker. Env and
    preexec are not applied; they are in the worker's task.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def launch(self, task: Task, reply: int) -> ScriptedWorker:
        scripts: list[Script] = []
        frame = _outcome(task, scripts)
        endings = {script.ending for script in scripts}
        if "refused" in endings:
            try:
                raise ValueError("frames of it lead here")
            except ValueError as cause:
                raise TypeError("the work is not picklable: its script says so") from cause
        if "short" in endings:
            raise OSError("no room for another process: the script says so")
        if "garbled" in endings:
            frame = wire.Frame(wire.VALUE, "", memoryview(b"garbled"))
        fate = Fate(scripts, self._world.now)
        worker = ScriptedWorker(self._world, task, fate)
        self._world.workers.append(worker)
        channel = self._world.channels[reply]
        channel.fate, channel.frame = fate, frame
        self._world.reach("launch")
        return worker

    def hire(self, post: Post) -> ScriptedWorker:
        raise AssertionError(f"no double serves more than one piece of work: {post}")


def _outcome(task: Task, scripts: list[Script]) -> Optional[wire.Frame]:
    """Do the work: the frame that tells how it ended, or None if it was killed."""
    global _stage
    _, fn, args, kwargs = task.call
    outer, _stage = _stage, scripts
    try:
        packet = wire.pack_value(fn(*args, **kwargs))
    except _Killed:
        return None
    except BaseException as error:
        packet = wire.pack_error(error)
    finally:
        _stage = outer
    body = memoryview(b"".join(packet.pickled.stream))
    return wire.Frame(packet.kind, str(packet.text, "utf-8"), body, packet.pickled.buffers)
