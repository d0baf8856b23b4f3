"""Read-only buffers in values; without pytest, so that a spawned worker starts quickly."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

# What a pickle says of a read-only buffer beside it: here it is only the bytes of a value.
MISLEADING = pickle.NEXT_BUFFER + pickle.READONLY_BUFFER


def numpy() -> Any:
    return importlib.import_module("numpy")


def frozen_ones(size: int) -> Any:
    """A read-only array of that many bytes."""
    array = numpy().ones(size // 8)
    array.flags.writeable = False
    return array


class Window:
    """Has a buffer, and is pickled as PEP 574 wants it."""

    def __init__(self, content: Any) -> None:
        self.content = memoryview(content)

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        return Window, (pickle.PickleBuffer(self.content),)


def increase(array: Any) -> float:
    array += 1
    return float(array.sum())


def increase_all(arrays: list[Any], beside: object) -> list[float]:
    return [increase(array) for array in arrays]


def all_writable(*arrays: Any) -> bool:
    return all(array.flags.writeable for array in arrays)


def many(count: int, size: int, beside: Any) -> Any:
    return [frozen_ones(size) for _ in range(count)], beside


def raise_with(array_size: int) -> None:
    raise ValueError(frozen_ones(array_size))
