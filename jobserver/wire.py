"""What crosses a result channel: one frame, which holds how the work ended.

    kind (1 byte) | length of text (8) | length of body (8) | text | body

`text` is the worker's traceback, UTF-8; `body` is the pickle of the value or of the exception.
They are apart so that the traceback survives a body that cannot be rebuilt. The frame is
delivered whole or, when the channel closes before its end, not at all.
"""

from __future__ import annotations

import os
import pickle
import struct
from io import BytesIO
from multiprocessing.reduction import ForkingPickler

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Optional

    Ending = tuple[int, bytes, bytes]  # kind, text and body of a packet, when several are one value

HEADER = struct.Struct("!BQQ")

VALUE = 0  # the work returned; body: the value
ERROR = 1  # the work raised an Exception; body: it
EXIT = 2  # the work raised what ends a process (SystemExit, KeyboardInterrupt); body: it

# Of exactly these types, reducers know nothing. A pickler that asks them costs 80 µs after a fork.
_ATOMS = frozenset((type(None), bool, int, float, str, bytes))

LAST = 0x80  # a flag beside these: the worker answers nothing more

_ONE_WRITE = 1 << 16  # bytes; below, header, text and body are joined to save system calls


class RemoteTraceback(Exception):
    """The worker's traceback as text: the `__cause__` of an exception that crossed a channel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Frame:
    """A frame as it arrived. Its body is not unpickled before somebody wants it."""

    __slots__ = ("body", "kind", "last", "text")

    def __init__(self, kind: int, text: str, body: memoryview, *, last: bool = True) -> None:
        self.kind: int = kind
        self.text: str = text
        self.body: memoryview = body
        self.last: bool = last  # the worker answers nothing more, and leaves

    def load(self) -> object:
        """The value or the exception in the body, an exception with the worker's traceback.

        Raises RuntimeError when the body cannot be rebuilt here. KeyboardInterrupt passes: it is
        the user's, and the frame can be loaded again.
        """
        try:
            content: object = pickle.loads(self.body)
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

    __slots__ = ("body", "kind", "text")

    def __init__(self, kind: int, text: str, body: memoryview) -> None:
        self.kind: int = kind
        self.text: bytes = text.encode("utf-8", "backslashreplace")
        self.body: memoryview = body

    def send(self, fd: int, *, last: bool = True) -> None:
        """Write the frame; wait for the reader as long as it takes."""
        header = HEADER.pack(self.kind | (LAST if last else 0), len(self.text), len(self.body))
        if len(self.body) < _ONE_WRITE:
            parts = [memoryview(b"".join((header, self.text, self.body)))]
        else:
            parts = [memoryview(header + self.text), self.body]
        for part in parts:
            sent = 0
            while sent < len(part):
                sent += os.write(fd, part[sent:])


def load_ending(ending: Ending) -> object:
    """The value in one of several endings that came in one frame; raises if it is an exception."""
    kind, text, body = ending
    content = Frame(kind, str(text, "utf-8"), memoryview(body)).load()
    if kind != VALUE:
        assert isinstance(content, BaseException), "load has checked it"
        raise content
    return content


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


def _dump(value: object) -> memoryview:
    if type(value) in _ATOMS:
        return memoryview(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    buffer = BytesIO()
    # The pickler of multiprocessing, so that reducers registered there are known here.
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getbuffer()


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
