"""The threads of this package, and how they end for the moment of a fork.

A fork copies only the thread that forks. Locks that other threads hold stay locked in the child,
so Python 3.12 and later warn of it. An executor that is used for the first time under fork has to
fork, because its workers see the process as it is now. Another executor may have its thread by
then. So all threads of this package end before that fork, and start again after it.

    first use:    alone() ── asks ──> each thread: finishes what it is at, holds nothing, ends
                    │ joins <──────────────────────────────────────────────────┘
                    │ forks
                    └ starts ───────> a new thread each, which looks at everything there is

Guarantees:
* A thread ends only where it would wait otherwise. What happens in between is found by its
  successor, because descriptors stay readable and queues stay filled.
* Nobody waits for ever. A thread in a callback of the user may need the very thread that wants to
  fork. After `_PATIENCE` the fork happens beside it, and Python warns of that.
* Threads that want to fork do not wait for each other. One of our own wants to when a callback of
  the user uses a new executor. That is a fork beside the main thread, as any in a callback.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Callable, Final, Optional, Protocol

from .interrupts import shielded

_PATIENCE: Final = 1.0  # seconds

# Guards what follows, and tells of changes. Nobody takes another lock while holding it.
_changed = threading.Condition()
_pauses = 0  # forks that are awaited or under way
_starters: Counter[int] = Counter()  # the threads that want to fork, by their identifiers
_threads: dict[threading.Thread, Routine] = {}  # those that may still run
_ending: set[threading.Thread] = set()  # those of them that do nothing any more
_resting: list[Routine] = []  # those that start again after the pause


class Owner(Protocol):
    """What a routine does its work for."""

    def work(self) -> bool:
        """Work until all is over: True; or until there `is_wanted()` a pause. Never raises."""
        ...

    def tell(self) -> None:
        """Have `work` look at what has changed."""
        ...

    def fail(self, error: BaseException) -> None:
        """There can be no other thread to go on in."""
        ...


class Routine:
    """What runs in one thread after another: always in one, except during a pause."""

    def __init__(self, owner: Owner) -> None:
        self._owner: Optional[Owner] = owner  # until it is over: its end frees the owner
        self._over = threading.Event()
        self._thread: Optional[threading.Thread] = None  # the last one

    def start(self) -> None:
        """Start the first thread; after the pause, if there is one. RuntimeError if it cannot."""
        with shielded(), _changed:
            if _pauses:
                _resting.append(self)
            else:
                self.start_thread()

    @property
    def started(self) -> bool:
        """Whether `start` was called; it may be that a pause comes first."""
        return self._thread is not None or self in _resting

    def abandon(self) -> None:
        """It was never started, and never will be."""
        self._finish()

    def is_current(self) -> bool:
        """Whether this is called in its thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until it is over, and its last thread has ended."""
        self._over.wait()
        thread = self._thread
        if thread is not None:
            thread.join()
            await_kernel(thread)

    def nudge(self) -> None:
        """Have it look whether it is to pause."""
        owner = self._owner
        if owner is not None:
            owner.tell()

    def lose(self, error: RuntimeError) -> None:
        """It cannot go on: there can be no more threads."""
        try:
            if self._owner is not None:
                self._owner.fail(error)
        finally:
            self._finish()

    def _finish(self) -> None:
        self._owner = None
        self._over.set()

    def start_thread(self) -> None:
        """RuntimeError if there can be no more threads. Under the lock."""
        _forget_ended()
        thread = threading.Thread(target=self._live, name="JobserverExecutor")
        _threads[thread] = self
        before, self._thread = self._thread, thread
        try:
            thread.start()
        except BaseException:
            self._thread = before
            del _threads[thread]
            raise

    def _live(self) -> None:
        try:
            while self._owner is not None and not self._owner.work():
                with _changed:
                    if _pauses:  # else the pause was over before this thread could end
                        _resting.append(self)
                        return
            self._finish()
        except BaseException:
            self._finish()
            raise
        finally:
            with _changed:
                _ending.add(threading.current_thread())
                _changed.notify_all()


class _Pause:
    """One thread's wish to fork."""

    def __init__(self) -> None:
        self._begun = False
        self._me = threading.get_ident()

    def begin(self) -> None:
        global _pauses
        with shielded(), _changed:
            self._begun = True
            _pauses += 1
            _starters[self._me] += 1
            _changed.notify_all()
        _await_threads()

    def end(self) -> None:
        """Start the threads again, unless others want a pause. Idempotent."""
        global _pauses
        lost: list[tuple[Routine, RuntimeError]] = []
        with shielded(), _changed:
            if not self._begun:
                return
            self._begun = False
            _pauses -= 1
            _starters[self._me] -= 1
            if not _starters[self._me]:
                del _starters[self._me]
            while _resting and not _pauses:
                routine = _resting.pop(0)
                try:
                    routine.start_thread()
                except RuntimeError as error:
                    lost.append((routine, error))
        for routine, cause in lost:
            routine.lose(cause)


def alone(do: Callable[[], None]) -> None:
    """Call `do` while no other thread of this package runs; see above."""
    pause = _Pause()
    try:
        try:
            pause.begin()
            do()
        finally:
            pause.end()
    finally:
        # Again, as an interrupt can come after the block and before its `finally`.
        pause.end()


def is_wanted() -> bool:
    """Whether the threads of this package are to end for now."""
    return _pauses > 0


def await_kernel(thread: threading.Thread) -> None:
    """Wait until the kernel, too, has no more of a thread that was joined.

    `join` returns a moment earlier, mostly so before 3.13 and rarely since. Python warns of a fork
    in that moment.
    """
    deadline = time.monotonic() + _PATIENCE
    while _is_in_kernel(thread) and time.monotonic() < deadline:
        time.sleep(0)


def _await_threads() -> None:
    """Have all threads end but those that want to fork; wait for them, though not for ever."""
    with _changed:
        routines = list(_threads.values())
    for routine in routines:
        routine.nudge()
    with _changed:
        _changed.wait_for(lambda: not (_threads.keys() - _ending - _forking()), _PATIENCE)
        ending = list(_ending)
    for thread in ending:
        thread.join(_PATIENCE)
        await_kernel(thread)
    with _changed:
        _forget_ended()


def _forking() -> set[threading.Thread]:
    """Our own threads that want to fork."""
    return {thread for thread in _threads if _starters[thread.ident or 0] > 0}


def _forget_ended() -> None:
    for thread in list(_ending):
        if not (thread.is_alive() or _is_in_kernel(thread)):
            _ending.discard(thread)
            _threads.pop(thread, None)


def _is_in_kernel(thread: threading.Thread) -> bool:
    return os.path.exists(f"/proc/self/task/{thread.native_id}")


def _forget_in_child() -> None:
    global _changed, _pauses
    _changed = threading.Condition()
    _pauses = 0
    _starters.clear()
    _threads.clear()
    _ending.clear()
    _resting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
