"""Large values, and work on them; without pytest, so that a spawned worker starts quickly."""

from __future__ import annotations

import array
import importlib
import mmap
import os
import pickle
import resource
import signal
import socket
import threading
from typing import Any

from jobserver import Jobserver, pickles
from tests.work import PATIENCE, streamed_blob

SIZE = 3 * pickles.LARGE + 24  # bytes: large, of float64, and no number of pages


def numpy() -> Any:
    return importlib.import_module("numpy")


def ones(size: int = SIZE) -> Any:
    return numpy().ones(size // 8)


def origin(value: Any) -> object:
    """What has the memory of an array."""
    while value is not None and not isinstance(value, (mmap.mmap, bytes, bytearray)):
        value = value.obj if isinstance(value, memoryview) else getattr(value, "base", None)
    return value


def is_mapped(value: Any) -> bool:
    return isinstance(origin(value), mmap.mmap)


def double(value: Any) -> Any:
    """Change what came, and return it."""
    value *= 2
    return value


def look(value: Any) -> tuple[bool, bool, float]:
    """Whether it is mapped, whether it is writable, and the sum."""
    return is_mapped(value), value.flags.writeable, float(value.sum())


def nested(js: Jobserver, size: int) -> Any:
    return js(double, ones(size)).result(PATIENCE)


def streamed_ones(size: int) -> Any:
    """Ones that go through the result channel."""
    streamed_blob(0)
    return ones(size)


def ones_without_descriptors(size: int) -> Any:
    found = ones(size)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    return found


def ones_with_default_timeout(size: int) -> Any:
    socket.setdefaulttimeout(0.001)
    return ones(size)


def fail_to_pickle(size: int) -> object:
    return [ones(size), threading.Lock()]


def raise_with(size: int) -> None:
    raise ValueError(ones(size))


def end_here(*_: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


class Wrapped(bytearray):
    """The example of the documentation of `pickle`: a bytearray that need not be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self)._reconstruct, (pickle.PickleBuffer(self),)

    @classmethod
    def _reconstruct(cls, buffer: Any) -> Wrapped:
        with memoryview(buffer) as view:
            origin: Any = view.obj
            return origin if type(origin) is cls else cls(origin)


def plain_values() -> list[Any]:
    """Large values without NumPy."""
    content = bytes(range(256)) * (SIZE // 256)
    return [
        content,
        bytearray(content),
        array.array("B", content),
        Wrapped(content),
        "\u00e9" * SIZE,
        1 << (8 * SIZE),
        [content, {"key": bytearray(content)}, content],
        pickle.PickleBuffer(content),
        pickle.PickleBuffer(bytearray(content)),
        list(range(100_000)),
    ]


def plain_value(index: int) -> Any:
    return plain_values()[index]


def array_values() -> list[Any]:
    np = numpy()
    flat = np.arange(SIZE // 8, dtype=np.float64)
    square = np.arange(512 * 256, dtype=np.float64).reshape(512, 256)
    read_only = flat.copy()
    read_only.flags.writeable = False
    return [
        flat,
        square,
        np.asfortranarray(square),
        square[::2, ::3],
        square[1:, :],
        read_only,
        np.zeros((0, 3)),
        np.zeros(SIZE // 16, dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["text", None, 5] * 50_000, dtype=object),
        [flat, flat],
        [flat, np.zeros(3), square, b"bytes" * SIZE],
    ]


def array_value(index: int) -> Any:
    return array_values()[index]
