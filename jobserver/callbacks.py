"""Running the callbacks of Futures: each once, in order, on the thread that observes completion.

Callbacks may register callbacks, here or on another Future that is done, to any number. A thread
that is inside a callback therefore never starts another one: it queues the run, and the outermost
`issue` of that thread goes on with it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Optional

from .errors import CallbackRaised
from .interrupts import shielded
from .run import Group, Run


class _Thread(threading.local):
    queue: Optional[deque[Run]] = None


_thread = _Thread()


def issue(run: Run) -> None:
    """Run the callbacks that are due on a run that is done.

    An Exception from one becomes CallbackRaised, a BaseException passes; the rest stay due.
    """
    if not run.callbacks:
        return
    if _thread.queue is not None:
        _thread.queue.append(run)
        return
    queue = _thread.queue = deque((run,))
    try:
        while queue:
            _issue_all(queue[0])
            queue.popleft()
    finally:
        _thread.queue = None
        for left in queue:
            if left.callbacks and left is not run:
                left.group.due.append(left)


def issue_due(group: Group) -> None:
    """Run all callbacks that are due in a group."""
    while group.due:
        try:
            run = group.due.popleft()
        except IndexError:
            return  # another thread was faster
        try:
            issue(run)
        except BaseException:
            if run.callbacks:
                group.due.appendleft(run)
            raise


def _issue_all(run: Run) -> None:
    me = threading.get_ident()
    while True:
        with shielded(), run.loading:
            # One thread at a time, or they would not run in order.
            if run.issuer not in (None, me) or not run.callbacks:
                return
            run.issuer = me
            seqno, callback = run.callbacks.popleft()
        try:
            callback()
        except CallbackRaised as error:
            raise CallbackRaised(seqno) from (error.__cause__ or error)
        except Exception as error:
            raise CallbackRaised(seqno) from error
        finally:
            run.issuer = None
