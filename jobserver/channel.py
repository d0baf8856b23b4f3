"""A result channel, as the parent has it: reads what is there, never waits."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from typing import Final, Optional, Union

from . import forks, memory, wire
from .descriptors import Arrived
from .protocols import Closed

_FIRST: Final = 1 << 12  # bytes read at first, which is all of most frames
_READ_AT_ONCE: Final = 1 << 20  # bytes read before other channels get their turn


class ResultChannel:
    """From one worker: carries a frame for each piece of work, and files for large results.

    A pipe, beside a socket through which the files come. Without one it is a socket itself, which
    can pass descriptors, too, but takes a microsecond longer each way: a fresh worker has no other.
    """

    lasts: bool = False

    def __init__(self, files: Optional[socket.socket] = None) -> None:
        self.reply: int
        self._files = files
        self._is_socket = files is None and hasattr(socket, "send_fds")
        if self._is_socket:
            ours, theirs = forks.socketpair()
            self._fd, self.reply = ours.detach(), theirs.detach()
        else:
            self._fd, self.reply = forks.pipe()
        os.set_blocking(self._fd, False)  # this end's description is nobody else's
        self._start = b""  # of a frame, less than its header
        self._kind = self._count = self._text = self._filled = 0
        self._content: Optional[bytearray] = None  # of a frame that was not whole at first
        self._received: list[int] = []  # descriptors that came with the frame

    def close_reply(self) -> None:
        """Close the worker's end here, or its death would not close the channel."""
        forks.close(self.reply)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Union[wire.Frame, Closed, None]:
        """The frame once it is whole, CLOSED if there will be none, None if not yet known."""
        try:
            if self._content is None:
                data = self._read_with_file() if self._is_socket else os.read(self._fd, _FIRST)
                return self._begin(self._start + data) if data else Closed.CLOSED
            return self._go_on(self._content)
        except BlockingIOError:
            return None

    def _begin(self, data: bytes) -> Union[wire.Frame, Closed, None]:
        if len(data) < wire.HEADER.size:
            self._start = data
            return None
        self._start = b""
        kind, count, text, body = wire.HEADER.unpack_from(data)
        whole = memoryview(data)[wire.HEADER.size :]
        if len(whole) == text + body:
            return self._frame(kind, count, text, whole)
        self._kind, self._count, self._text, self._filled = kind, count, text, len(whole)
        self._content = content = bytearray(text + body)
        content[: len(whole)] = whole
        return self._go_on(content)

    def _go_on(self, content: bytearray) -> Union[wire.Frame, Closed, None]:
        most = min(len(content), self._filled + _READ_AT_ONCE)
        while self._filled < most:
            with memoryview(content) as whole, whole[self._filled :] as rest:
                count = os.readv(self._fd, [rest])
            if count == 0:
                return Closed.CLOSED
            self._filled += count
        if self._filled < len(content):
            return None
        self._content = None
        return self._frame(self._kind, self._count, self._text, memoryview(content))

    def _read_with_file(self) -> bytes:
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._fd)
        try:
            own.settimeout(0)  # whatever `socket.setdefaulttimeout` has it be
            return self._receive(own, _FIRST)
        finally:
            own.detach()

    def _receive(self, over: socket.socket, most: int) -> bytes:
        with forks.opening:
            data, files = memory.receive_files(over, most)
            self._received += map(forks.private, files)
        return data

    def _frame(self, kind: int, count: int, length: int, content: memoryview) -> wire.Frame:
        last = bool(kind & wire.LAST)
        in_file = bool(kind & wire.IN_FILE)
        text, body = str(content[:length], "utf-8"), content[length:]
        if not count:
            return wire.Frame(kind & ~wire.LAST, text, body, last=last)
        buffers: list[memoryview] = []
        try:
            self._await_descriptors(count, "a large result" if in_file else "a result")
            if in_file:
                sizes = [size for (size,) in wire.SIZE.iter_unpack(body)]
                *buffers, body = memory.blocks(self._received[0], sizes)
            descriptors = [Arrived(forks.publish(fd)) for fd in self._received[in_file:]]
            del self._received[in_file:]
        except (OSError, MemoryError) as error:
            # That is what becomes of this one result.
            return wire.Frame(wire.ERROR, text, memoryview(pickle.dumps(error)), last=last)
        finally:
            self._close_received()
        kind &= ~(wire.LAST | wire.IN_FILE)
        return wire.Frame(kind, text, body, buffers, descriptors, last=last)

    def _await_descriptors(self, count: int, what: str) -> None:
        if self._files is not None:
            self._receive(self._files, 1)  # they were sent before the frame
        had = len(self._received)
        if had != count:
            reason = os.strerror(errno.EMFILE)
            raise OSError(
                errno.EMFILE,
                f"{what} needs {count} descriptor{'s'[: count > 1]} here, and had {had}: {reason}",
            )

    def close(self) -> None:
        self._close_received()
        forks.close(self._fd)

    def _close_received(self) -> None:
        while self._received:
            forks.close(self._received.pop())
