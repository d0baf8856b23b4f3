"""asyncio event loops that wait for work: they compute nothing while they are in their selector.

The standard library has no hook for that, so the `select` of the loop's selector is wrapped. A loop
without a selector (uvloop) is not seen here; for those there is the last resort of `lending`.
asyncio itself is imported by nobody but the work: without it, no loop runs.
"""

from __future__ import annotations

import sys
import time
import weakref
from typing import TYPE_CHECKING, Callable, Final, Optional

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# A loop that is about to be told of a result is not taken to wait. It is again after this time,
# for what a callback does need not wake the loop.
_WAKING: Final = 0.02  # seconds


class LoopWait:
    """An event loop, and the executors whose work it awaits."""

    def __init__(self) -> None:
        self._asleep = False
        self._woken = 0.0
        self._awaited: dict[int, Callable[[], None]] = {}  # by the work: what tells of a wait

    def goes_on(self) -> bool:
        """Whether the loop is in its selector, and nothing that we know of wakes it."""
        return self._asleep and time.monotonic() >= self._woken + _WAKING

    def add(self, work: int, tell: Callable[[], None]) -> None:
        """The loop awaits some work; `tell` is called whenever the loop begins to wait."""
        self._awaited[work] = tell

    def discard(self, work: int, future: object = None) -> None:  # noqa: ARG002
        """The work is done, and callbacks of its future are about to wake the loop."""
        self._awaited.pop(work, None)
        self._woken = time.monotonic()

    def wrap(
        self, select: Callable[[Optional[float]], list[object]]
    ) -> Callable[[Optional[float]], list[object]]:
        def select_and_tell(timeout: Optional[float] = None) -> list[object]:
            if not self._awaited or (timeout is not None and timeout <= 0):
                return select(timeout)
            self._asleep, self._woken = True, 0.0
            try:
                for tell in {*tuple(self._awaited.values())}:
                    tell()
                return select(timeout)
            finally:
                self._asleep = False

        return select_and_tell


_known: weakref.WeakKeyDictionary[AbstractEventLoop, LoopWait] = weakref.WeakKeyDictionary()


def running() -> Optional[LoopWait]:
    """The loop that runs in this thread, if there is one and it has a selector."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        loop = asyncio.get_running_loop()
    except (AttributeError, RuntimeError):  # it is still being imported, or no loop runs
        return None
    selector = getattr(loop, "_selector", None)
    if selector is None:
        return None
    wait = _known.get(loop)
    if wait is None:
        wait = _known[loop] = LoopWait()
        selector.select = wait.wrap(selector.select)
    return wait
