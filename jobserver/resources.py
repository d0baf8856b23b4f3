"""What sibling handles share: the engine, the runs, the launcher; and the act of submitting."""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping
from multiprocessing import get_context, reduction
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Callable, Final, Optional, Union

import attrs

from . import environment, forks, hints, serving, shared_tracker, sigterm
from .callbacks import issue_due
from .channel import ResultChannel
from .crew import Crew
from .draining import drain, lost_callbacks
from .engine import Engine, advance_orphans, drain_all
from .errors import Blocked, CallbackRaised
from .interrupts import shielded
from .joined import JoinedPool
from .launch import ContextLauncher
from .lifecycle import State
from .make import NoJobserver
from .parcels import NotPicklable
from .protocols import Channel, Grant, Launcher, Slot, SlotSource, Task, Work
from .run import Group, Run
from .settings import Reuse, Settings
from .slots import SlotPool

if TYPE_CHECKING:
    from .worker import Detachable

# By the identity of the slots: handles on the same slots share what a process has of them, however
# they came here, so that a slot held through one is found by a wait through another.
_known: weakref.WeakValueDictionary[str, Resources] = weakref.WeakValueDictionary()

# In a worker that serves: what has come with one piece of work may come with the next, and its
# own workers are there still.
_staying: dict[str, Resources] = {}  # whatever came last is last
_MOST_STAYING: Final = 4  # lest the worker run out of descriptors, as each has some


# The engines whose slots are make's, by what MAKEFLAGS says of them. A process has one implicit
# slot, so whatever it makes that joins the same jobserver shares one engine.
_joined: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
_joining = threading.RLock()


def join(context: BaseContext, environ: Mapping[str, str]) -> Resources:
    """The slots of the jobserver that the environment names. NoJobserver if none can be joined.

    In work of ours that inherited or was given a handle on it, that handle's.
    """
    with _joining:  # not in two threads at once
        try:
            return _join(context, environment.find(environ))
        except NoJobserver as error:
            instead = environment.find_instead(environ, error)
            if instead is None:
                raise
            try:
                return _join(context, instead)
            except NoJobserver:
                raise error from None


def _join(context: BaseContext, named: environment.Named) -> Resources:
    engine = _joined.get(str(named.auth))
    if engine is None or not engine.reopen():
        return Resources.open(context, JoinedPool.join(named.auth, named.slots))
    return Resources(context, engine, ContextLauncher(context))


def _forget_in_child() -> None:
    """Another thread may have been joining when this process was forked."""
    global _joining
    _joining = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _arrive(
    method: str,
    kind: type[SlotPool],
    identity: str,
    count: Optional[int],
    origin: str,
    *descriptors: Detachable,
) -> Resources:
    """What this process has of slots that came from another one."""
    pool = kind.arrive(identity, count, origin, [fd.detach() for fd in descriptors])
    resources = _known.get(identity)
    if resources is not None and not resources.closed:
        pool.kernel.shut()
    else:
        resources = Resources.open(get_context(method), pool)
    if serving.is_serving():
        _staying.pop(identity, None)
        _staying[identity] = resources
        if len(_staying) > _MOST_STAYING:
            del _staying[next(iter(_staying))]
    return resources


class Resources:
    """One jobserver, in one process."""

    def __init__(
        self,
        context: BaseContext,
        engine: Engine,
        launcher: Launcher,
        make_channel: Callable[[], Channel] = ResultChannel,
    ) -> None:
        self.context = context
        self.engine: Engine = engine
        self.group: Group = Group()
        self.crew: Crew = Crew(engine, launcher, make_channel)
        self.closed: bool = False
        self._entries = 0
        _known[engine.slots.identity] = self
        if context.get_start_method() == "fork":
            shared_tracker.hold(engine)
        self._attend_to_make()
        forks.reset_in_children(self)

    @classmethod
    def open(cls, context: BaseContext, slots: SlotSource) -> Resources:
        """For new slots, or for those that arrived from another process."""
        advance_orphans()
        return cls(context, Engine(slots), ContextLauncher(context))

    def __reduce__(self) -> tuple[object, ...]:
        """For a process that is being started; handles in one pickle stay on one of these."""
        slots = self.engine.slots
        if not isinstance(slots, SlotPool):
            raise TypeError(f"slots of {slots!r} cannot be shared with a fresh process")
        descriptors = map(reduction.DupFd, slots.kernel.descriptors)
        method = self.context.get_start_method()
        what = method, type(slots), slots.identity, slots.count, slots.origin
        return _arrive, (*what, *descriptors)

    def check_open(self) -> None:
        if self.closed:
            raise RuntimeError(
                "the Jobserver is closed: its last context manager has exited; make a new one"
            )

    def enter(self) -> None:
        with self.engine.lock:
            self.check_open()
            self._entries += 1

    def exit(self) -> None:
        """One context manager less; the last one reclaims what has finished, and closes."""
        with self.engine.lock:
            self._entries -= 1
            if self.closed or self._entries > 0:
                return
        suppressed: list[CallbackRaised] = []
        try:
            self.engine.advance()
            self._issue_all_due(suppressed)
        finally:
            self.close()
        for raised in suppressed:
            warnings.warn(
                f"suppressed {raised!r} at the end of the Jobserver: {raised.__cause__!r}",
                RuntimeWarning,
                stacklevel=3,
            )
        lost = sum(run.loses_callbacks for run in list(self.group.tracked))
        if lost:
            warnings.warn(lost_callbacks(lost), ResourceWarning, stacklevel=3)

    def _issue_all_due(self, suppressed: list[CallbackRaised]) -> None:
        # A function of its own: see `callbacks._issue_queue`.
        while self.group.due:
            try:
                issue_due(self.group)
            except CallbackRaised as error:
                suppressed.append(error)

    def close(self) -> None:
        """Accept nothing more. What runs goes on; the slots are let go of when it is over."""
        with shielded():
            with self.engine.lock:
                if self.closed:
                    return
                self.closed = self.group.closed = True
            self.crew.close()
            self.engine.release()

    def reclaim(self) -> None:
        """Free what has finished, and run its callbacks."""
        self.engine.advance()
        issue_due(self.group)

    def drain(self, timeout: Optional[float]) -> None:
        """See `Jobserver.drain`."""
        self.check_open()
        drain(self.engine, self.group, self.engine.deadline(timeout))

    def submit(
        self, settings: Settings, work: Work, consume: int, deadline: Optional[float]
    ) -> Run:
        """Take a slot, launch the work on it. Blocked at the deadline; see `Jobserver.submit`."""
        slots = self.engine.slots
        held: list[Slot] = []

        waits = self.engine.waits

        def take() -> Optional[Slot]:
            slot = slots.take()
            # Without a deadline, the slot on which this process itself runs will do. With one, if
            # another thread says that it computes nothing.
            if slot is None and (deadline is None or waits.declared) and not waits.wants_slot_back:
                slot = slots.lend()
            return slot

        try:
            self._admit(held, settings, take if consume else None, deadline)
            with shielded():
                slot = held.pop() if held else None
                run = self.launch(self.crew, self.group, settings, work, slot)
        except BaseException:
            self.put_back(held)
            raise
        if deadline is None and slots.is_lent(slot):
            self._until_relieved(run)
        return run

    def grant(
        self,
        settings: Settings,
        deadline: Optional[float],
        held: list[Slot],
        grants: list[Grant],
    ) -> None:
        """Put into the lists a slot for a command, and what lets that draw on the others.

        Whatever comes of it, `withdraw` is to follow. Blocked at the deadline.
        """
        slots = self.engine.slots

        def take() -> Optional[Slot]:
            # The own slot first: whoever waits for a command has no use for it meanwhile.
            return slots.lend() or slots.take()

        def ready() -> bool:
            grant = slots.grant(held[0])
            if grant is not None:
                grants.append(grant)
            return grant is not None

        began = self.engine.clock()
        self._admit(held, settings, take, deadline)
        if not self.engine.wait(ready, deadline, for_slot=True):
            raise Blocked(f"no slot could be shared with a command in {self._since(began)}")

    def withdraw(self, held: list[Slot], grants: list[Grant]) -> None:
        """Free what `grant` has put into the lists."""
        with shielded():
            self.engine.retain()  # lest the slots be closed when the last one is given back
            self.put_back(held)
            with self.engine.lock:
                while grants:
                    self.engine.slots.withdraw(grants.pop())
            self.engine.release()

    def attempt(
        self, settings: Settings, make_work: Callable[[], Work], held: list[Slot]
    ) -> Union[Run, float, None]:
        """As `submit`, without waiting and without callbacks; uses the slot in `held`, if any.

        The work is made just before it is launched. None when there is no slot; the seconds to
        wait when the gate does not admit.
        """
        self.check_open()
        if not self._take(held):
            return None
        if settings.sleep is not None:
            self.put_back(held)
            delay = settings.delay()
            if delay is not None:
                return delay
            if not self._take(held):
                return None
        with shielded():
            return self.launch(self.crew, self.group, settings, make_work(), held.pop())

    def launch(
        self,
        crew: Crew,
        group: Group,
        settings: Settings,
        work: Work,
        slot: Optional[Slot],
    ) -> Run:
        """Have a worker for work on a slot, which is given back if that fails. To be shielded."""
        slots = self.engine.slots
        try:
            fn, args, kwargs = work
            task = Task(
                (settings.preexec, fn, args, kwargs),
                settings.env,
                None if slot is None else slots.held(slot),
                for_executor=group.for_executor,
            )
            if settings.reuse is None:
                run = self._start(crew, group, task, slot)
            else:
                run = self._engage(crew, group, task, settings.reuse, slot)
        except BaseException as error:
            if slot is not None:
                self.engine.give_back(slot)
            if isinstance(error, NotPicklable) and not group.for_executor:
                raise TypeError(*error.args) from error.__cause__
            raise
        self.engine.track(run)
        return run

    def _start(self, crew: Crew, group: Group, task: Task, slot: Optional[Slot]) -> Run:
        self.engine.prepare()
        if slot is not None:
            task = attrs.evolve(task, receipt=slot.receipt)
        worker, channel = crew.start(task)
        return Run(worker, channel, slot, self.engine.slots, group)

    def _engage(
        self, crew: Crew, group: Group, task: Task, reuse: Reuse, slot: Optional[Slot]
    ) -> Run:
        method = self.context.get_start_method()
        turn, answer = crew.engage(task, method, reuse, slot)
        return Run(turn, answer, slot, self.engine.slots, group, repeat=turn.repeat)

    def _since(self, began: float) -> str:
        return hints.seconds(self.engine.clock() - began)

    def _sleep(self, delay: float, began: float, deadline: Optional[float]) -> None:
        """Sleep for the gate, moving along what finishes meanwhile. Blocked at the deadline."""
        now = self.engine.clock()
        end = now + delay
        if deadline is not None and end >= deadline:
            self.engine.wait(lambda: False, deadline)
            raise Blocked(
                "the function given to replace_sleep did not admit the work "
                f"in {self._since(began)}"
            )
        self.engine.wait(lambda: False, end)
        issue_due(self.group)

    def _admit(
        self,
        held: list[Slot],
        settings: Settings,
        take: Optional[Callable[[], Optional[Slot]]],
        deadline: Optional[float],
    ) -> None:
        """Have what `take` gives in `held`, if it is to give any, and the gate admit it.

        Blocked at the deadline.
        """
        began = self.engine.clock()
        self.check_open()
        self.reclaim()
        if take is not None:
            self._acquire(held, take, began, deadline)
        if settings.sleep is not None:
            # Asked when there is a slot, so that its word is fresh; but without holding it, for it
            # may take its time. One None stands for one acceptance.
            self.put_back(held)
            while (delay := settings.delay()) is not None:
                self._sleep(delay, began, deadline)
            if take is not None:
                self._acquire(held, take, began, deadline)
        self.check_open()

    def _acquire(
        self,
        held: list[Slot],
        take: Callable[[], Optional[Slot]],
        began: float,
        deadline: Optional[float],
    ) -> None:
        """Have a slot in `held`. Blocked at the deadline."""

        def ready() -> bool:
            if self.group.due:
                return True  # callbacks first, for they may need that slot
            self.check_open()
            slot = take()
            if slot is not None:
                held.append(slot)
            return slot is not None

        while not held:
            if not self.engine.wait(ready, deadline, for_slot=True):
                raise Blocked(f"no slot came free in {self._since(began)}{self._users()}")
            if not held:
                issue_due(self.group)

    def _users(self) -> str:
        """How many slots are in use, where that is known and all are."""
        slots = self.engine.slots
        with self.engine.lock:
            # One may have come free since we looked, for others.
            if self.closed or slots.used() != slots.count or slots.count is None:
                return ""
        return f": {slots.count} of {slots.count} are in use"

    def _take(self, held: list[Slot]) -> bool:
        """Have a slot in `held`, if one can be had at once."""
        with self.engine.step:
            self.check_open()
            slot = None if held else self.engine.slots.take()
            if slot is not None:
                held.append(slot)
        return bool(held)

    def put_back(self, held: list[Slot]) -> None:
        """Free the slots in `held`."""
        with shielded():
            while held:
                self.engine.give_back(held.pop())

    def _until_relieved(self, run: Run) -> None:
        """Wait until work on a lent slot has ended or has a slot of its own.

        Callbacks of other Futures stay due: the work has begun, so nothing may be raised for them.
        """

        def ready() -> bool:
            return run.state is State.DONE or self.engine.slots.relieve(run.slot)

        self.engine.wait(ready, None, for_slot=True)

    def _attend_to_make(self) -> None:
        """If the slots are make's: have what this process does with them in one place."""
        slots = self.engine.slots
        if isinstance(slots, JoinedPool):
            _joined[slots.origin] = self.engine
            sigterm.watch(self.engine, slots)

    def after_fork(self) -> None:
        """In a forked child: open as it was, entered by nobody, without Futures."""
        self.group = Group()
        self._entries = 0
        self._attend_to_make()

    def __repr__(self) -> str:
        method = self.context.get_start_method()
        with self.engine.lock:  # lest another thread close them meanwhile
            recovered = self.engine.slots.recovered
        further = f", recovered={recovered}" if recovered else ""
        slots, tracked = self.engine.slots.count, len(self.group.tracked)
        return f"Jobserver({method!r}, tracked={tracked}, slots={slots}{further})"

    def __del__(self) -> None:
        if getattr(self, "closed", True) or sys.is_finalizing():
            return
        self.closed = self.group.closed = True
        self.engine.finalize(self._let_go)

    def _let_go(self) -> None:
        """What `__del__` has to do. Starts nothing, as a garbage collection should not."""
        self.engine.glance()
        running = len(self.group.tracked)
        try:
            if running:
                warnings.warn(
                    f"Finalizing {self!r} with {running} running Futures: wait for them, or use "
                    "the Jobserver as a context manager",
                    ResourceWarning,
                    source=self,
                    stacklevel=5,  # whoever dropped it, if that was done at once
                )
        finally:  # the warning may be an error
            self.crew.close()
            self.engine.release()


def _drain() -> None:
    """At the end of work in a worker that serves: have nothing of it meet the work after it."""
    drain_all()
    for resources in _staying.values():
        with resources.engine.lock:
            # A fresh worker would end here, and run none of them.
            resources.group.due.clear()


serving.drain = _drain
