"""Whether an executor may run pending work on the slot of its own process.

It may while somebody waits for that work, and so computes nothing. There are several ways to wait,
from what is known to what is guessed:

* *told*: `result`, `wait`, `as_completed`, `map` and `shutdown` say that they wait; so does
  `waiting()`; a loop of asyncio waits while it is in its selector.
* *polled*: a thread asks again and again whether the same work is done, and does next to nothing in
  between. Each question tells for how long the next one is awaited.
* *seen*: a thread has put a callback on pending work, and waits for another thread (in a Semaphore,
  an Event, a Queue); and meanwhile no thread of this process computes.
* *guessed*, the last resort: no slot of the full tree has moved for two seconds, and the threads of
  this process used next to no processor time. It is a guess, as work that waits for the network
  looks alike. A tree that stands still is worse. A warning says so, and names `waiting()`.

Nobody tells of what is seen or guessed. The executor's thread looks for it whenever it looks for a
slot, which it does every half a second at least while it wants one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Generator, Sized
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Callable, Final, Optional, Protocol, Union

from . import loops, worker

if TYPE_CHECKING:
    from .engine import Engine
    from .loops import LoopWait

logger: logging.Logger = logging.getLogger("jobserver")

# Polling: a thread asks about the same work several times. Between two questions it has slept and
# used less than this share of the time, or it has done nothing but ask.
_SHARE_OF_POLLING: Final = 0.25
_SLEEPS: Final = 3
_SPIN: Final = 50e-6  # seconds of processor time: the question itself, for the most part
_SPINS: Final = 1000  # as work that computes may ask several questions at once
_POLL_LASTS: Final = 0.05  # seconds at least; else twice the time since the question before
_ASKS_NO_MORE: Final = 0.25  # seconds after which a thread is asked about other work

# "Next to no processor time", of all threads but the executor's.
_IDLE: Final = 0.05  # of the time that has passed
_SLACK: Final = 50e-6  # seconds: less cannot be told from waking up

# To be seen waiting, at several looks that are so far apart. One look is not enough: on a busy
# machine, a thread that computes may have had no processor for a moment.
_QUIET_LOOKS: Final = 2
_MOMENT: Final = 0.005  # seconds

# The last resort.
_STILL: Final = 2.0  # seconds in which nothing has moved
_WINDOW: Final = 0.1  # seconds over which processor time is compared, at least
_LOOKS: Final = 50  # the window is as many times as long as the look at the tree itself takes

# How often to look where the engine has no reason to.
_LATER: Final = 0.25  # seconds


class Wait(Protocol):
    """Somebody waits for work, and says so."""

    def goes_on(self) -> bool:
        """Whether what is waited for is still to come."""
        ...


if sys.platform == "linux":
    import resource

    def _sleeps() -> int:
        """How often this thread has slept. That it was made to leave a processor does not count."""
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

else:

    def _sleeps() -> int:
        """Another number at each call: nothing is known."""
        return time.monotonic_ns()


class _Asker:
    """A thread that asks about work: what it has done since it asked before."""

    def __init__(self, work: Optional[int], now: float, used: float, sleeps: int) -> None:
        self.work = work  # the one of several that is followed; None once it is done
        self.at: float = now  # when it asked last
        self.until: float = 0.0  # how long it is taken to wait
        self._used = used  # its processor time
        self._sleeps = sleeps
        self._slept = 0  # how often it has slept, and how often it has done nothing, in between
        self._spun = 0

    def ask(self, work: int, now: float, used: float, sleeps: int) -> None:
        elapsed, spent = now - self.at, used - self._used
        if spent <= _SHARE_OF_POLLING * elapsed and sleeps != self._sleeps:
            self._slept += 1
        elif spent <= _SPIN:
            self._spun += 1
        else:
            self._slept = self._spun = 0
            self.until = 0.0
        self.work, self.at, self._used, self._sleeps = work, now, used, sleeps
        if self._slept >= _SLEEPS or self._spun >= _SPINS:
            self.until = max(self.until, now + max(_POLL_LASTS, 2 * elapsed))


class Polls:
    """Threads that ask whether work is done."""

    def __init__(self) -> None:
        self._askers: dict[int, _Asker] = {}  # by the thread

    def note(self, work: int) -> bool:
        """This thread asks, and the answer is no: whether it now waits and did not before."""
        thread, now = get_ident(), time.monotonic()
        asker = self._askers.get(thread)
        if asker is not None and asker.work not in (work, None):
            if now - asker.at < _ASKS_NO_MORE:
                return False  # it asks about many, of which one is enough
            asker = None
        if asker is None:
            self._askers[thread] = _Asker(work, now, time.thread_time(), _sleeps())
            return False
        waited = asker.until > now
        asker.ask(work, now, time.thread_time(), _sleeps())
        return asker.until > now and not waited

    def forget(self, work: int) -> None:
        """The work is done."""
        for asker in list(self._askers.values()):
            if asker.work == work:
                asker.work = None

    def go_on(self) -> bool:
        now = time.monotonic()
        return any(asker.until > now for asker in list(self._askers.values()))


class Idleness:
    """Processor time of all threads of this process but the one that asks."""

    def __init__(self) -> None:
        self._at = 0.0
        self._used = 0.0

    def since(self, now: float) -> float:
        """How long ago it began to measure."""
        return now - self._at

    def measure(self, now: float) -> bool:
        """Whether next to none was used since the last measurement."""
        used = time.process_time() - time.thread_time()
        elapsed, spent = now - self._at, used - self._used
        self._at, self._used = now, used
        return spent <= _IDLE * elapsed + _SLACK


class Lending:
    """Whether somebody waits for the work of one executor.

    Threads note that they wait in single steps of dictionaries. `pending` is the work that waits
    for a slot; work is known by the `id` of its future.
    """

    def __init__(self, engine: Engine, pending: Sized) -> None:
        self._engine = engine
        self._pending = pending
        self._polls = Polls()
        self._waits: dict[object, Wait] = {}  # of those who say so, by any key
        self._callers: dict[int, int] = {}  # by the work: the thread that put a callback on it
        self._loops: dict[int, LoopWait] = {}  # by the work: the loop that awaits it
        self._lately = Idleness()  # since the last look
        self._window = Idleness()
        self._quiet = 0  # looks at which a caller was seen waiting, since anything happened
        self._soon = 0  # looks that are due earlier than the engine's
        self._places: frozenset[int] = frozenset()
        self._still_since = 0.0
        self._length = _WINDOW
        self._guessed = False
        self._moved = False  # whether this process itself has seen something move, since a guess

    @contextlib.contextmanager
    def awaited(self, wait: Wait) -> Generator[None, None, None]:
        """Somebody waits, within, for work of this executor."""
        # Only a process that runs work on a slot has one to lend to whom it waits for.
        if worker.held is None:
            yield
            return
        key = object()
        self._waits[key] = wait
        try:
            self._tell()
            yield
        finally:
            self._waits.pop(key, None)

    def polled(self, work: int) -> None:
        """This thread asked whether some work is done, and it is not."""
        if worker.held is not None and self._polls.note(work):
            self._tell()

    def called_back(self, work: int) -> Optional[Callable[[object], None]]:
        """This thread is about to put a callback on work that is not done.

        Returns a callback that has to be put on it before.
        """
        if worker.held is None:
            return None
        loop = loops.running()
        if loop is None:
            self._callers[work] = get_ident()
        elif self._loops.get(work) is not loop:
            self._loops[work] = loop
            loop.add(work, self._tell)
            # It is called before the loop's own, and so before that wakes the loop.
            return functools.partial(loop.discard, work)
        return None

    def forget(self, work: int) -> None:
        """Some work is done: threads may go on, and soon wait again."""
        self._polls.forget(work)
        self._callers.pop(work, None)
        self._loops.pop(work, None)
        self._quiet = 0
        self._soon = _QUIET_LOOKS
        self._moved = True

    def _tell(self) -> None:
        """Have the executor's thread look again, if it has work that could run."""
        if self._pending:
            self._engine.notify()

    # What follows is for the executor's thread, under the engine's lock.

    def allowed(self) -> bool:
        """Whether pending work may run on the slot of this process."""
        waits = self._engine.waits
        if worker.held is None or waits.wants_slot_back:
            return False
        if waits.declared or self._polls.go_on():
            return True
        told = (*tuple(self._waits.values()), *set(self._loops.values()))
        if any(wait.goes_on() for wait in told):
            self._moved = True  # what comes after this wait is another one
            return True
        return self._sees() or self._guess()

    def next_look(self) -> Optional[float]:
        """When to look again; None to leave it to the engine."""
        if worker.held is None or not self._pending:
            return None
        now = self._engine.clock()
        if self._callers and self._soon:
            self._soon -= 1
            return now + 1.2 * _MOMENT
        return None if self._engine.slots.recovers else now + _LATER

    def _sees(self) -> bool:
        """Whether a caller waits for another thread, and no thread computes."""
        now = time.monotonic()
        if self._lately.since(now) >= _MOMENT:
            idle = self._lately.measure(now)
            self._quiet = self._quiet + 1 if idle and self._caller_waits() else 0
        return self._quiet >= _QUIET_LOOKS

    def _caller_waits(self) -> bool:
        """Whether a thread that has put a callback on pending work waits for another thread."""
        threads = set(self._callers.values())
        if not threads:
            return False
        # There is no public equivalent.
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        return any(_waits_for_a_thread(frames.get(thread)) for thread in threads)

    def _guess(self) -> bool:
        """The last resort: whether nobody of this process, and of the tree, does anything."""
        now = time.monotonic()
        elapsed = self._window.since(now)
        if elapsed < self._length:
            return self._guessed
        idle = self._window.measure(now)
        places = self._engine.slots.places()
        self._length = max(_WINDOW, _LOOKS * (time.monotonic() - now))
        if not idle:
            self._guessed = False
        # After a long time without a look, nothing is known of the time in between. And looks that
        # come between one wait and the next, always at the same point, see the same places.
        moved, self._moved = self._moved, False
        if not idle or moved or places != self._places or elapsed > _STILL:
            self._places, self._still_since = places, now
        elif not self._guessed and now - self._still_since >= _STILL:
            self._guessed = True
            _warn()
        return self._guessed


_warned = False


def _warn() -> None:
    """Once a process: what follows is the same program."""
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "all slots are in use and nothing has moved for %.0f s, so this process seems to wait "
            "for its own pending work, which now runs on its slot; wait within "
            "`with jobserver.waiting():` (or `executor.waiting():`) to have it run at once",
            _STILL,
        )


_WAIT_CODE: Final = threading.Condition.wait.__code__


def _waits_for_a_thread(frame: Optional[FrameType]) -> bool:
    if frame is None or frame.f_code is not _WAIT_CODE:
        return False
    # A notification releases the lock, and then the thread is about to go on.
    waiter: Union[threading.Lock, None] = frame.f_locals.get("waiter")
    return waiter is not None and waiter.locked()
