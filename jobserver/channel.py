"""A result channel, as the parent has it: reads what is there, never waits."""

from __future__ import annotations

import os
from typing import Final, Optional, Union

from . import forks, wire
from .protocols import Closed

_FIRST: Final = 1 << 12  # bytes read at first, which is all of most frames
_READ_AT_ONCE: Final = 1 << 20  # bytes read before other channels get their turn


class PipeChannel:
    """A pipe from one worker, which carries a frame for each piece of work."""

    lasts: bool = False

    def __init__(self) -> None:
        self.reply: int
        self._fd, self.reply = forks.pipe()
        os.set_blocking(self._fd, False)  # this end's description is nobody else's
        self._start = b""  # of a frame, less than its header
        self._kind = self._text = self._filled = 0
        self._content: Optional[bytearray] = None  # of a frame that was not whole at first

    def close_reply(self) -> None:
        """Close the worker's end here, or its death would not close the channel."""
        forks.close(self.reply)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Union[wire.Frame, Closed, None]:
        """The frame once it is whole, CLOSED if there will be none, None if not yet known."""
        try:
            if self._content is None:
                data = os.read(self._fd, _FIRST)
                return self._begin(self._start + data) if data else Closed.CLOSED
            return self._go_on(self._content)
        except BlockingIOError:
            return None

    def _begin(self, data: bytes) -> Union[wire.Frame, Closed, None]:
        if len(data) < wire.HEADER.size:
            self._start = data
            return None
        self._start = b""
        kind, text, body = wire.HEADER.unpack_from(data)
        whole = memoryview(data)[wire.HEADER.size :]
        if len(whole) == text + body:
            return _frame(kind, text, whole)
        self._kind, self._text, self._filled = kind, text, len(whole)
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
        return _frame(self._kind, self._text, memoryview(content))

    def close(self) -> None:
        forks.close(self._fd)


def _frame(kind: int, text: int, content: memoryview) -> wire.Frame:
    last = bool(kind & wire.LAST)
    return wire.Frame(kind & ~wire.LAST, str(content[:text], "utf-8"), content[text:], last=last)
