"""One piece of work, from its launch until its slot is back: the lifecycle, carried out."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from typing import Callable, Optional

from . import wire
from .lifecycle import Effect, Event, State, step
from .protocols import Closed, Poller, Receiver, Slot, SlotSource, Worker


class Callback(functools.partial[object]):
    """A call that is due once a run is done."""

    __slots__ = ("seqno",)

    seqno: int  # of its registration: 0, 1, ...


class Group:
    """The runs of one owner: a family of handles, or an executor."""

    for_executor: bool = False

    def __init__(self) -> None:
        self.tracked: set[Run] = set()
        self.due: deque[Run] = deque()  # done, with callbacks that have not run
        # Runs whose callbacks a thread runs, or will run next, by that thread.
        self.observed: set[tuple[int, Run]] = set()
        self.drains: list[Callable[[], None]] = []  # each wakes a `drain`, to look again
        self.closed: bool = False  # no call runs callbacks any more, but for a Future's own

    def inherit(self, slot: Slot) -> bool:  # noqa: ARG002
        """Whether the owner keeps the slot of a run that is over. Under the engine's lock.

        Asked only when nobody can be on that slot but a worker that is idle again.
        """
        return False

    def announce(self, run: Run) -> None:
        """A run is done. Under the engine's lock."""
        if run.callbacks:
            self.due.append(run)


class Run:
    """A Future's inner half. The engine's lock guards everything but `callbacks`' consumption."""

    __slots__ = (
        "_channel",
        "_repeat",
        "_slots",
        "callbacks",
        "dropped",
        "frame",
        "group",
        "issuer",
        "issuing",
        "loading",
        "outcome",
        "owner_pid",
        "registered",
        "slot",
        "state",
        "unbegun",
        "watched",
        "worker",
    )

    def __init__(
        self,
        worker: Worker,
        channel: Receiver,
        slot: Optional[Slot],
        slots: SlotSource,
        group: Group,
        *,
        repeat: Optional[Callable[[], None]] = None,
    ) -> None:
        self.state: State = State.RUNNING
        self.worker: Worker = worker
        self.slot = slot
        self.group: Group = group
        self.owner_pid: int = os.getpid()
        self.frame: Optional[wire.Frame] = None  # None once SETTLED: the channel closed without
        self.outcome: Optional[Callable[[], object]] = None  # the frame, once it is loaded
        self.loading: threading.RLock = threading.RLock()  # held while the frame is loaded
        self.callbacks: deque[Callback] = deque()
        self.registered: int = 0
        self.dropped: bool = False  # nobody has its Future any more
        self.issuing: threading.Lock = threading.Lock()  # held while callbacks run
        self.issuer: Optional[int] = None  # by the thread that runs them
        self.watched: Optional[int] = None  # the descriptor that tells of the next event
        self.unbegun: bool = False  # its worker closed, and another one is to have the work
        self._channel = channel
        self._slots = slots
        self._repeat = repeat  # gives the work to another worker, of which the channel then tells
        group.tracked.add(self)

    @property
    def answered(self) -> bool:
        """Whether there is a result or an exception of the work, and it is not lost."""
        return self.frame is not None and self.frame.kind != wire.EXIT

    @property
    def foreign(self) -> bool:
        """Whether it belongs to a process of which this one is a fork."""
        return self.owner_pid != os.getpid()

    def start(self, poller: Poller) -> None:
        """Wait for the channel from now on."""
        self.unbegun = False
        self._watch(poller, self._channel.fileno())

    def advance(self, poller: Poller) -> None:
        """Look at what there is to see, and go as far as that leads. Never waits."""
        if self.state is State.RUNNING:
            received = self._channel.receive()
            if received is None:
                return
            if received is Closed.UNBEGUN:
                self._apply(Event.UNBEGUN, poller)
            elif isinstance(received, Closed):
                self._apply(Event.CLOSED, poller)
            else:
                self.frame = received
                self._apply(Event.DELIVERED, poller)
        elif self.state is State.SETTLED:
            self._reap(poller)
        elif self.state is State.REAPED:
            self._return_slot(poller)

    @property
    def loses_callbacks(self) -> bool:
        """Whether it has callbacks that nothing can run any more."""
        if not (self.dropped and self.callbacks and self.group.closed):
            return False
        return all(run is not self for _, run in list(self.group.observed))

    def relaunch(self) -> None:
        """Have another worker for the work. Not under the lock, as that takes its time."""
        assert self._repeat is not None, "only work that can be repeated is told to be unbegun"
        self._repeat()

    def register(self, callback: Callback) -> tuple[int, bool]:
        """Queue a callback: its number, and whether it is due at once."""
        transition = step(self.state, Event.REGISTER)
        callback.seqno = self.registered
        self.registered += 1
        self.callbacks.append(callback)
        return callback.seqno, Effect.ISSUE in transition.effects

    def send_signal(self, signum: int) -> None:
        """Send the worker a signal, if it still runs."""
        if Effect.KILL in step(self.state, Event.SIGNAL).effects:
            self.worker.send_signal(signum)

    def adopt(self) -> None:
        """In a forked child, of a run that is done: its result is the child's, too.

        Its callbacks are not; and a thread of the parent may have held its locks.
        """
        self.callbacks = deque()
        self.loading = threading.RLock()
        self.issuing = threading.Lock()
        self.issuer = None
        self.owner_pid = os.getpid()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors' numbers; they are closed."""
        self.watched = None

    def _apply(self, event: Event, poller: Poller) -> None:
        transition = step(self.state, event)
        self.state = transition.state
        for effect in transition.effects:
            if effect is Effect.CLOSE_CHANNEL:
                if self._channel.lasts:
                    self.watched = None
                else:
                    self._watch(poller, None)
                self._channel.close()
            elif effect is Effect.RELAUNCH:
                self.unbegun = True
            elif effect is Effect.REAP:
                self._reap(poller)
            elif effect is Effect.CLOSE_WORKER:
                self._watch(poller, None)
                self.worker.close()
            elif effect is Effect.RETURN_SLOT:
                self._return_slot(poller)
            elif effect is Effect.ANNOUNCE:
                self.group.tracked.discard(self)
                self.group.announce(self)

    def _reap(self, poller: Poller) -> None:
        if self.worker.poll():
            self._apply(Event.EXITED, poller)
        elif self.watched is None:
            self._watch(poller, self.worker.fileno())

    def _return_slot(self, poller: Poller) -> None:
        slot = self.slot
        if slot is not None:
            if not (slot.kept and self.group.inherit(slot)):
                # Without an exit status, all that is known is that nobody can tell of the worker.
                ended = self.worker.exitcode is not None
                if not self._slots.give_back(slot, ended=ended):
                    return
            self.slot = None
        self._apply(Event.RETURNED, poller)

    def _watch(self, poller: Poller, fd: Optional[int]) -> None:
        if self.watched is not None:
            poller.unwatch(self.watched)
        self.watched = fd
        if fd is not None:
            poller.watch(fd, self)
