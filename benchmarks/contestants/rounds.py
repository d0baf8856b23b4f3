"""What every contestant and every measure has in common. Spawned workers import it: it is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

# Of every contestant: as many as the smallest machine has processors.
SLOTS = 2

Samples = dict[str, list[float]]  # in seconds, percent or kibibytes
Round = Callable[[], Samples]


class Pool(Protocol):
    """A contestant: whatever runs functions in other processes."""

    def call(self, fn: Callable[..., Any], *args: object) -> Any:
        """The result of one call."""

    def many(self, fn: Callable[[], object], count: int) -> None:
        """Submit so many calls, and only then take their results, as they come."""

    def map(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        """Take the results in order; each call is a submission of its own."""

    def map_tiny(self, fn: Callable[[Any], object], values: Sequence[object]) -> None:
        """The same, in groups, of the size that the contestant itself thinks right."""


MakePool = Callable[[str], AbstractContextManager[Pool]]


def like_pool(values: Sequence[object]) -> int:
    """The size of groups that `multiprocessing.Pool.map` has, for those who have to be told one."""
    return -(-len(values) // (4 * SLOTS))
