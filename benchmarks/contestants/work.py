"""What the contestants run in their workers; every spawned worker imports it, so it stays small."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any


def nothing() -> None:
    """The trivial function."""


def same(value: object) -> object:
    """The trivial function for `map`."""
    return value


def hold(entry: int, lock: int) -> None:
    """Wait at a `gate.Gate` until it opens, or whoever made it dies."""
    os.close(lock)
    os.read(entry, 1)


def pause(seconds: float) -> None:
    time.sleep(seconds)


def busy(seconds: float) -> None:
    """Keep a processor busy for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def array(size: int) -> Any:
    """A NumPy array of so many bytes."""
    return importlib.import_module("numpy").ones(size // 8)


def size_of(received: Any) -> int:
    """How many bytes a NumPy array has."""
    return int(received.nbytes)


def memory() -> float:
    """Kibibytes of this process: its own, and its share of what it has in common with others."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return float(rollup.partition("\nPss:")[2].split()[0])
