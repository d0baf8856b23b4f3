"""`Jobserver.drain`, and what is said of callbacks that cannot run any more."""

from __future__ import annotations

from typing import Callable, Optional

from . import hints
from .callbacks import is_calling, issue_due
from .engine import Engine
from .errors import Blocked
from .run import Group


def drain(engine: Engine, group: Group, deadline: Optional[float]) -> None:
    """Wait until all work of a group is done and its callbacks have run. Blocked at the deadline.

    Callbacks can run on other threads, too: those that observed the end of their Future first.
    They are waited for. Within a callback, only work is waited for: the callbacks that become due
    run when that one has returned, and waiting for those of another thread could be mutual.
    """

    def ready() -> bool:
        if group.due:
            return True
        return not group.tracked and (is_calling() or not group.observed)

    began = engine.clock()
    notify = engine.notify
    group.drains.append(notify)
    try:
        drained = _wait_and_issue(engine, group, ready, deadline)
    finally:
        group.drains.remove(notify)
    if not drained:
        raise Blocked(_unfinished(group, engine.clock() - began))


def _wait_and_issue(
    engine: Engine, group: Group, ready: Callable[[], bool], deadline: Optional[float]
) -> bool:
    """Whether nothing is left before the deadline."""
    # A function of its own: see `callbacks._issue_queue`.
    while engine.wait(ready, deadline):
        if not group.due:
            return True
        issue_due(group)
    return False


def _unfinished(group: Group, waited: float) -> str:
    running, calling = len(group.tracked), len({run for _, run in list(group.observed)})
    parts = [f"{hints.number(running, 'Future')} not done"] if running else []
    if calling:
        parts.append(f"callbacks of {hints.number(calling, 'Future')} under way")
    what = f": {' and '.join(parts)}" if parts else ""  # the last may have ended just now
    return f"not all was done in {hints.seconds(waited)}{what}"


def lost_callbacks(futures: int) -> str:
    """A sentence about Futures whose callbacks cannot run any more."""
    whose = "a Future" if futures == 1 else f"{futures} Futures"
    return (
        f"Callbacks of {whose} can no longer run, as the Jobserver is closed: call its drain() "
        "before the end of the `with` block, or keep each Future and wait for it"
    )
