"""`waiting()`: a thread says that it computes nothing, so the slot of its process may be lent.

The slot is lent at most once, however many threads wait. At the end of the outermost block of a
thread the slot has to be back, because the thread computes from then on: the thread blocks until
the work that runs on the slot has ended, or has a free slot of its own. `submit` without a timeout
does the same with the work that it starts on the slot of its process.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Optional

from .engine import Engine


class Waiting:
    """The context manager that `Jobserver.waiting` and `JobserverExecutor.waiting` return."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        engine = self._engine
        with engine.step:
            engine.waits.enter(threading.get_ident())
            engine.notify()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        engine = self._engine
        thread = threading.get_ident()
        with engine.step:
            outermost = engine.waits.leave(thread)
        if not outermost:
            return
        try:
            # An interrupt ends the program, which must not wait for work first.
            if kind is None or issubclass(kind, Exception):
                engine.wait(self._has_slot, None, for_slot=True)
        finally:
            with engine.step:
                engine.waits.left(thread)
                engine.notify()

    def _has_slot(self) -> bool:
        slots = self._engine.slots
        return slots.lent is None or slots.relieve(slots.lent)
