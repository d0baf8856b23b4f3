"""A result channel, as the parent has it: reads what is there, never waits."""

from __future__ import annotations

import os
from typing import Final, Optional, Union

from . import forks, wire
from .protocols import Closed

_READ_AT_ONCE: Final = 1 << 20  # bytes read before other channels get their turn


class PipeChannel:
    """A pipe from one worker, which carries a frame for each piece of work."""

    def __init__(self) -> None:
        self.reply: int
        self._fd, self.reply = forks.pipe()
        os.set_blocking(self._fd, False)  # this end's description is nobody else's
        self._header = bytearray(wire.HEADER.size)
        self._content: Optional[bytearray] = None
        self._filled = 0

    def close_reply(self) -> None:
        """Close the worker's end here, or its death would not close the channel."""
        forks.close(self.reply)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Union[wire.Frame, Closed, None]:
        """The frame once it is whole, CLOSED if there will be none, None if not yet known."""
        budget = _READ_AT_ONCE
        while budget > 0:
            target = self._header if self._content is None else self._content
            if self._filled < len(target):
                try:
                    with memoryview(target) as whole, whole[self._filled :] as rest:
                        count = os.readv(self._fd, [rest])
                except BlockingIOError:
                    return None
                if count == 0:
                    return Closed.CLOSED
                self._filled += count
                budget -= count
            elif self._content is None:
                _, text, body = wire.HEADER.unpack(self._header)
                self._content = bytearray(text + body)
                self._filled = 0
            else:
                kind, text, _ = wire.HEADER.unpack(self._header)
                view = memoryview(self._content)
                self._content = None
                self._filled = 0
                kind, last = kind & ~wire.LAST, bool(kind & wire.LAST)
                return wire.Frame(kind, str(view[:text], "utf-8"), view[text:], last=last)
        return None

    def close(self) -> None:
        forks.close(self._fd)
