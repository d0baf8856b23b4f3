"""The executor's one thread: it turns pending work into runs, and runs into finished futures.

    submit ──> pending ──(slot, gate)──> launch ──> run ──(due)──> future.set_result
                  │                                                     or set_exception
                  └── cancel

The thread waits where every wait of the process goes through, the engine, so that it reclaims
slots which the process itself holds through finished work, its own or another's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections import OrderedDict, deque
from typing import Any, Final, Optional, Union

from . import credentials, finishing, hints, pauses, worker
from .awaiting import AwaitedFuture, Wait
from .errors import LostResult
from .finishing import Breakage, described, fail, finish, lost_worker
from .forker import ForkerLost
from .future import outcome_of
from .lending import Lending
from .lifecycle import State
from .origin import Origin
from .parcels import NotPicklable, pickling_error
from .pauses import Routine
from .protocols import Slot, Work
from .resources import Resources
from .run import Group, Run
from .series import Series
from .settings import Settings

logger: logging.Logger = logging.getLogger("jobserver")

# How long a slot may go from one piece of work to the next without going back in between: the way
# back and forth takes some 20 µs, which small work should not pay for each time.
_TENURE: Final = 0.005  # seconds

_PATIENCE: Final = 5.0  # seconds for a worker to end of a SIGTERM


class Dispatch(Group):
    """What an executor shares with its thread. The engine's lock guards its attributes."""

    for_executor = True

    def __init__(self, resources: Resources, settings: Settings, *, owned: bool) -> None:
        super().__init__()
        self.resources = resources
        # Work that waits for a slot, oldest first.
        self.pending: OrderedDict[AwaitedFuture[object], Union[Work, Series]] = OrderedDict()
        self.closing: bool = False
        self.broken: Optional[Breakage] = None  # why no more work can be run
        self.pid: Optional[int] = None  # the process that uses it, once one does
        self.settings: Settings = settings
        self.owned: Final = owned
        self.made_in: Final = os.getpid()
        self._origin: Optional[Origin] = None
        self._former: list[Origin] = []  # of other credentials, with work that may run still
        self._routine: Optional[Routine] = None  # what runs in the thread
        self._changed = False
        self.lending: Lending = Lending(resources.engine, self.pending)
        self._futures: dict[Run, AwaitedFuture[object]] = {}
        self._begun: deque[tuple[AwaitedFuture[object], Work, Slot]] = deque()
        self._in_hand: Optional[AwaitedFuture[object]] = None  # being launched
        self._held: list[Slot] = []
        self._inherits = False  # what comes free is used at once, for nothing else is done
        self._lent: Optional[Run] = None
        self._served = False  # some work has returned, so workers can be started
        self._short: Optional[OSError] = None  # why no slot could be taken
        self._pause = 0.0  # the gate is not to be asked before
        self._admitted = False  # by the gate: the next that is launched
        resources.engine.retain()

    def submit(self, work: Union[Work, Series]) -> AwaitedFuture[object]:
        """Queue work. RuntimeError after `close`, BrokenProcessPool when broken."""
        routine: Optional[Routine] = None
        origin = self._origin
        if origin is not None and origin.credentials != credentials.current():
            self._replace(origin)
        try:
            with self.resources.engine.step:
                self._check_usable()
                if self._routine is None:
                    routine = self._routine = Routine(self)
                    self.pid = os.getpid()
                # Not before the start: others need not wait for it, and it may need them to end.
                future = self._queue(work)
                self._begin_at_once()
            if routine is not None:
                self._start(routine)
        except BaseException as error:
            if routine is not None and not routine.started:
                self._undo_start(routine, error)
            raise
        self.tell()
        return future

    def _begin_at_once(self) -> None:
        """If there is a slot for what was just submitted, it begins: it is pending no more."""
        slots = self.resources.engine.slots
        in_use = len(self.tracked) + len(self._begun)
        if len(self.pending) > 1 or self.settings.sleep is not None or in_use == slots.count:
            return
        with contextlib.suppress(OSError):  # the thread finds the reason as well, and tells
            slot = slots.take()
            if slot is not None:
                slot.tenure = self.resources.engine.clock() + _TENURE
                future, work = self._take_oldest()
                future.set_running_or_notify_cancel()
                self._begun.append((future, work, slot))

    def prune(self, future: AwaitedFuture[Any]) -> None:
        """Forget pending work that was cancelled, and tell those who wait for it."""
        with self.resources.engine.lock:
            pruned = self.pending.pop(future, None)
        self.lending.forget(id(future))
        if pruned is not None:
            future.set_running_or_notify_cancel()
            self.tell()

    def close(self, *, cancel: bool = False) -> None:
        """Accept nothing more; let the thread end when all is done. Idempotent."""
        if not self.is_usable_here():
            return
        with self.resources.engine.lock:
            unused = self._routine is None
            cancelled = list(self.pending) if cancel else []
            first = not self.closing
            self.closing = True
        for future in cancelled:
            future.cancel()
        if unused and first:
            self._end()
        self.tell()

    def join(self) -> None:
        """Wait until the thread has ended; that is waiting for its work."""
        routine = self._routine
        if routine is None or not self.is_usable_here() or routine.is_current():
            return
        with self.lending.awaited(Wait()):
            routine.join()

    def is_usable_here(self) -> bool:
        """Whether no other process, of which this one is a fork, has used it."""
        return self.pid in (None, os.getpid())

    def _check_usable(self) -> None:
        if not self.is_usable_here():
            raise RuntimeError(
                f"this executor belongs to process {self.pid}, of which this process is a fork: "
                + hints.PASS_THE_JOBSERVER
            )
        if self.broken is not None:
            raise self.broken.error()
        if finishing.exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.resources.check_open()

    def _queue(self, work: Union[Work, Series]) -> AwaitedFuture[object]:
        future = work.follow(self) if isinstance(work, Series) else AwaitedFuture[object](self)
        self.pending[future] = work
        return future

    def _start(self, routine: Routine) -> None:
        """Start the thread; under fork, first what forks in its stead."""
        resources = self.resources
        resources.engine.prepare_to_notify()
        self._origin = Origin(resources.engine, resources.context, self.settings)
        finishing.at_exit(self)
        routine.start()
        logger.debug("executor %x: started", id(self))

    def _replace(self, former: Origin) -> None:
        """Have other workers than those of other credentials, of which running work goes on."""
        with self.resources.engine.lock:
            self._check_usable()
        # Capabilities and namespaces are a thread's: the thread starts again from this one.
        pauses.alone(lambda: self._exchange(former))

    def _exchange(self, former: Origin) -> None:
        resources = self.resources
        origin = Origin(resources.engine, resources.context, self.settings)
        with resources.engine.lock:
            wanted = self._origin is former
            if wanted:
                self._origin = origin
                self._former.append(former)
        if wanted:
            former.retire()
        else:  # another thread was first, or the executor has ended
            origin.close()

    def _undo_start(self, routine: Routine, error: BaseException) -> None:
        """Be as unused as before; what others have submitted meanwhile fails."""
        finishing.not_at_exit(self)
        with self.resources.engine.lock:
            futures = [*self.pending, *(future for future, _, _ in self._begun)]
            self._held.extend(slot for _, _, slot in self._begun)
            self.pending.clear()
            self._begun.clear()
            self._routine = self.pid = None
            closing = self.closing
            origin, self._origin = self._origin, None
        self.resources.put_back(self._held)
        routine.abandon()
        if origin is not None:
            origin.close()
        for future in futures:
            Breakage(error, f"the executor could not be started: {described(error)}").fail(future)
        if closing:
            self._end()

    def tell(self) -> None:
        """Have the thread look at what has changed."""
        # Once told, it looks at everything after it has set this back.
        if not self._changed:
            self._changed = True
            self.resources.engine.notify()

    # What follows runs in the thread.

    def work(self) -> bool:
        """Whether everything is over; otherwise there is a pause."""
        try:
            over = self._run_until_closed()
        except BaseException as error:
            # Nobody else finishes the Futures.
            self.fail(error)
            return True
        if over:
            self._end()
        return over

    def _run_until_closed(self) -> bool:
        engine = self.resources.engine
        while True:
            self._changed = False
            # Work first: a worker is waiting for it, and callbacks may take their time.
            self._launch_pending()
            self._settle_due()
            # Not before: what could not be launched leaves nothing behind that would tell.
            with engine.lock:
                if self.closing and not (self.pending or self._begun or self.tracked or self.due):
                    return True
            if pauses.is_wanted():
                return False
            paused = engine.clock() < self._pause
            until = self._pause if paused and self.pending else self.lending.next_look()
            self._inherits = True
            engine.wait(
                functools.partial(self._ready, paused),
                until,
                for_slot=self._wants_slot() and not paused,
            )
            self._inherits = False

    def inherit(self, slot: Slot) -> bool:
        """Keep the slot of work that is over for work that is pending.

        For a while only, lest others of the tree never have it.
        """
        if (
            self._inherits
            and len(self._held) < len(self.pending)
            and self.settings.sleep is None
            and slot.relief is None
            and self.resources.engine.clock() < slot.tenure
        ):
            self._held.append(slot)
            return True
        return False

    def announce(self, run: Run) -> None:
        self.due.append(run)

    def _wants_slot(self) -> bool:
        """Whether there is pending work, or some that runs on the slot of this process."""
        lent = None if self._lent is None else self._lent.slot
        return bool(self.pending) or self.resources.engine.slots.is_lent(lent)

    def _ready(self, paused: bool) -> bool:
        """Whether there is something to do; takes a slot for pending work if there is one."""
        if self._changed or self.due:
            return True  # before a slot is lent: whoever waits for what is due is about to go on
        if paused or not self._wants_slot():
            return False
        slots = self.resources.engine.slots
        if self._lent is not None:
            slots.relieve(self._lent.slot)
        if not self.pending:
            return False
        if slots.count is not None and len(self.tracked) >= slots.count:
            return False  # there is none to be had when all are this executor's own
        try:
            slot = slots.take()
            if slot is None and self.lending.allowed():
                # Somebody of this process waits for this work and computes nothing: it can run
                # on the slot on which the process itself runs, if it does.
                slot = slots.lend()
        except OSError as error:
            self._short = error
            return True
        if slot is not None:
            slot.tenure = self.resources.engine.clock() + _TENURE
            self._held.append(slot)
        return bool(self._held)

    def _launch_pending(self) -> None:
        """Launch work that has a slot, the oldest first; fail what cannot be launched."""
        engine = self.resources.engine
        while self._begun:
            with engine.lock:
                self._in_hand, work, slot = self._begun.popleft()
                self._held.append(slot)
            self._launch(self._in_hand, work)
        while engine.clock() >= self._pause:
            with engine.lock:
                if not (self.pending and (self._held or self._ready(False)) and self._held):
                    break
                asks = self.settings.sleep is not None and not self._admitted
                oldest = None if asks else self._take_oldest()
                self._in_hand = None if oldest is None else oldest[0]
            if oldest is None:
                # As `Resources.submit` has it: asked when there is a slot, not holding it.
                self.resources.put_back(self._held)
                self._ask()
            elif oldest[0].set_running_or_notify_cancel():  # it was not cancelled just now
                self._admitted = False
                self._launch(*oldest)
        self.resources.put_back(self._held)
        error, self._short = self._short, None
        if error is not None:
            self._fail_oldest(error)

    def _take_oldest(self) -> tuple[AwaitedFuture[object], Work]:
        """The oldest pending work; what is left of a series takes its place. Under the lock."""
        future, work = self.pending.popitem(last=False)
        if not isinstance(work, Series):
            return future, work
        chunk = work.cut()
        if work.goes_on():
            follower = work.follow(self)
            self.pending[follower] = work
            self.pending.move_to_end(follower, last=False)
        return future, chunk

    def _ask(self) -> None:
        """Ask the gate; its exception is that of the work for which it was asked."""
        try:
            delay = self.settings.delay()
        except BaseException as error:
            self._fail_oldest(error)
            return
        self._admitted = delay is None
        if delay is not None:
            self._pause = self.resources.engine.clock() + delay

    def _launch(self, future: AwaitedFuture[object], work: Work) -> None:
        slot = self._held.pop()
        lent = self.resources.engine.slots.is_lent(slot)
        try:
            assert self._origin is not None, "the thread runs"
            crew, settings = self._origin.crew, self._origin.settings
            run = self.resources.launch(crew, self, settings, work, slot)
        except ForkerLost as error:
            self._break(error, "the process that forks its workers has died")
        except NotPicklable as error:
            finish(future.set_exception, pickling_error(error))
        except BaseException as error:
            # Also what user code raised to end a process while its arguments were pickled: this
            # thread is not that process.
            fail(future, error)
        else:
            if lent:
                self._lent = run
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("executor %x: worker %s started", id(self), run.worker.pid)
            self._futures[run] = future
        self._in_hand = None

    def _fail_oldest(self, error: BaseException) -> None:
        with self.resources.engine.lock:
            future = self.pending.popitem(last=False)[0] if self.pending else None
        if future is not None and future.set_running_or_notify_cancel():
            finish(future.set_exception, error)

    def _settle_due(self) -> None:
        while self.due:
            run = self.due.popleft()
            # Not removed before it is finished: else it is lost if this is torn apart.
            self._settle(self._futures[run], run)
            del self._futures[run]

    def _settle(self, future: AwaitedFuture[object], run: Run) -> None:
        """Finish a future with what its run ended with."""
        if run is self._lent:
            self._lent = None
        self.lending.forget(id(future))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("executor %x: worker %s has ended", id(self), run.worker.pid)
        failure: BaseException
        try:
            value = outcome_of(run)()
        except LostResult as lost:
            # When it has answered, the work has lost a result of its own.
            failure = lost if run.answered else lost_worker(lost)
            if finishing.is_stillborn(run.worker, lost) and not self._served:
                failure = self._break(lost, finishing.STILLBORN).error()
        except worker.InitializerFailed as error:
            failure = self._break(error, str(error)).error()
        except BaseException as error:
            failure = error
        else:
            self._served = True
            finish(future.set_result, value)
            return
        fail(future, failure)

    def _break(self, cause: BaseException, text: str) -> Breakage:
        """No more work can be run: fail what has not begun, and refuse what comes."""
        with self.resources.engine.lock:
            broken = self.broken = self.broken or Breakage(cause, text)
            futures = [future for future, _, _ in self._begun] + list(self.pending)
            self._held += [slot for _, _, slot in self._begun]
            self._begun.clear()
            self.pending.clear()
        if self._in_hand is not None:
            futures.append(self._in_hand)
            self._in_hand = None
        for future in futures:
            broken.fail(future)
        return broken

    def fail(self, error: BaseException) -> None:
        """The thread ends, of what nobody expected: leave no Future unfinished."""
        trace = error.__traceback__
        broken = self._break(error, f"the executor's thread has failed: {described(error)}")
        for future in list(self._futures.values()):
            broken.fail(future)
        logger.error("executor %x: %s", id(self), broken.text, exc_info=(type(error), error, trace))
        try:
            self._end_workers()
        finally:
            self._end()

    def _end_workers(self) -> None:
        """End the workers whose Futures have failed, as ProcessPoolExecutor does."""
        engine = self.resources.engine
        self.resources.put_back(self._held)
        for signum, seconds in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, None)):
            with engine.step:
                for run in self.tracked:
                    if run.state is not State.REAPED:
                        run.send_signal(signum)
            # It may be the engine that has failed. Then the next signal comes at once.
            with contextlib.suppress(Exception):
                engine.wait(lambda: not self.tracked, engine.deadline(seconds))
        self.due.clear()
        self._futures.clear()

    def _end(self) -> None:
        """Let go of everything; the last thing that happens."""
        with contextlib.ExitStack() as steps:  # the last first; each, whatever the others raise
            steps.callback(logger.debug, "executor %x: ended", id(self))
            steps.callback(finishing.not_at_exit, self)
            steps.callback(self.resources.engine.release)
            if self.owned:
                steps.callback(self.resources.close)
            origin, self._origin = self._origin, None
            if origin is not None:
                steps.callback(origin.close)
            while self._former:
                steps.callback(self._former.pop().close)
            self.settings = Settings()  # what the initializer was given is let go of as well
