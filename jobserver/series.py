"""The calls of an executor's map, of which each chunk is made up when there is a slot for it.

Nobody else has to see to it that all of them run: of a series one chunk is always pending, as if
all were, and when that is launched, what is left of the series is pending in its place.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Sequence
from typing import Callable, Final, Optional, cast

from . import wire
from .awaiting import AwaitedFuture, Runner
from .protocols import Work
from .worker import run_chunk


class Series:
    """Calls of `fn` over columns of equal length.

    `size` says how many calls go into the next chunk, of those that are left, and `note` is told
    what a chunk took. Both are called by the executor's thread.
    """

    def __init__(
        self,
        fn: Callable[..., object],
        columns: Sequence[Sequence[object]],
        size: Callable[[int], int],
        note: Callable[[int, Optional[float], float], None],
    ) -> None:
        # Of the chunks whose results nobody has taken; the last may be pending.
        self.futures: Final[deque[AwaitedFuture[object]]] = deque()
        self._fn = fn
        self._columns = columns
        self._size = size
        self._note = note
        self._start = 0  # of the next chunk
        self._count = len(columns[0]) if columns else 0
        self._stopped = False

    def goes_on(self) -> bool:
        """Whether there are calls left to launch."""
        return self._start < self._count and not self._stopped

    def follow(self, runner: Runner) -> AwaitedFuture[object]:
        """The future of the next chunk."""
        future: AwaitedFuture[object] = AwaitedFuture(runner)
        self.futures.append(future)
        future.add_done_callback(self._look)
        return future

    def cut(self) -> Work:
        """The work of the next chunk, to be launched now."""
        start = self._start
        self._start += self._size(self._count - start)
        columns = [column[start : self._start] for column in self._columns]
        return run_chunk, (self._fn, columns, time.monotonic(), True), {}

    def stop(self) -> None:
        """Launch nothing more."""
        self._stopped = True
        for future in list(self.futures):
            future.cancel()

    def _look(self, future: concurrent.futures.Future[object]) -> None:
        if future.cancelled():
            self.stop()
        elif future.exception() is None:
            _, _, timing = cast("wire.Chunk", future.result())
            self._note(*timing)
