"""What the contestants run in their workers; every spawned worker imports it, so it stays small."""

from __future__ import annotations

import os
import time


def nothing() -> None:
    """The trivial function."""


def hold(entry: int, lock: int) -> None:
    """Wait at a `gate.Gate` until it opens, or whoever made it dies."""
    os.close(lock)
    os.read(entry, 1)


def pause(seconds: float) -> None:
    time.sleep(seconds)
