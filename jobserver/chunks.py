"""How many calls of a map go into one submission when that is left to us: `chunksize="auto"`.

A chunk costs its launch once, be it that a worker is sent the chunk or that one is started for it.
So chunks grow until the work in them makes up for that, by what the chunks before them took.
"""

from __future__ import annotations

import threading
from typing import Final, Literal, Optional, Union

from .settings import check_positive

Chunksize = Union[int, Literal["auto"]]

# A chunk is to last this long at least: what its launch costs hardly counts then, and results still
# come many times a second. And so many times as long as the launch itself took.
_WORK: Final = 0.004  # seconds
_LAUNCHES: Final = 9

# The next calls may be larger than those before. A chunk has at most so many times as many as any
# that has been measured; and launching it takes at most so many times as long as it has taken
# before, or as long as a chunk may last, should all of it be the moving of large arguments.
_GROWTH: Final = 16
_GROWTH_OF_LAUNCH: Final = 2

# After so many single calls it is forgotten that more of them would take too long to launch: only
# larger chunks can tell, and a busy machine may have delayed all of those.
_SINGLES: Final = 16

# So many chunks for each slot are left when chunks grow for the last time, lest one slot still be
# at work when the others have nothing left to do.
_AT_THE_END: Final = 4


def check_chunksize(value: object) -> Chunksize:
    """As `Jobserver.map` has it: TypeError and ValueError for what is no chunksize."""
    if isinstance(value, str):
        if value == "auto":
            return "auto"
        raise ValueError(f'chunksize must be an int >= 1 or "auto", not {value!r}')
    return check_positive("chunksize", value)


class Growth:
    """The sizes of a map's chunks, one after another, by what it is told of them. Thread-safe."""

    def __init__(self, slots: int) -> None:
        self._lock = threading.Lock()
        self._share = _AT_THE_END * slots
        self._size = 1  # that of the last chunk
        self._largest = 0  # of the chunks that have been measured
        # What recent chunks took; the last one counts as much as all before it.
        self._work = 0.0
        self._calls = 0.0
        # The quickest launch, and what each further call adds to one: as far as a launch takes
        # longer for more calls, larger chunks do not make up for it.
        self._launch: Optional[float] = None
        self._launch_of_a_call: Optional[float] = None
        self._singles = 0  # since the last larger chunk

    def size(self, left: Optional[int]) -> int:
        """How many calls the next chunk has, of those `left` (None: nobody knows)."""
        with self._lock:
            size = max(1, min(self._wanted(), self._cautious()))
            if left is not None:
                size = min(size, left, max(self._size, left // self._share))
            self._size = size
        return size

    def note(self, calls: int, launch: Optional[float], work: float) -> None:
        """What a chunk took, in seconds: its launch, if that is known, and its work."""
        with self._lock:
            self._largest = max(self._largest, calls)
            self._calls = self._calls / 2 + calls
            self._work = self._work / 2 + work
            self._singles = self._singles + 1 if calls == 1 else 0
            if self._singles == _SINGLES:
                self._launch_of_a_call = None
            if launch is not None:
                self._launch = _least(self._launch, launch)
                if calls > 1:
                    more = (launch - self._launch) / (calls - 1)
                    self._launch_of_a_call = _least(self._launch_of_a_call, more)

    def _wanted(self) -> int:
        """As many calls as make up for the launch."""
        if not self._calls:
            return 1
        of_a_call = self._launch_of_a_call or 0.0
        of_a_chunk = max(0.0, (self._launch or 0.0) - of_a_call)
        each = self._work / self._calls + of_a_call
        return _quotient(max(_WORK, _LAUNCHES * of_a_chunk), each)

    def _cautious(self) -> int:
        """As many calls as may be tried, whatever they turn out to take."""
        most = _GROWTH * self._largest
        if self._launch is None:
            return most
        # That of a single call may all be the call's.
        of_a_call = self._launch if self._launch_of_a_call is None else self._launch_of_a_call
        return min(most, _quotient(max(_WORK, _GROWTH_OF_LAUNCH * self._launch), of_a_call))


def _least(known: Optional[float], seconds: float) -> float:
    return seconds if known is None else min(known, seconds)


def _quotient(seconds: float, each: float) -> int:
    return int(seconds / max(each, 1e-9))  # a clock may not have moved
