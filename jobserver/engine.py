"""Where every wait of a process goes through: one poller, and the runs that it watches.

Nobody has a thread, so whoever waits works for all: a thread that waits for one thing takes the
events of every run and moves each along. Of several waiting threads one leads, which is to say
that it waits in the kernel. The others follow: each sleeps on a lock of its own until the leader
has moved something, looks whether what it waits for has come, and perhaps leads the next turn.

    thread A: wait ─ lead ─ poll ──────────── advance runs ─ wake followers ─ ...
    thread B: wait ─ follow ───────────────────────────────── look, lead ─ poll ─ ...

The lock is held while state changes, never over a system call that can wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from multiprocessing import util
from types import TracebackType
from typing import Callable, Final, Optional, Protocol, cast

from . import forks, shared_tracker
from .interrupts import shielded, unshielded
from .lifecycle import State
from .poller import KernelPoller
from .protocols import Clock, Poller, Slot, SlotSource
from .run import Run
from .waits import Waits

# Who dies holding a slot wakes nobody, so whoever waits for one looks again after a while.
_FIRST_LOOK: Final = 0.02  # seconds; then twice as long each time
_LAST_LOOK: Final = 0.5  # seconds
_LOOKS: Final = 100  # times as long as the look itself takes, at least

_LONGEST: Final = 3600.0  # seconds a follower sleeps at once; it looks again after that

_SLOT: Final = object()  # what the poller reports when a slot may be had

# Engines with runs under way are kept alive, whoever drops them: their slots must come back.
_busy: set[Engine] = set()
_draining_pid: Optional[int] = None

# What finalizers could not do at once; and what the parent's could not, in a forked child.
_put_off: dict[object, tuple[Engine, Callable[[], object]]] = {}
_parents: list[object] = []


class _Turn:
    """One thread's part in one turn: it leads, with the poller, or it follows, asleep."""

    __slots__ = ("_asleep", "interrupted", "poller", "thread")

    def __init__(self) -> None:
        self.poller: Optional[Poller] = None
        self.interrupted: Optional[_Turn] = None  # the leader that goes on after this one
        self.thread = threading.get_ident()
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self, timeout: Optional[float]) -> Iterable[object]:
        """Sleep until there is something, or for so many seconds; what is ready, to a leader."""
        if self.poller is not None:
            return self.poller.poll(timeout)
        self._asleep.acquire(timeout=-1 if timeout is None else min(timeout, _LONGEST))
        return ()

    def go_on(self) -> None:
        self._asleep.release()


class _Looks:
    """When a waiter looks for what nobody tells of."""

    __slots__ = ("_pause", "due")

    def __init__(self, now: float) -> None:
        self._pause = _FIRST_LOOK
        self.due: float = now + _FIRST_LOOK

    def put_off(self, before: float, after: float) -> None:
        """It has looked, between these times."""
        # With many hundreds of slots a look takes long, and a waiter is to cost nothing.
        self._pause = max(min(2 * self._pause, _LAST_LOOK), (after - before) * _LOOKS)
        self.due = after + self._pause

    def within(self, timeout: Optional[float]) -> float:
        """How long to sleep at most, to look in time."""
        return self._pause if timeout is None else min(self._pause, timeout)


class _Step:
    """`with shielded(), engine.lock:` at the price of one; reentrant, as both of them are."""

    __slots__ = ("_depth", "_lock", "_shield")

    def __init__(self, lock: threading.RLock) -> None:
        self._lock: threading.RLock = lock
        self._depth = 0
        self._shield: Optional[shielded] = None

    def __enter__(self) -> None:
        shield = None
        if unshielded():
            shield = shielded()
            shield.__enter__()
        self._lock.acquire()
        self._depth += 1
        if shield is not None:
            self._shield = shield

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        shield = None
        self._depth -= 1
        if not self._depth:
            shield, self._shield = self._shield, None
        self._lock.release()
        if _put_off:
            _catch_up_on_finalizers()
        if shield is not None:
            shield.__exit__(kind, error, trace)


class Attended(Protocol):
    """What the engine moves along besides runs. Under the engine's lock."""

    def advance(self) -> None:
        """Look at what there is to see. Never waits."""
        ...


class Engine:
    """Moves runs along, for whichever thread is waiting. Thread-safe."""

    def __init__(
        self,
        slots: SlotSource,
        clock: Clock = time.monotonic,
        make_poller: Callable[[], Poller] = KernelPoller,
    ) -> None:
        self.slots = slots
        self.clock = clock
        self._lock: threading.RLock = threading.RLock()
        self._step: _Step = _Step(self._lock)
        self._make_poller = make_poller
        # Opened now, and not when there is a worker that would be lost if it could not be.
        self._poller: Optional[Poller] = make_poller()
        self._runs: set[Run] = set()
        self._late: set[Run] = set()  # those of them that are over but for their slot
        self._unbegun: list[Run] = []  # those that are to have another worker
        self._attended: dict[int, Attended] = {}  # by the descriptor that tells of them
        self.waits: Waits = Waits()
        self.users: int = 1
        self._closed = False
        self._ending: Optional[int] = None  # the signal that ends this process
        self._leader: Optional[_Turn] = None
        self._followers: list[_Turn] = []
        self._slot_watched = False
        forks.reset_in_children(self)

    @property
    def lock(self) -> threading.RLock:
        """Guards all state. Reentrant; see `finalize` for what must not enter it again."""
        if forks.behind:
            forks.catch_up()
        return self._lock

    @property
    def step(self) -> _Step:
        """`with engine.step:` holds the lock, shielded from interrupts."""
        if forks.behind:
            forks.catch_up()
        return self._step

    def prepare(self) -> None:
        """Open what `track` needs, so that it cannot fail once a worker runs."""
        with self.lock:
            self._open_poller()

    def prepare_to_notify(self) -> None:
        """Open what `notify` needs, so that it cannot fail once somebody relies on it."""
        with self.step:
            self._open_poller().wake()

    def track(self, run: Run) -> None:
        """Look after a run that has just been launched."""
        with self.step:
            if not self._runs:
                _keep_until_drained(self)
            self._runs.add(run)
            run.start(self._poller or self._open_poller())
            if self._ending is not None:
                run.send_signal(self._ending)

    def attend(self, fd: int, item: Attended) -> None:
        """Move something along whenever a descriptor is readable, and no run. Under the lock."""
        self._attended[fd] = item
        (self._poller or self._open_poller()).watch(fd, item)

    def neglect(self, fd: int) -> None:
        """Stop watching a descriptor, be it for what `attend` was given or for a run."""
        self._attended.pop(fd, None)
        self._open_poller().unwatch(fd)

    def deadline(self, timeout: Optional[float]) -> Optional[float]:
        """The time at which a timeout that starts now is over."""
        return None if timeout is None else self.clock() + timeout

    def wait(
        self, ready: Callable[[], bool], deadline: Optional[float], *, for_slot: bool = False
    ) -> bool:
        """Block until `ready()`, or until the deadline: then False.

        `ready` is called under the lock, shielded from interrupts, whenever something may have
        changed; with `for_slot`, also whenever a slot may have come free, be it that somebody
        died who had it. KeyboardInterrupt passes, and leaves everything as it is.
        """
        looks = _Looks(self.clock())
        turn: Optional[_Turn] = None
        subjects: Iterable[object] = ()
        try:
            try:
                while True:
                    now = self.clock()
                    remaining = None if deadline is None else max(0.0, deadline - now)
                    if now >= looks.due:
                        self._look(for_slot)
                        looks.put_off(now, self.clock())
                    with self.step:
                        if turn is not None:
                            if subjects:
                                self._take_in(subjects)
                                subjects = ()
                            self._leave(turn)
                            turn = None
                        is_ready = ready()
                        if not is_ready and remaining != 0:
                            turn = self._enter(for_slot and not self.slots.hindered)
                        timeout = remaining
                        if (for_slot and self.slots.recovers) or self._late:
                            timeout = looks.within(remaining)
                    if self._unbegun:
                        self._relaunch()
                    if is_ready:
                        return True
                    if turn is None:
                        self.advance()
                        with self.step:
                            return ready() or (for_slot and self.slots.audit() > 0 and ready())
                    # An interrupt after it loses nothing: what is ready is reported again.
                    subjects = turn.sleep(timeout)
            finally:
                self._leave(turn)
        finally:
            # Again, as an interrupt can come after the block and before its `finally`.
            self._leave(turn)

    def advance(self) -> None:
        """Move along what is ready. Never waits; costs what is ready, not what is tracked."""
        forks.catch_up()
        self.glance()
        if self._unbegun:
            self._relaunch()

    def glance(self) -> None:
        """As `advance`, without starting anything."""
        poller = self._poller
        if poller is None or not (self._runs or self._attended):
            return
        try:
            subjects = poller.poll(0)
        except (OSError, ValueError):
            with self.lock:
                if self._poller is poller:
                    raise
            return  # another thread has closed it, so nothing is left to move along
        if subjects:
            with self.step:
                if self._poller is poller:
                    self._take_in(subjects)
                    self.notify()
        if self._late:
            self._look(for_slot=False)

    def finalize(self, do: Callable[[], object]) -> None:
        """Do for a finalizer what it has to: at once, or else when nobody is in its way.

        A finalizer can be run anywhere. It must not come amid a step of its own thread, and must
        wait for no other thread, which may be waiting for a lock that this one holds.
        """
        _put_off[object()] = self, do
        _do_put_off()

    def enter_alone(self) -> bool:
        """Take all locks that a finalizer needs, if nobody has one; `leave_alone` is their end."""
        forks.catch_up()
        # Reentrant as it is, it would let us in amid a step. typeshed lacks the method, on which
        # threading.Condition relies.
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return False
        if not forks.opening.acquire(blocking=False):
            return False
        if self._lock.acquire(blocking=False):
            return True
        forks.opening.release()
        return False

    def leave_alone(self) -> None:
        self._lock.release()
        forks.opening.release()

    def notify(self) -> None:
        """Have all that wait look again."""
        with self.step:
            self._wake_followers()
            if self._leader is not None:
                self._open_poller().wake()

    def retain(self) -> None:
        """One more user: the slots stay open until each has called `release`."""
        with self.lock:
            self.users += 1

    def reopen(self) -> bool:
        """As `retain`, for whoever comes late; False if the slots are let go of already."""
        with self.lock:
            self.users += not self._closed
            return not self._closed

    def release(self) -> None:
        """One user less. Without users, and once the last run is over, everything is closed."""
        with self.step:
            self.users -= 1
            self._close_if_unused()

    def give_back(self, slot: Slot) -> None:
        """Free a slot on which nothing was launched."""
        with self.step:
            self.slots.give_back(slot)
            self._close_if_unused()

    def drain(self) -> None:
        """Wait until no run is left."""
        self.wait(lambda: not self._runs, None)

    def terminate(self, signum: int) -> None:
        """Send all workers a signal, now and later, and wait until their slots are back."""
        with self.step:
            self._ending = signum
            for run in self._runs:
                run.send_signal(signum)
        self.drain()
        with self.step:
            self.slots.audit()  # for what the workers themselves held

    def after_fork(self) -> None:
        """In a forked child: no run is ours, and no thread but this one is."""
        self._lock = threading.RLock()
        self._step = _Step(self._lock)
        for run in self._runs:
            run.abandon()
        self._runs = set()
        self._late = set()
        self._unbegun = []
        self._ending = None
        self._attended = {}
        self.waits = Waits()
        self._leader = None
        self._followers = []
        self._slot_watched = False
        if isinstance(self._poller, KernelPoller):
            self._poller.abandon()
        self._poller = None
        _busy.discard(self)

    def _enter(self, for_slot: bool) -> _Turn:
        turn = _Turn()
        if for_slot:
            self._watch_slot()
        # A leader of this very thread is a wait that this one interrupted: a signal handler's.
        if self._leader is None or self._leader.thread == turn.thread:
            turn.poller = self._open_poller()
            turn.interrupted = self._leader
            self._leader = turn
        else:
            self._followers.append(turn)
        return turn

    def _leave(self, turn: Optional[_Turn]) -> None:
        if turn is None or (turn is not self._leader and turn not in self._followers):
            return
        with self.step:
            if self._leader is turn:
                self._leader = turn.interrupted
                # All look again: also who was interrupted, for what it waits for may have come.
                self.notify()
                self._close_if_unused()
            elif turn in self._followers:
                self._followers.remove(turn)

    def _take_in(self, subjects: Iterable[object]) -> None:
        """Move along what is ready. Under the lock."""
        poller = self._poller or self._open_poller()
        lost = False
        for subject in subjects:
            if subject is _SLOT:
                # Reported once to each that wants one, lest the leader spin while another thread
                # is on its way to take it.
                self._unwatch_slot()
            elif not isinstance(subject, Run):
                cast("Attended", subject).advance()
            elif subject in self._runs and not subject.unbegun:
                self._advance(subject, poller)
                lost |= subject.state is State.DONE and subject.frame is None
                if subject.unbegun:
                    self._unbegun.append(subject)
        if lost:
            self.slots.audit()  # for what the workers themselves held
        self._close_if_idle()

    def _relaunch(self) -> None:
        """Have other workers for work that their own have not begun."""
        with shielded():
            while True:
                with self.lock:
                    if not self._unbegun:
                        return
                    run = self._unbegun.pop()
                run.relaunch()  # not under the lock, as it may take its time
                with self.lock:
                    run.start(self._poller or self._open_poller())

    def _advance(self, run: Run, poller: Poller) -> None:
        run.advance(poller)
        if run.state is State.REAPED:
            self._late.add(run)
        elif run.state is State.DONE:
            self._late.discard(run)
            self._runs.discard(run)

    def _look(self, for_slot: bool) -> None:
        """Look for what nobody tells of: lost slots, and those of runs that are over."""
        with self.step:
            late = list(self._late)
            for run in late:
                self._advance(run, self._open_poller())
            if for_slot:
                self.slots.audit()
            if len(self._late) < len(late):
                self.notify()
            self._close_if_idle()

    def _open_poller(self) -> Poller:
        if self._poller is None:
            self._poller = self._make_poller()
        return self._poller

    def _watch_slot(self) -> None:
        if not self._slot_watched:
            self._open_poller().watch(self.slots.fileno(), _SLOT)
            self._slot_watched = True

    def _unwatch_slot(self) -> None:
        if self._slot_watched:
            self._slot_watched = False
            self._open_poller().unwatch(self.slots.fileno())

    def _wake_followers(self) -> None:
        followers, self._followers = self._followers, []
        for turn in followers:
            turn.go_on()

    def _close_if_idle(self) -> None:
        if not self._runs:
            _busy.discard(self)
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.users or self._runs or self._attended or self._leader is not None or self.slots.out:
            return
        self._unwatch_slot()
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        self._closed = True
        self.slots.close()
        shared_tracker.let_go(self)


def _do_put_off() -> None:
    """Do what finalizers have put off, as far as that can be. Waits for no other thread."""
    with shielded():  # lest an interrupt leave a lock taken
        for key, (engine, do) in list(_put_off.items()):
            # It stays in sight of others until it can be done: who is in the way looks for it.
            if engine.enter_alone():
                try:
                    if _put_off.pop(key, None) is not None:
                        do()
                finally:
                    engine.leave_alone()


def _catch_up_on_finalizers() -> None:
    """Do what they have put off, when they are over; what it raises is nobody's, as in them."""
    try:
        _do_put_off()
    except Exception:
        import traceback

        traceback.print_exc()


def _keep_until_drained(engine: Engine) -> None:
    """Hold the engine while it has runs, and wait for those when the process ends.

    A worker that returns while its own submissions run holds slots of the tree; they go back
    before it ends. multiprocessing runs this in its workers too, before it joins children.
    """
    global _draining_pid
    _busy.add(engine)
    if _draining_pid != os.getpid():
        _draining_pid = os.getpid()
        util.Finalize(None, drain_all, exitpriority=100)


def drain_all() -> None:
    """Wait until nothing runs any more that this process has submitted."""
    # In a forked child that has not tracked anything, they are the parent's.
    while _busy and _draining_pid == os.getpid():
        next(iter(_busy)).drain()


def advance_orphans() -> None:
    """Move along the runs of engines that nobody uses any more."""
    _catch_up_on_finalizers()
    for engine in list(_busy):
        if not engine.users:
            engine.advance()


def _forget_in_child() -> None:
    global _put_off
    # Not let go of: that would run finalizers before all is reset that they use.
    _parents.append(_put_off)
    _put_off = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
