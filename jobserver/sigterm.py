"""What a process that has slots of make's does on SIGTERM, lest they go to the grave with it.

By default SIGTERM ends a process between any two instructions, and its workers go on without it.
Where that is so, and only there, a process that has joined a jobserver has this handler: it passes
SIGTERM on to its workers, as make does, gives back their slots as they end, and then is killed by
SIGTERM after all. A second one kills it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import weakref
from types import FrameType
from typing import Optional

from .engine import Engine
from .joined import JoinedPool

_pools: weakref.WeakKeyDictionary[Engine, JoinedPool] = weakref.WeakKeyDictionary()


def watch(engine: Engine, pool: JoinedPool) -> None:
    """Have SIGTERM wait for the slots that this engine has of the pool."""
    _pools[engine] = pool
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # only the main thread can
            signal.signal(signal.SIGTERM, _terminate)


def _terminate(signum: int, frame: Optional[FrameType]) -> None:  # noqa: ARG001
    signal.signal(signum, signal.SIG_DFL)
    for engine, pool in list(_pools.items()):
        pool.retire()
        engine.terminate(signum)
    os.kill(os.getpid(), signum)


def _forget_in_child() -> None:
    """A forked child has no slots, and ends as ever; should it take some, it is told to `watch`."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
