"""Values as pickles: a stream, and beside it the large buffers that were kept out of it.

What the receiver gets is its own, so all of it is writable. But a pickle says of a buffer whether
it was read-only, and then the buffer arrives read-only (those of NumPy arrays do). So read-only
buffers are kept out of the stream, and what it says of them is replaced: by BINPERSID, which here
gives back the buffer as it is. Those that are not large are put into the stream again, writable.
"""

from __future__ import annotations

import os
import pickle
import sys
from io import BytesIO
from multiprocessing.reduction import ForkingPickler

from .descriptors import Travelling, collecting, present
from .tracebacks import set_state

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeVar, Union

    Buffer = Union[bytes, bytearray, memoryview, pickle.PickleBuffer]
    T = TypeVar("T")

# Of exactly these types, reducers know nothing. A pickler that asks them costs 80 µs after a fork.
_ATOMS = frozenset((type(None), bool, int, float, str, bytes))

HAS_MEMFD = hasattr(os, "memfd_create")

# What is large, in bytes: a buffer that is kept out of its pickle, and a pickle that goes into a
# file. Below, a pipe takes less time (measured with bytes and NumPy arrays, Linux 6.18). Without
# files in memory nothing is large.
LARGE = 1 << 18 if HAS_MEMFD else sys.maxsize

# What a stream says of a buffer beside it that is read-only, and what says that it is any buffer.
_READ_ONLY = pickle.NEXT_BUFFER + pickle.READONLY_BUFFER
_WRITABLE = pickle.NEXT_BUFFER + pickle.BINPERSID


class Pickled:
    """A pickle: its stream, in parts, and the large buffers that were kept out of it.

    To a pickler it is the file to write to.
    """

    __slots__ = ("_read_only", "buffers", "descriptors", "size", "stream")

    pickler: type[ForkingPickler] = ForkingPickler

    def __init__(self) -> None:
        self.stream: list[bytes] = []
        self.size: int = 0  # of the stream, in bytes
        self.buffers: list[memoryview] = []
        self.descriptors: list[Travelling] = []  # to which the stream refers by their places
        self._read_only = 0  # how many of the buffers are

    def dump(self, value: object) -> None:
        """Pickle a value with the reducers that are registered with multiprocessing."""
        # typeshed lacks what ForkingPickler passes on.
        self.pickler(self, pickle.HIGHEST_PROTOCOL, True, self.keep_out).dump(value)  # type: ignore[call-arg]
        if self._read_only:
            self._make_writable()

    def _make_writable(self) -> None:
        """Have what arrives of read-only buffers be writable."""
        if sum(part.count(_READ_ONLY) for part in self.stream) == self._read_only:
            self.stream = [part.replace(_READ_ONLY, _WRITABLE) for part in self.stream]
        else:  # bytes of the values look the same, so the stream is read
            import pickletools

            whole = bytearray().join(self.stream)
            for opcode, _, position in pickletools.genops(bytes(whole)):
                if opcode.name == "READONLY_BUFFER":
                    assert position is not None, "it is that of bytes"
                    whole[position : position + 1] = pickle.BINPERSID
            self.stream = [bytes(whole)]
        if all(len(buffer) < LARGE for buffer in self.buffers):
            united = self.united()
            self.stream, self.size, self.buffers = united.stream, united.size, []

    def write(self, part: Union[bytes, memoryview]) -> None:
        # Memory that is no bytes object's may be the pickler's for the length of this call only.
        kept = part if type(part) is bytes else bytes(part)
        self.stream.append(kept)
        self.size += len(kept)

    def put_first(self, part: bytes) -> None:
        """Have the stream begin with this."""
        self.stream.insert(0, part)
        self.size += len(part)

    def keep_out(self, buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer that is large or read-only; True when it is to be in the stream."""
        view = buffer.raw()
        origin: object = view.obj
        if isinstance(origin, memoryview):
            origin = origin.obj
        # A buffer that was pickled from bytes arrives as bytes, not as a view.
        if type(origin) in (bytes, bytearray) or not (view.readonly or len(view) >= LARGE):
            return True
        self.buffers.append(view)
        self._read_only += view.readonly
        return False

    @property
    def is_large(self) -> bool:
        return self.size >= LARGE or bool(self.buffers)

    def united(self) -> Pickled:
        """The same with everything in the stream."""
        if not self.buffers:
            return self
        whole = Pickled()
        pickle.Pickler(whole, pickle.HIGHEST_PROTOCOL).dump(self)
        return whole

    def __reduce__(self) -> tuple[object, ...]:
        """A pickle of this is one of what this is the pickle of."""
        buffers = [pickle.PickleBuffer(buffer) for buffer in self.buffers]
        return load_united, (b"".join(self.stream), buffers)


def load_united(stream: bytes, buffers: Iterable[Union[bytes, bytearray]]) -> object:
    """What such a pickle holds."""
    return loads(stream, [bytearray(each) if type(each) is bytes else each for each in buffers])


class Unpickler(pickle.Unpickler):
    """For the streams of this module."""

    def persistent_load(self, pid: T) -> T:
        return pid  # a buffer, which is to be as it is


def loads(
    stream: Union[bytes, memoryview],
    buffers: Sequence[Buffer] = (),
    descriptors: Sequence[object] = (),
) -> Any:
    """The value of a stream, and of the buffers and descriptors beside it."""
    if descriptors:
        with present(descriptors):
            return loads(stream, buffers)
    if not buffers:
        return pickle.loads(stream)
    return Unpickler(BytesIO(stream), buffers=buffers).load()


_class_of: Any = type  # of anything, with attributes that checkers know nothing of


class _ErrorPickler(ForkingPickler):
    """Also has exceptions rebuilt that refuse attributes, as those of a frozen dataclass do."""

    def reducer_override(self, obj: Any) -> Any:
        kind: Any = _class_of(obj)
        if (
            not isinstance(obj, BaseException)
            or kind.__setattr__ is BaseException.__setattr__
            or kind.__setstate__ is not BaseException.__setstate__
            or kind in self.dispatch_table
        ):
            return NotImplemented
        reduced = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if isinstance(reduced, tuple) and len(reduced) == 3:
            return (*reduced, None, None, set_state)
        return reduced


class _PickledError(Pickled):
    __slots__ = ()

    pickler = _ErrorPickler


def pickled_error(error: BaseException) -> Pickled:
    """An exception that was raised, pickled."""
    whole = _PickledError()
    with collecting(whole.descriptors):
        whole.dump(error)
    return whole


def pickled(value: object) -> Pickled:
    """A value of whatever type, pickled."""
    whole = Pickled()
    if type(value) in _ATOMS and sys.getsizeof(value) < LARGE:
        whole.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    else:
        with collecting(whole.descriptors):
            whole.dump(value)
    return whole
