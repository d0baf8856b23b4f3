"""What crosses a result channel: one frame, which holds how the work ended.

    kind (1 byte) | length of text (8) | length of body (8) | text | body

`text` is the worker's traceback, UTF-8; `body` is the pickle of the value or of the exception.
They are apart so that the traceback survives a body that cannot be rebuilt. The frame is
delivered whole or, when the channel closes before its end, not at all.

The pickle of a large value is in a file instead (see `memory`), and `body` has the sizes of the
blocks in it. The file comes with the first byte of the frame where the channel is a socket, and
else before it, with a byte through another one.
"""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import sys
from io import BytesIO
from multiprocessing.reduction import ForkingPickler

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import NoReturn, Optional, Union

    # Kind, text, body and what is beside it, when several packets are one value.
    Ending = tuple[int, bytes, bytes, Iterable[Union[pickle.PickleBuffer, memoryview]]]

    # How many calls a chunk has, and how many seconds its launch, if known, and its work took.
    Timing = tuple[int, Optional[float], float]

    # How the calls of a chunk ended: the pickle of the list of values and, by their position, the
    # endings that are not in there.
    Chunk = tuple[bytes, dict[int, Ending], Timing]

HEADER = struct.Struct("!BQQ")

VALUE = 0  # the work returned; body: the value
ERROR = 1  # the work raised an Exception; body: it
EXIT = 2  # the work raised what ends a process (SystemExit, KeyboardInterrupt); body: it

# Of exactly these types, reducers know nothing. A pickler that asks them costs 80 µs after a fork.
_ATOMS = frozenset((type(None), bool, int, float, str, bytes))

# Flags beside these.
LAST = 0x80  # the worker answers nothing more
IN_FILE = 0x40  # the pickle is in a file

SIZE = struct.Struct("!Q")  # of a block in a file

HAS_MEMFD = hasattr(os, "memfd_create")

# What is large, in bytes: a buffer that is kept out of its pickle, and a pickle that goes into a
# file. Below, a pipe takes less time (measured with bytes and NumPy arrays, Linux 6.18). Without
# files in memory nothing is large.
LARGE = 1 << 18 if HAS_MEMFD else sys.maxsize

_ONE_WRITE = 1 << 16  # bytes; below, header, text and body are joined to save system calls


class RemoteTraceback(Exception):
    """The worker's traceback as text: the `__cause__` of an exception that crossed a channel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Pickled:
    """A pickle: its stream, in parts, and the large buffers that were kept out of it.

    To a pickler it is the file to write to.
    """

    __slots__ = ("buffers", "size", "stream")

    pickler: type[ForkingPickler] = ForkingPickler

    def __init__(self) -> None:
        self.stream: list[bytes] = []
        self.size: int = 0  # of the stream, in bytes
        self.buffers: list[memoryview] = []

    def dump(self, value: object) -> None:
        """Pickle a value with the reducers that are registered with multiprocessing."""
        # typeshed lacks what ForkingPickler passes on.
        self.pickler(self, pickle.HIGHEST_PROTOCOL, True, self.keep_out).dump(value)  # type: ignore[call-arg]

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
        """Keep a buffer that is large; True when it is to be in the stream."""
        view = buffer.raw()
        # Whoever pickles bytes as a buffer gets bytes, and no view of them.
        if len(view) < LARGE or type(view.obj) in (bytes, bytearray):
            return True
        self.buffers.append(view)
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
    return pickle.loads(stream, buffers=buffers)


class Frame:
    """A frame as it arrived. Its body is not unpickled before somebody wants it."""

    __slots__ = ("body", "buffers", "kind", "last", "text")

    def __init__(
        self,
        kind: int,
        text: str,
        body: memoryview,
        buffers: Iterable[Union[pickle.PickleBuffer, memoryview]] = (),
        *,
        last: bool = True,
    ) -> None:
        self.kind: int = kind
        self.text: str = text
        self.body: memoryview = body
        # What is beside the pickle.
        self.buffers: Iterable[Union[pickle.PickleBuffer, memoryview]] = buffers
        self.last: bool = last  # the worker answers nothing more, and leaves

    def load(self) -> object:
        """The value or the exception in the body, an exception with the worker's traceback.

        Raises RuntimeError when the body cannot be rebuilt here. KeyboardInterrupt passes: it is
        the user's, and the frame can be loaded again.
        """
        try:
            content: object = pickle.loads(self.body, buffers=self.buffers)
            if self.kind != VALUE and not isinstance(content, BaseException):
                raise TypeError(f"{type(content).__qualname__} is not an exception")
        except KeyboardInterrupt:
            raise
        except BaseException as cause:
            error = RuntimeError(
                f"the {'result' if self.kind == VALUE else 'exception'} of the work is not "
                f"reconstructable in this process: {cause!r}"
            )
            if self.text:
                cause.__cause__ = RemoteTraceback(self.text)
            raise error from cause
        if self.text and isinstance(content, BaseException):
            content.__cause__ = RemoteTraceback(self.text)
        return content


class Packet:
    """A frame about to be sent."""

    __slots__ = ("kind", "pickled", "text")

    def __init__(self, kind: int, text: str, pickled: Pickled) -> None:
        self.kind: int = kind
        self.text: bytes = text.encode("utf-8", "backslashreplace")
        self.pickled: Pickled = pickled

    def ending(self) -> Ending:
        """As a part of another value."""
        pickled = self.pickled
        beside = [pickle.PickleBuffer(buffer) for buffer in pickled.buffers]
        return self.kind, self.text, b"".join(pickled.stream), beside

    def send(self, fd: int, files: int = -1, *, last: bool = True) -> None:
        """Write the frame; wait for the reader as long as it takes.

        `files` is a socket for the file that a large value is in; -1 if there is none.
        """
        kind = self.kind | (LAST if last else 0)
        pickled = self.pickled
        if pickled.is_large:
            if files >= 0 and self._send_in_file(fd, files, kind):
                return
            pickled = pickled.united()
        parts = (HEADER.pack(kind, len(self.text), pickled.size) + self.text, *pickled.stream)
        if pickled.size < _ONE_WRITE:
            parts = (b"".join(parts),)
        for part in parts:
            _write(fd, part)

    def _send_in_file(self, fd: int, files: int, kind: int) -> bool:
        """Send the pickle in a file, if there can be one: whether that was so."""
        from . import memory  # most work has no need of it

        pickled = self.pickled
        sizes = [*map(len, pickled.buffers), pickled.size]
        body = b"".join(map(SIZE.pack, sizes))
        frame = HEADER.pack(kind | IN_FILE, len(self.text), len(body)) + self.text + body
        try:
            file = memory.open_unnamed()
        except OSError:
            return False
        try:
            memory.store(file, pickled.buffers, pickled.stream)
            if files == fd:
                frame = frame[memory.send_file(files, file, frame) :]
            else:
                memory.send_file(files, file, b"f")
        except ConnectionError:
            raise
        except OSError:  # there is a limit, on memory, the sizes of files, or those on their way
            return False
        finally:
            os.close(file)
        if frame:
            _write(fd, frame)
        return True


def _write(fd: int, content: bytes) -> None:
    sent = os.write(fd, content)
    while sent < len(content):
        sent += os.write(fd, memoryview(content)[sent:])


class Endings:
    """How the calls of a chunk ended, one after another. Keeps none that was taken."""

    __slots__ = ("_apart", "_values")

    def __init__(self, together: bytes, apart: dict[int, Ending]) -> None:
        # Both with the first one last, where it is taken from.
        self._values: list[object] = pickle.loads(together)
        self._values.reverse()
        last = len(self._values) - 1
        self._apart = sorted((last - position, ending) for position, ending in apart.items())

    def __len__(self) -> int:
        return len(self._values)

    def take(self) -> object:
        """The value of the next call; raises if that is an exception."""
        value = self._values.pop()
        if not self._apart or self._apart[-1][0] != len(self._values):
            return value
        _, ending = self._apart.pop()
        return load_ending(ending)

    def take_together(self) -> Iterator[object]:
        """The values of the next calls, as many as came together; without Python's own steps."""
        count = len(self._values)
        if self._apart:
            count -= self._apart[-1][0] + 1
        return map(self._values.pop, itertools.repeat(-1, count))


def load_ending(ending: Ending) -> object:
    """The value in one of several endings that came in one frame; raises if it is an exception."""
    kind, text, body, buffers = ending
    content = Frame(kind, str(text, "utf-8"), memoryview(body), buffers).load()
    if kind != VALUE:
        assert isinstance(content, BaseException), "load has checked it"
        raise content
    return content


def pack_values(values: list[object], apart: dict[int, Ending]) -> bytes:
    """The values of several calls, but for those positions that have an ending `apart`.

    What is not made of built-in types alone may not be picklable, or may not be rebuilt. So that
    this costs no other value, each is then put `apart`.
    """
    buffer = BytesIO()
    try:
        _PlainPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(values)
    except Exception:
        for position, value in enumerate(values):
            if position not in apart:
                apart[position] = pack_value(value).ending()
        return pickle.dumps([None] * len(values), pickle.HIGHEST_PROTOCOL)
    return buffer.getvalue()


class _PlainPickler(pickle.Pickler):
    """Pickles what is made of built-in types alone."""

    def reducer_override(self, value: object) -> NoReturn:
        raise TypeError(f"of another type: {type(value)}")


def pack_value(value: object) -> Packet:
    """How the work ended that returned `value`."""
    try:
        return Packet(VALUE, "", _dump(value))
    except Exception as cause:
        name = _qualified_name(value)
        return pack_error(
            RuntimeError(f"the work's result of type {name} is not picklable: {cause!r}"), cause
        )


def pack_error(error: BaseException, origin: Optional[BaseException] = None) -> Packet:
    """How the work ended that raised `error`; `origin` has the traceback, if another has."""
    text = _traceback_text(error if origin is None else origin)
    kind = ERROR if isinstance(error, Exception) else EXIT
    try:
        return Packet(kind, text, _dump(error))
    except Exception as cause:
        name = _qualified_name(error)
        substitute = RuntimeError(
            f"the work's exception of type {name} is not picklable: {cause!r}"
        )
        return Packet(kind, text, _dump(substitute))


def _dump(value: object) -> Pickled:
    pickled = Pickled()
    if type(value) in _ATOMS and sys.getsizeof(value) < LARGE:
        pickled.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    else:
        pickled.dump(value)
    return pickled


def _qualified_name(value: object) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return repr(kind.__qualname__)
    return repr(f"{kind.__module__}.{kind.__qualname__}")


def _traceback_text(error: BaseException) -> str:
    """The traceback, causes and all, without the frames of this package above the work."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:  # an exception whose own __str__ or __repr__ raises
        return f"{_qualified_name(error)} (its traceback cannot be formatted: {broken!r})\n"


def _is_ours(trace: TracebackType) -> bool:
    name: object = trace.tb_frame.f_globals.get("__package__")
    return name == __package__
