"""The threads of a process that have said that they compute nothing; see `waiting`.

Nothing new is lent while one of them waits to have the slot back, or it might never have it.
"""

from __future__ import annotations


class Waits:
    """The threads that are in such a block. The engine's lock guards it."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}  # by thread
        self._leaving: set[int] = set()

    @property
    def declared(self) -> bool:
        """Whether some thread says that it computes nothing."""
        return len(self._depths) > len(self._leaving)

    @property
    def wants_slot_back(self) -> bool:
        """Whether some thread waits for the slot of this process, in order to compute."""
        return bool(self._leaving)

    def enter(self, thread: int) -> None:
        self._depths[thread] = self._depths.get(thread, 0) + 1

    def leave(self, thread: int) -> bool:
        """Leave one block; whether it was the outermost: then `left` has to follow."""
        if self._depths[thread] > 1:
            self._depths[thread] -= 1
            return False
        self._leaving.add(thread)
        return True

    def left(self, thread: int) -> None:
        self._leaving.discard(thread)
        self._depths.pop(thread, None)
