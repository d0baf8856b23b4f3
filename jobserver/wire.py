"""What crosses a result channel: one frame, which holds how the work ended.

    kind (1 byte) | descriptors (1) | length of text (8) | length of body (8) | text | body

`text` is the worker's traceback, UTF-8; `body` is the pickle of the value or of the exception.
They are apart so that the traceback survives a body that cannot be rebuilt. The frame is
delivered whole or, when the channel closes before its end, not at all.

The pickle of a large value is in a file instead (see `memory`), and `body` has the sizes of the
blocks in it. The file and the descriptors to which the value refers (`descriptors` counts them all,
the file is first) come with the first byte of the frame where the channel is a socket, and else
before it, with a byte through another one.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import struct
from io import BytesIO

from .pickles import Pickled, loads, pickled, pickled_error
from .tracebacks import (
    RemoteTraceback,
    explain,
    qualified_name,
    set_cause,
    shown,
    traceback_text,
)

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn, Optional

    from .pickles import Buffer

    # Kind, text, body and what is beside it, when several packets are one value: buffers, and the
    # descriptors, which are `Travelling` and then `Arrived`.
    Ending = tuple[int, bytes, bytes, Sequence[Buffer], Sequence[object]]

    # How many calls a chunk has, and how many seconds its launch, if known, and its work took.
    Timing = tuple[int, Optional[float], float]

    # How the calls of a chunk ended: the pickle of the list of values and, by their position, the
    # endings that are not in there.
    Chunk = tuple[bytes, dict[int, Ending], Timing]

HEADER = struct.Struct("!BBQQ")

VALUE = 0  # the work returned; body: the value
ERROR = 1  # the work raised an exception; body: it
EXIT = 2  # the work raised SystemExit or KeyboardInterrupt, which ended its process; body: it

# Flags beside these.
LAST = 0x80  # the worker answers nothing more
IN_FILE = 0x40  # the pickle is in a file

SIZE = struct.Struct("!Q")  # of a block in a file

_ONE_WRITE = 1 << 16  # bytes; below, header, text and body are joined to save system calls


class Frame:
    """A frame as it arrived. Its body is not unpickled before somebody wants it."""

    __slots__ = ("body", "buffers", "descriptors", "kind", "last", "text")

    def __init__(
        self,
        kind: int,
        text: str,
        body: memoryview,
        buffers: Sequence[Buffer] = (),
        descriptors: Sequence[object] = (),
        *,
        last: bool = True,
    ) -> None:
        self.kind: int = kind
        self.text: str = text
        self.body: memoryview = body
        # What is beside the pickle.
        self.buffers: Sequence[Buffer] = buffers
        self.descriptors: Sequence[object] = descriptors
        self.last: bool = last  # the worker answers nothing more, and leaves

    def load(self) -> object:
        """The value or the exception in the body, an exception with the worker's traceback.

        Raises RuntimeError when the body cannot be rebuilt here. KeyboardInterrupt passes: it is
        the user's, and the frame can be loaded again.
        """
        try:
            content: object = loads(self.body, self.buffers, self.descriptors)
            if self.kind != VALUE and not isinstance(content, BaseException):
                raise TypeError(f"{type(content).__qualname__} is not an exception")
        except KeyboardInterrupt:
            raise
        except BaseException as cause:
            error = RuntimeError(
                f"the {'result' if self.kind == VALUE else 'exception'} of the work is not "
                f"reconstructable in this process: {shown(cause)}"
            )
            if self.text:
                set_cause(cause, RemoteTraceback(self.text))
            raise error from cause
        if self.text and isinstance(content, BaseException):
            set_cause(content, RemoteTraceback(self.text))
        return content


class Packet:
    """A frame about to be sent."""

    __slots__ = ("kind", "pickled", "text")

    def __init__(self, kind: int, text: str, whole: Pickled) -> None:
        self.kind: int = kind
        self.text: bytes = text.encode("utf-8", "backslashreplace")
        self.pickled: Pickled = whole

    def ending(self) -> Ending:
        """As a part of another value."""
        whole = self.pickled
        beside = [pickle.PickleBuffer(buffer) for buffer in whole.buffers]
        return self.kind, self.text, b"".join(whole.stream), beside, whole.descriptors

    def send(self, fd: int, files: int = -1, *, last: bool = True) -> None:
        """Write the frame; wait for the reader as long as it takes.

        `files` is a socket for the file that a large value is in, and for the descriptors to which
        it refers; -1 if there is none.
        """
        kind = self.kind | (LAST if last else 0)
        whole = self.pickled
        fds = [descriptor.fd for descriptor in whole.descriptors]
        if whole.is_large:
            if files >= 0 and self._send_in_file(fd, files, kind, fds):
                return
            whole = whole.united()
        header = HEADER.pack(kind, len(fds), len(self.text), whole.size)
        parts = (header + self.text, *whole.stream)
        if whole.size < _ONE_WRITE:
            parts = (b"".join(parts),)
        first, *rest = parts
        if fds:
            try:
                first = _send_first(fd, files, fds, first)
            except ConnectionError:
                raise
            except OSError as cause:  # of the frame nothing was sent
                unsent = f"the work's answer refers to files that cannot be sent: {cause!r}"
                Packet(ERROR, str(self.text, "utf-8"), pickled_error(RuntimeError(unsent))).send(
                    fd, last=last
                )
                return
        for part in (first, *rest):
            _write(fd, part)

    def _send_in_file(self, fd: int, files: int, kind: int, fds: list[int]) -> bool:
        """Send the pickle in a file, if there can be one: whether that was so."""
        from . import memory  # most work has no need of it

        whole = self.pickled
        sizes = [*map(len, whole.buffers), whole.size]
        body = b"".join(map(SIZE.pack, sizes))
        header = HEADER.pack(kind | IN_FILE, 1 + len(fds), len(self.text), len(body))
        frame = header + self.text + body
        try:
            file = memory.open_unnamed()
        except OSError:
            return False
        try:
            memory.store(file, whole.buffers, whole.stream)
            frame = _send_first(fd, files, [file, *fds], frame)
        except ConnectionError:
            raise
        except OSError:  # there is a limit, on memory, the sizes of files, or those on their way
            return False
        finally:
            os.close(file)
        _write(fd, frame)
        return True


def _send_first(fd: int, files: int, fds: list[int], frame: bytes) -> bytes:
    """Send descriptors with the first bytes of a frame, or before it: what is left of the frame."""
    from . import memory  # most work has no need of it

    if files == fd:
        return frame[memory.send_files(files, fds, frame) :]
    if files < 0:
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    memory.send_files(files, fds, b"f")
    return frame


def _write(fd: int, content: bytes) -> None:
    sent = os.write(fd, content) if content else 0
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
    kind, text, body, buffers, descriptors = ending
    content = Frame(kind, str(text, "utf-8"), memoryview(body), buffers, descriptors).load()
    if kind != VALUE:
        assert isinstance(content, BaseException), "load has checked it"
        raise content
    return content


def pack_values(
    values: list[object], apart: dict[int, Ending], *, for_executor: bool = False
) -> bytes:
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
                apart[position] = pack_value(value, for_executor=for_executor).ending()
        return pickle.dumps([None] * len(values), pickle.HIGHEST_PROTOCOL)
    return buffer.getvalue()


class _PlainPickler(pickle.Pickler):
    """Pickles what is made of built-in types alone."""

    def reducer_override(self, value: object) -> NoReturn:
        raise TypeError(f"of another type: {type(value)}")


def ends_process(error: BaseException, *, for_executor: bool) -> bool:
    """Whether work that raises this ends its process. For an executor, as its peer, none does."""
    return not for_executor and isinstance(error, (SystemExit, KeyboardInterrupt))


def pack_value(value: object, *, for_executor: bool = False) -> Packet:
    """How the work ended that returned `value`."""
    try:
        return Packet(VALUE, "", pickled(value))
    except Exception as cause:
        hint = f"the work's result of type {qualified_name(value)} is not picklable"
        return _pack_unpicklable(ERROR, traceback_text(cause), cause, hint, for_executor)


def pack_error(error: BaseException, *, for_executor: bool = False) -> Packet:
    """How the work ended that raised `error`."""
    text = traceback_text(error)
    kind = EXIT if ends_process(error, for_executor=for_executor) else ERROR
    try:
        return Packet(kind, text, pickled_error(error))
    except Exception as cause:
        hint = f"the work's exception of type {qualified_name(error)} is not picklable"
        return _pack_unpicklable(kind, text, cause, hint, for_executor)


def _pack_unpicklable(
    kind: int, text: str, cause: Exception, hint: str, for_executor: bool
) -> Packet:
    """What stands for a value that cannot be pickled because of `cause`."""
    if for_executor:
        # As ProcessPoolExecutor has it: the pickling error itself, if that can be pickled.
        try:
            told = explain(cause, text, hint)
            return Packet(kind, told, pickled_error(cause))
        except Exception:
            pass
    return Packet(kind, text, pickled_error(RuntimeError(f"{hint}: {shown(cause)}")))
