"""What the library is going to do, told in advance: slots, workers, Futures, callbacks and maps.

A model is told what a user does and foretells what comes of it: what the call returns or raises,
how long it takes, which slots are free afterwards, which callbacks have run and what they saw. It
never looks at the library or at the doubles. What it shares with those is `Fate`, which says what
a scripted worker does, because that is given and not to be found out.

What an operation raises is foretold as `Foretold`, so that it passes through the model as the
exception passes through the library.
"""

from __future__ import annotations

import itertools
import signal
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Callable, Final, Literal, Optional, Union, get_args

import attrs

from .doubles import FIRST_PID, Fate, Huge, Place, Script

# How something ended: ("value", v), or an exception's name and what is to be known of it.
Outcome = tuple[object, ...]

Deed = Literal[
    "notes", "raises", "claims", "interrupts", "registers", "elsewhere", "submits", "asks", "drains"
]
DEEDS: Final[tuple[Deed, ...]] = get_args(Deed)

Answer = Union[None, float, Literal["raises", "interrupts", "unfit"]]

_INTERRUPT: Final = ("KeyboardInterrupt",)

_PATIENCE: Final = 5.0  # seconds that workers have who are told to leave


@attrs.frozen
class Callback:
    """What a callback does, besides leaving a note of what it saw."""

    deed: Deed = "notes"
    times: int = 1  # that it registers itself again
    number: int = 0  # of the Future `elsewhere`; whether it submits to workers that serve, if odd


@attrs.frozen
class Gate:
    """What a gate answers, one after the other; after that, None."""

    answers: tuple[Answer, ...] = ()


@attrs.frozen
class Reused:
    """Workers that serve so many submissions, and are idle for so many seconds at most."""

    max_tasks: Optional[int] = None
    idle: float = 10.0


# "copy", or what is changed: the env, the gate, the workers, or the preexec, by its name.
Change = Union[str, Mapping[str, Optional[str]], Gate, Reused]


class Foretold(Exception):
    """What the library raises here."""

    def __init__(self, *what: object, passes: bool = False) -> None:
        super().__init__(*what)
        self.what: Outcome = what
        self.passes = passes  # it is no Exception, and nothing in the library stops it


class Handle:
    """A handle: what it adds to the work."""

    def __init__(
        self,
        number: int,
        env: tuple[tuple[str, Optional[str]], ...] = (),
        preexec: Optional[str] = None,
        reused: Optional[Reused] = None,
    ) -> None:
        self.number = number
        self.env = env
        self.preexec = preexec
        self.reused = reused
        self.gate = number  # whose handle's gate it is
        self.answers: Optional[deque[Answer]] = None  # of the gate, if there is one

    def derive(self, number: int, what: Change) -> Handle:
        """The handle that a change of this one makes."""
        new = Handle(number, self.env, self.preexec, self.reused)
        if not isinstance(what, Gate):
            new.gate, new.answers = self.gate, self.answers
        if isinstance(what, Gate):
            new.answers = deque(what.answers)
        elif isinstance(what, Reused):
            new.reused = None if what.max_tasks == 1 else what
        elif isinstance(what, Mapping):
            new.env = tuple({**dict(self.env), **what}.items())
        elif what != "copy":
            new.preexec = what
        return new


class Worker:
    """A worker, fresh or one that serves."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fate: Fate = Fate()
        self.piece: Optional[Piece] = None  # what it was given last
        self.served = 0  # how much it was given
        self.noted = 0  # how much of that it has begun
        self.awaited: bool = False  # its end is
        self.turn = 0  # which of several that there is something to see of comes first

    @property
    def pid(self) -> int:
        return FIRST_PID + self.number


class Piece:
    """A piece of work, and its Future."""

    def __init__(self, number: int, calls: Sequence[tuple[Script, object]], handle: Handle) -> None:
        self.number = number
        self.calls = calls
        self.scripts: list[Script] = performed(calls)
        self.handle = handle
        self.worker: Worker
        self.slot: Optional[Literal["own", "lent"]] = None
        self.seen = 0  # parts of its answer
        self.taken = 0  # how many workers have taken it
        self.repeated = False
        self.signals: list[int] = []  # that its worker was sent
        self.answered = False
        self.settled = False
        self.done = False
        self.exitcode: Optional[int] = None
        self.turn = 0  # which of several that there is something to see of comes first
        self.callbacks: deque[tuple[int, Callback]] = deque()
        self.registered = 0
        self.kept = True  # somebody has the Future

    def outcome(self, position: Optional[int] = None) -> Outcome:
        """What it ended with; with a position, what one call of a chunk ended with."""
        endings = {script.ending for script in self.scripts}
        if not self.answered:
            return "LostResult", self.worker.pid, self.exitcode, None
        if "garbled" in endings:
            return "RuntimeError", "not reconstructable"
        if "exit" in endings:
            return "LostResult", self.worker.pid, self.exitcode, "SystemExit"
        script, value = self.calls[position or 0]
        if script.ending == "error":
            return "ValueError", value, "RemoteTraceback"
        if script.ending == "unpicklable":
            return "RuntimeError", "not picklable"
        return "value", Huge(value) if script.ending == "huge" else value

    @property
    def values(self) -> Outcome:
        """Those of the calls that come to be made."""
        return tuple(value for _, value in self.calls[: len(self.scripts)])

    def describe(self) -> str:
        """The Future's repr."""
        state, pid = ("done", None) if self.done else ("running", self.worker.pid)
        return f"Future({state}, callbacks={len(self.callbacks)}, pid={pid})"


def performed(calls: Sequence[tuple[Script, object]]) -> list[Script]:
    """The scripts of a chunk that are come upon: none after that which ends the process."""
    scripts: list[Script] = []
    for script, _ in calls:
        scripts.append(script)
        if script.ending in ("exit", "killed"):
            break
    return scripts


class Model:
    """One process with one family of handles."""

    def __init__(self, slots: int, *, inside: bool, now: float = 0.0) -> None:
        self.now: float = now
        self.slots = slots
        self.inside = inside
        self.free: int = slots - inside
        self.lendable: bool = inside  # there is a slot of its own, not lent
        self.strangers: int = 0  # slots that other processes have
        self.closed: bool = False
        self.entries: int = 0
        self.workers: list[Worker] = []  # ever
        self.submitted: int = 0  # pieces, ever
        self.tracked: list[Piece] = []  # not done, as far as the library has seen
        self.idle: list[Worker] = []  # whoever has served last is last
        self.leaving: list[Worker] = []
        self.begun: list[Outcome] = []  # who has begun what, and under which settings
        self.log: list[Outcome] = []  # what callbacks and gates saw
        self.warned: list[Outcome] = []
        self.pieces: dict[int, Piece] = {}  # with a Future, by number
        self.inner: deque[Piece] = deque()  # those that callbacks have submitted
        self.reached: Counter[str] = Counter()  # rare things that came to pass, for reports
        self._due: deque[Piece] = deque()
        self._issuing: Optional[deque[Piece]] = None
        self._returning: list[float] = []  # when strangers give slots back
        self._turns = itertools.count()
        self._unbegun: list[Piece] = []  # those that are to have another worker
        self._interrupt: Optional[Place] = None
        self._noted = False
        self._short = False

    def successor(self) -> Model:
        """The model of new slots for the same process, when all is over."""
        assert self.released, "there is only ever one family"
        new = Model(self.slots, inside=self.inside, now=self.now)
        new.workers = self.workers
        new.submitted = self.submitted
        new.pieces = self.pieces
        return new

    # Time, and what is to be seen.

    @property
    def released(self) -> bool:
        """Whether nothing is open any more."""
        return self.closed and not self.tracked

    @property
    def descriptors(self) -> int:
        """How many are open, but for those of the kernel."""
        if self.released:
            return 0
        fresh = [piece for piece in self.tracked if piece.handle.reused is None]
        serving = [piece.worker for piece in self.tracked if piece.handle.reused is not None]
        staying = [*self.idle, *self.leaving, *serving]
        # Slots and poller; one for each fresh worker: its channel, then its end; and of those that
        # serve a receipt, then also their end.
        return 2 + len(fresh) + len(staying) + sum(worker.awaited for worker in staying)

    @property
    def receipts(self) -> int:
        """How many of those that serve tell of a slot."""
        return sum(
            piece.slot is not None and piece.handle.reused is not None for piece in self.tracked
        )

    @property
    def living(self) -> list[Worker]:
        """Workers that have not ended, in the order in which they were started."""
        return [worker for worker in self.workers if worker.fate.exitcode is None]

    def advance(self, seconds: float) -> None:
        self._happen(self.now + seconds)

    def stranger_takes(self) -> None:
        self.strangers += 1
        self.free -= 1

    def stranger_returns(self) -> None:
        self.strangers -= 1
        self.free += 1

    def stranger_will_return(self, seconds: float) -> None:
        self._returning.append(self.now + seconds)

    @property
    def staying(self) -> int:
        """Strangers of whom it is not known when they return."""
        return self.strangers - len(self._returning)

    def interrupt(self, place: Optional[Place]) -> None:
        """The next call of this kind is interrupted; None: no call is, any more."""
        self._interrupt = place
        self._noted = False

    def _reach(self, place: Place) -> None:
        if self._interrupt == place:
            self._interrupt = None
            if place == "poll":  # the one that is not shielded
                raise Foretold(*_INTERRUPT, passes=True)
            self._noted = True

    def _unshield(self) -> None:
        if self._noted:
            self._noted = False
            raise Foretold(*_INTERRUPT, passes=True)

    def run_short(self, short: bool) -> None:
        """The next start of a worker fails; or none does, any more."""
        self._short = short

    def _next(self) -> Optional[float]:
        dues = [worker.fate.due for worker in self.living]
        return min((due for due in [*dues, *self._returning] if due is not None), default=None)

    def _happen(self, end: float) -> None:
        """Time passes until `end`."""
        start = self.now
        self.now = end
        for worker in self.living:
            while worker.fate.due is not None and worker.fate.due <= end:
                worker.fate.happen(max(start, worker.fate.due))
                self._note(worker)
        for time in [time for time in self._returning if time <= end]:
            self._returning.remove(time)
            self.stranger_returns()

    def _note(self, worker: Worker) -> None:
        """If it has begun something, note what."""
        if worker.noted < worker.fate.begun:
            worker.noted = worker.fate.begun
            piece = worker.piece
            assert piece is not None, "it has work"
            self.begun.append((worker.pid, piece.values, piece.handle.env, piece.handle.preexec))

    def _visible(self, item: Union[Piece, Worker]) -> bool:
        if isinstance(item, Worker):
            return item.fate.closed if item in self.idle else item.fate.exitcode is not None
        if item in self._unbegun:
            return False
        fate = item.worker.fate
        if item.settled:
            return fate.exitcode is not None
        return fate.answer > item.seen or fate.closed

    def signal(self, number: int, signum: int) -> None:
        """A signal comes from outside to one of the workers that live."""
        living = self.living
        if living:
            worker = living[number % len(living)]
            if worker in self.idle:
                self.reached["killed while idle"] += 1
            elif worker.fate.unseen:
                self.reached["killed before it has begun"] += 1
            worker.fate.signal(signum, self.now)

    def go_on(self) -> None:
        """All that stall go on."""
        for worker in self.living:
            worker.fate.go_on(self.now)

    def look(self) -> None:
        """Every run goes as far as what has happened leads it."""
        self.glance()
        self._relaunch()

    def glance(self) -> None:
        """As `look`, but no worker is started for work that has lost its own."""
        if not self._watched:
            return
        self._reach("poll")
        self._happen(self.now)
        self._take_in()
        self._unshield()

    @property
    def _watched(self) -> list[Union[Piece, Worker]]:
        """Whom there may be something to see of, in that order."""
        watched: list[Union[Piece, Worker]] = [*self.tracked, *self.idle, *self.leaving]
        return sorted(watched, key=lambda item: item.turn)

    def _take_in(self) -> None:
        for item in [item for item in self._watched if self._visible(item)]:
            if isinstance(item, Worker):
                self._move_along(item)
            elif self._advance(item):
                self._unbegun.append(item)

    def _relaunch(self) -> None:
        while self._unbegun:
            self._repeat(self._unbegun.pop())
        self._unshield()

    def _advance(self, piece: Piece) -> bool:
        """See how far a piece has got: True if its worker has closed, and has not begun it."""
        worker = piece.worker
        fate = worker.fate
        fresh = piece.handle.reused is None
        if not piece.settled:
            if fresh:
                self._reach("receive")
            piece.seen = fate.answer
            fate.read(self.now)
            piece.answered = fate.answered
            if not fate.answered:
                if not fate.closed:
                    return False
                if not fresh and fate.begun < worker.served:
                    if not (piece.repeated or piece.signals):
                        return True
                    self.reached["lost, and was not begun"] += 1
            piece.settled = True
            piece.turn = next(self._turns)
        if piece.answered and not fresh and self._stays(piece):
            self._done(piece, 0)
            self._release(worker)
            return False
        if not fresh:
            fate.hang_up()
        self._reach("reap")
        worker.awaited = True
        if fate.exitcode is not None:
            self._done(piece, fate.exitcode)
        return False

    def _stays(self, piece: Piece) -> bool:
        """Whether its worker will serve again."""
        worker, reused = piece.worker, piece.handle.reused
        assert reused is not None, "it is one that serves"
        worn = reused.max_tasks is not None and worker.served >= reused.max_tasks
        self.reached["worn"] += worn
        self.reached["retired after a signal"] += bool(piece.signals)
        return not (worker.fate.last or worn or piece.signals or self.closed)

    def _done(self, piece: Piece, exitcode: int) -> None:
        piece.done = True
        piece.exitcode = exitcode
        self.tracked.remove(piece)
        if piece.slot == "lent":
            self.lendable = True
        elif piece.slot == "own":
            self.free += 1
        if piece.callbacks:
            self._due.append(piece)

    # Workers that serve.

    def _assign(self, piece: Piece, reused: Reused, *, anew: bool = False) -> None:
        """Give it to one that is idle, or to a new one."""
        while True:
            worker = None if anew else self._find(reused)
            self.reached["used again"] += worker is not None
            worker = worker or self._start()
            worker.served += 1
            if not worker.fate.closed:
                break
            self.reached["had just left"] += 1
            self._part_with(worker)
        worker.piece, piece.worker = piece, worker
        worker.fate.hand(piece.scripts, reused.idle, piece.taken)

    def _find(self, reused: Reused) -> Optional[Worker]:
        for worker in reversed(self.idle):
            if reused.max_tasks is None or worker.served < reused.max_tasks:
                self.idle.remove(worker)
                return worker
        return None

    def _start(self) -> Worker:
        if self._short:
            self._short = False
            raise Foretold("OSError", "short")
        worker = Worker(len(self.workers))
        self.workers.append(worker)
        self._reach("launch")
        return worker

    def _repeat(self, piece: Piece) -> None:
        """Another worker has it, once, if there can be one."""
        old, reused = piece.worker, piece.handle.reused
        assert reused is not None, "its worker was one that serves"
        piece.repeated = True
        piece.taken += not old.fate.unseen
        try:
            self._assign(piece, reused, anew=True)
        except Foretold:
            self.reached["not repeated, as there is no room"] += 1
        else:
            self.reached["repeated"] += 1
            self._part_with(old)
            for signum in piece.signals:  # sent when there was nobody to have them
                self.reached["passed on a signal"] += 1
                piece.worker.fate.signal(signum, self.now)
        piece.turn = next(self._turns)

    def _release(self, worker: Worker) -> None:
        worker.turn = next(self._turns)
        self.idle.append(worker)
        if len(self.idle) > self.slots:
            self.reached["one too many"] += 1
            self._part_with(self.idle[0])

    def _part_with(self, worker: Worker) -> None:
        if worker in self.idle:
            self.idle.remove(worker)
        worker.fate.hang_up()
        if self.closed:
            self._end([worker])
            return
        self._reach("reap")
        if worker.fate.exitcode is None:
            worker.awaited = True
            worker.turn = next(self._turns)
            self.leaving.append(worker)

    def _move_along(self, worker: Worker) -> None:
        if worker in self.idle:
            self.reached["left, or died, while idle"] += 1
            self._part_with(worker)
        elif worker in self.leaving:
            self._reach("reap")
            # It may just have been parted with, by what was heard of others at the same moment.
            if worker.fate.exitcode is not None:
                self.leaving.remove(worker)

    def _close(self) -> None:
        """Accept nothing more; those that are idle leave."""
        self.closed = True
        ending = [*self.idle, *self.leaving]
        self.idle, self.leaving = [], []
        self._end(ending)

    def _end(self, workers: Sequence[Worker]) -> None:
        """Wait until those have ended that have no work."""
        for worker in workers:
            worker.fate.hang_up()
        deadline = self.now + _PATIENCE
        for worker in workers:
            self._reach("reap")
            while worker.fate.exitcode is None:
                if self.now >= deadline:
                    self.reached["killed, as it does not leave"] += 1
                    worker.fate.signal(signal.SIGKILL, self.now)
                self._happen(self.now)
                if worker.fate.exitcode is None:
                    then = self._next()
                    self._happen(deadline if then is None else min(then, deadline))

    def wait_for(self, ready: Callable[[], bool], deadline: Optional[float]) -> bool:
        while True:
            there = self._ask(ready)
            self._relaunch()
            if there:
                return True
            if deadline is not None and self.now >= deadline:
                self.look()
                return self._ask(ready)
            self._reach("poll")
            free = self.free
            self._happen(self.now)
            if self.free == free and not any(self._visible(item) for item in self._watched):
                then = self._next()
                if then is None and deadline is None:
                    raise Foretold("Deadlock", passes=True)
                times = [time for time in (then, deadline) if time is not None]
                self._happen(min(times))
            self._take_in()

    def _ask(self, ready: Callable[[], bool]) -> bool:
        answer = ready()
        self._unshield()
        return answer

    def deadline(self, timeout: Optional[float]) -> Optional[float]:
        return None if timeout is None else self.now + timeout

    # Handles.

    def check_open(self) -> None:
        if self.closed:
            raise Foretold("RuntimeError", "closed")

    def enter(self) -> None:
        self.check_open()
        self.entries += 1

    def exit(self) -> None:
        self.entries -= 1
        if self.closed or self.entries > 0:
            return
        suppressed: list[Outcome] = []
        try:
            self.look()
            while self._due:
                try:
                    self._issue_due()
                except Foretold as raised:
                    if raised.passes:
                        raise
                    suppressed.append(raised.what)
        finally:
            self._close()
            self._unshield()
        self.warned += [("RuntimeWarning", what[1]) for what in suppressed]
        lost = sum(self._loses_callbacks(piece) for piece in self.tracked)
        if lost:
            self.warned.append(("ResourceWarning", f"callbacks of {lost}"))

    def forget(self) -> None:
        """The last handle is dropped."""
        if self.closed:
            return
        self.glance()
        if self.tracked:
            self.warned.append(("ResourceWarning", len(self.tracked)))
        self._close()

    def reclaim(self) -> None:
        self.check_open()
        self.look()
        self._issue_due()

    def drain(self, timeout: Optional[float]) -> None:
        self.check_open()
        deadline = self.deadline(timeout)
        while self.wait_for(lambda: bool(self._due) or not self.tracked, deadline):
            if not self._due:
                return
            self._issue_due()
        raise Foretold("Blocked")

    # Submissions.

    def submit(
        self,
        handle: Handle,
        calls: Sequence[tuple[Script, object]],
        consume: int,
        timeout: Optional[float],
    ) -> Piece:
        """A submission of which somebody keeps the Future."""
        piece = self.launch_at(handle, calls, consume, self.deadline(timeout))
        self.pieces[piece.number] = piece
        return piece

    def launch_at(
        self,
        handle: Handle,
        calls: Sequence[tuple[Script, object]],
        consume: int,
        deadline: Optional[float],
    ) -> Piece:
        self.reclaim()
        slot = self._acquire(deadline) if consume else None
        if handle.answers is not None:
            self.put_back(slot)
            while (delay := self._gate(handle)) is not None:
                end = self.now + delay
                if deadline is not None and end >= deadline:
                    self.wait_for(lambda: False, deadline)
                    raise Foretold("Blocked")
                self.wait_for(lambda: False, end)
                self._issue_due()
            slot = self._acquire(deadline) if consume else None
        piece = self._launch(handle, calls, slot)
        if slot == "lent":
            self.wait_for(lambda: piece.done or self._relieve(piece), None)
        return piece

    def attempt(
        self, handle: Handle, calls: Sequence[tuple[Script, object]], *, held: bool = False
    ) -> Union[Piece, float, None]:
        """As a map submits while it can go on without waiting; `held`: it has a slot already."""
        try:
            self.check_open()
        except Foretold:
            self.put_back("own" if held else None)
            raise
        if not held and not self._try_to_take():
            return None
        if handle.answers is not None:
            self.put_back("own")
            delay = self._gate(handle)
            if delay is not None:
                return delay
            if not self._try_to_take():
                return None
        return self._launch(handle, calls, "own")

    def _try_to_take(self) -> bool:
        taken = self.take()
        if self._noted:
            self.put_back("own" if taken else None)
        self._unshield()
        return taken

    def _acquire(self, deadline: Optional[float]) -> Literal["own", "lent"]:
        held: list[Literal["own", "lent"]] = []

        def ready() -> bool:
            if self._due:
                return True
            if self.take():
                held.append("own")
            elif deadline is None and self.lendable:
                self.lendable = False
                held.append("lent")
            return bool(held)

        try:
            while not held:
                if not self.wait_for(ready, deadline):
                    raise Foretold("Blocked")
                if not held:
                    self._issue_due()
        except Foretold:
            for slot in held:
                self.put_back(slot)
            raise
        return held[0]

    def take(self) -> bool:
        self._reach("take")
        if self.free == 0:
            return False
        self.free -= 1
        return True

    def put_back(self, slot: Optional[Literal["own", "lent"]]) -> None:
        if slot == "own":
            self.free += 1
        elif slot == "lent":
            self.lendable = True

    def _relieve(self, piece: Piece) -> bool:
        if not self.take():
            return False
        piece.slot = "own"
        self.lendable = True
        return True

    def _gate(self, handle: Handle) -> Optional[float]:
        if handle.answers is None:
            return None
        self.log.append(("gate", handle.gate, self.free, self.now))
        answer = handle.answers.popleft() if handle.answers else None
        if answer == "raises":
            raise Foretold("LookupError", "the gate")
        if answer == "interrupts":
            raise Foretold(*_INTERRUPT, passes=True)
        if answer == "unfit":
            raise Foretold("ValueError", "the gate")
        return answer

    def _launch(
        self,
        handle: Handle,
        calls: Sequence[tuple[Script, object]],
        slot: Optional[Literal["own", "lent"]],
    ) -> Piece:
        piece = Piece(self.submitted, calls, handle)
        try:
            if handle.reused is None:
                self._launch_fresh(piece)
            else:
                if any(script.ending == "refused" for script, _ in calls):
                    raise Foretold("TypeError", "refused")
                self._assign(piece, handle.reused)
        except Foretold:
            self.put_back(slot)
            raise
        self.submitted += 1
        piece.slot = slot
        piece.turn = next(self._turns)
        self.tracked.append(piece)
        self._unshield()
        return piece

    def _launch_fresh(self, piece: Piece) -> None:
        if self._short:
            self._start()
        if any(script.ending == "refused" for script in piece.scripts):
            raise Foretold("TypeError", "refused")
        worker = self._start()
        worker.piece, piece.worker = piece, worker
        worker.fate.hand(piece.scripts)
        worker.fate.happen(self.now)
        self._note(worker)

    # Futures.

    def done(self, piece: Piece, timeout: Optional[float]) -> bool:
        if not piece.done and not self.wait_for(lambda: piece.done, self.deadline(timeout)):
            return False
        self._issue(piece)
        return True

    def wait(self, piece: Piece, timeout: Optional[float], signum: Optional[int]) -> bool:
        if signum is not None and not piece.done:
            piece.signals.append(signum)
            piece.worker.fate.signal(signum, self.now)
        return self.done(piece, timeout)

    def result(self, piece: Piece, timeout: Optional[float]) -> object:
        if not self.done(piece, timeout):
            raise Foretold("Blocked")
        return told(piece.outcome())

    def drop(self, piece: Piece) -> None:
        piece.kept = False
        lost = ["callbacks of 1"] if self._loses_callbacks(piece) else []
        if not piece.done or lost:
            self.warned.append(("ResourceWarning", "dropped", *lost))

    def _loses_callbacks(self, piece: Piece) -> bool:
        return self.closed and not piece.kept and bool(piece.callbacks)

    def when_done(self, piece: Piece, callback: Callback) -> int:
        number = piece.registered
        piece.registered += 1
        piece.callbacks.append((number, callback))
        if piece.done:
            self._issue(piece)
        return number

    # Callbacks.

    def _issue_due(self) -> None:
        while self._due:
            piece = self._due.popleft()
            try:
                self._issue(piece)
            except Foretold:
                if piece.callbacks:
                    self._due.appendleft(piece)
                raise

    def _issue(self, piece: Piece) -> None:
        if not piece.callbacks:
            return
        if self._issuing is not None:  # within a callback: when that has returned
            self._issuing.append(piece)
            return
        queue = self._issuing = deque((piece,))
        try:
            while queue:
                self._call_back(queue[0])
                queue.popleft()
        finally:
            self._issuing = None
            self._due += [left for left in queue if left.callbacks and left is not piece]

    def _call_back(self, piece: Piece) -> None:
        while piece.callbacks:
            number, callback = piece.callbacks.popleft()
            self.log.append(("callback", piece.number, number, self.free, self.now))
            try:
                self._do(piece, callback)
            except Foretold as raised:
                if raised.passes:
                    raise
                claims = raised.what[0] == "CallbackRaised"
                cause = raised.what[2] if claims else raised.what
                raise Foretold("CallbackRaised", number, cause) from None

    def _do(self, piece: Piece, callback: Callback) -> None:
        deed = callback.deed
        if deed == "raises":
            raise Foretold("LookupError", "the callback")
        if deed == "claims":
            raise Foretold("CallbackRaised", 77, ("LookupError", "the claim"))
        if deed == "interrupts":
            raise Foretold(*_INTERRUPT, passes=True)
        if deed == "registers" and callback.times and piece.kept:
            self.when_done(piece, attrs.evolve(callback, times=callback.times - 1))
        if deed == "elsewhere":
            other = self.pieces.get(callback.number)
            if other is not None and other.kept:
                self.when_done(other, Callback())
        if deed == "submits":
            handle = REUSING if callback.number % 2 else PLAIN
            self.inner.append(self.submit(handle, [(Script(), INNER)], 1, 0))
        if deed == "asks" and piece.kept:
            self.done(piece, 0)
        if deed == "drains":
            self.drain(0)


# What a callback submits, and through what.
PLAIN: Final = Handle(-1)
REUSING: Final = Handle(-1, reused=Reused())
INNER: Final = "from a callback"


def told(outcome: Outcome) -> object:
    """What comes of asking for the result."""
    if outcome[0] != "value":
        raise Foretold(*outcome)
    return outcome[1]


class Chunk:
    """One submission of a map, or why there is none."""

    def __init__(self, size: int, source: Union[Piece, Foretold]) -> None:
        self.size = size
        self.left = size  # calls whose results were not asked for
        self.source = source

    @property
    def ready(self) -> bool:
        return isinstance(self.source, Foretold) or self.source.done


class Map:
    """The iterator that `Jobserver.map` returns."""

    def __init__(
        self,
        model: Model,
        handle: Handle,
        calls: Sequence[tuple[Script, object]],
        *,
        timeout: Optional[float],
        chunksize: int,
        buffersize: Optional[int],
    ) -> None:
        model.check_open()
        self._model = model
        self._handle = handle
        self._chunks = deque(
            calls[start : start + chunksize] for start in range(0, len(calls), chunksize)
        )
        self._deadline = model.deadline(timeout)
        self._chunksize = chunksize
        self._buffersize = buffersize
        self._outstanding: deque[Chunk] = deque()
        self._pause = model.now  # the gate is not asked before
        self._held = False  # a slot that a wait has brought
        self._abandoned = False
        try:
            self._submit_what_can_be()
        except Foretold:
            self.abandon()  # nobody has got the iterator
            raise

    def next(self) -> object:
        while not self._abandoned:
            self._submit_what_can_be()
            if self._outstanding:
                head = self._outstanding[0]
                if head.ready:
                    return self._take(head)
                self._wait(head)
            elif self._chunks:
                self._submit_and_wait()
            else:
                break
        raise Foretold("StopIteration")

    def abandon(self) -> None:
        """Nobody wants the rest."""
        if self._outstanding:
            self._model.glance()
        self._abandoned = True

    def _take(self, head: Chunk) -> object:
        position = head.size - head.left
        head.left -= 1
        if head.left == 0:
            self._outstanding.popleft()
        if isinstance(head.source, Foretold):
            raise Foretold(*head.source.what)
        return told(head.source.outcome(position))

    def _expired(self) -> bool:
        return self._deadline is not None and self._model.now >= self._deadline

    def _wants_more(self) -> bool:
        full = self._buffersize is not None and len(self._outstanding) >= self._buffersize
        return bool(self._chunks) and not full and not self._expired()

    def _submitted(self, source: Union[Piece, Foretold]) -> None:
        self._outstanding.append(Chunk(len(self._chunks.popleft()), source))

    def _submit_what_can_be(self) -> None:
        model = self._model
        try:
            model.look()
        except Foretold:
            self._let_go()
            raise
        while self._wants_more() and model.now >= self._pause:
            try:
                held, self._held = self._held, False
                outcome = model.attempt(self._handle, self._chunks[0], held=held)
            except Foretold as raised:
                if raised.passes:
                    raise
                self._submitted(Foretold(*raised.what))
                continue
            if outcome is None:
                break
            if isinstance(outcome, Piece):
                self._submitted(outcome)
            else:
                self._pause = model.now + outcome
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._model.put_back("own")

    def _submit_and_wait(self) -> None:
        if self._expired():
            raise Foretold("Blocked")
        try:
            piece = self._model.launch_at(self._handle, self._chunks[0], 1, self._deadline)
        except Foretold as raised:
            if raised.passes or raised.what[0] in ("Blocked", "CallbackRaised"):
                raise
            self._submitted(Foretold(*raised.what))
        else:
            self._submitted(piece)

    def _wait(self, head: Chunk) -> None:
        model = self._model
        until = self._deadline
        more = self._wants_more()
        paused = more and model.now < self._pause
        if paused:
            until = self._pause if until is None else min(until, self._pause)
        held: list[bool] = []

        def ready() -> bool:
            if not head.ready and more and not paused and model.take():
                held.append(True)
            return head.ready or bool(held)

        try:
            there = model.wait_for(ready, until)
        except Foretold:
            model.put_back("own" if held else None)
            raise
        self._held = bool(held)
        if not there and self._expired():
            raise Foretold("Blocked")
