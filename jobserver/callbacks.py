"""Running the callbacks of Futures: each once, in order, on the thread that observes completion.

Callbacks may register callbacks, here or on another Future that is done, to any number. A thread
that is inside a callback therefore never starts another one: it queues the run, and the outermost
`issue` of that thread goes on with it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Callable, Optional

from .errors import CallbackRaised
from .interrupts import shielded
from .run import Callback, Group, Run
from .tracebacks import add_note, shown


class _Thread(threading.local):
    queue: Optional[deque[Run]] = None


_thread = _Thread()

_call: Callable[[Callback], object] = Callback.__call__


def issue(run: Run) -> None:
    """Run the callbacks that are due on a run that is done.

    An Exception from one becomes CallbackRaised, a BaseException passes; the rest stay due.
    """
    if not run.callbacks:
        return
    if _thread.queue is not None:
        _enqueue(_thread.queue, run)
        return
    queue: deque[Run] = deque()
    try:
        try:
            _thread.queue = queue
            _enqueue(queue, run)
            _issue_queue(queue)
        finally:
            _leave(queue, run)
    finally:
        # Again, as an interrupt can come after the block and before its `finally`.
        _leave(queue, run)


def _issue_queue(queue: deque[Run]) -> None:
    # A function of its own, as is `_issue_claimed`. In CPython 3.13, the jump back of a loop that
    # ends a `try` is outside it: an interrupt there would pass its `finally` by.
    while queue:
        _issue_all(queue[0])
        _dequeue(queue)


def is_calling() -> bool:
    """Whether this thread is inside a callback."""
    return _thread.queue is not None


def issue_due(group: Group) -> None:
    """Run all callbacks that are due in a group."""
    while group.due:
        try:
            run = group.due.popleft()
        except IndexError:
            return  # another thread was faster
        issue(run)


def _enqueue(queue: deque[Run], run: Run) -> None:
    """Have this thread run the callbacks of a run, after those that it has already."""
    key = threading.get_ident(), run
    with shielded():
        if key not in run.group.observed:
            run.group.observed.add(key)
            queue.append(run)


def _dequeue(queue: deque[Run]) -> None:
    with shielded():
        _forget(queue.popleft())


def _leave(queue: deque[Run], first: Run) -> None:
    """This thread runs no more callbacks; those that are left become due again."""
    with shielded():
        _thread.queue = None
        while queue:
            left = queue[0]
            due = left.group.due
            if left.callbacks and left is not first:
                due.append(left)
            elif left.callbacks and left not in due:
                # `issue_due` took it off, perhaps of another thread, which left it to this one.
                due.appendleft(left)
            _dequeue(queue)


def _forget(run: Run) -> None:
    group = run.group
    group.observed.discard((threading.get_ident(), run))
    for notify in list(group.drains):
        notify()


def _issue_all(run: Run) -> None:
    """Run the callbacks of a run until none is left, or until one raises.

    One thread has the run meanwhile, and runs those that others register as well. Others do not
    wait for it: the Future was done before, and a callback may wait for one of those threads.
    """
    while run.callbacks:
        try:
            try:
                if not _claim(run):
                    return
                _issue_claimed(run)
            finally:
                _release(run)
        finally:
            # Again, as an interrupt can come after the block and before its `finally`.
            _release(run)


def _issue_claimed(run: Run) -> None:
    while run.callbacks:
        _issue_one(run)


def _issue_one(run: Run) -> None:
    callback = run.callbacks[0]
    try:
        # In one step of C's, so that an interrupt finds it queued or begun.
        next(map(_call, iter(run.callbacks.popleft, None)))
    except CallbackRaised as error:
        raise _raised(run, callback, error) from (error.__cause__ or error)
    except Exception as error:
        raise _raised(run, callback) from error
    finally:
        del callback  # an error's traceback refers to this frame


def _raised(run: Run, callback: Callback, inner: Optional[CallbackRaised] = None) -> CallbackRaised:
    """What tells of a callback; with the notes of one that it has met itself."""
    raised = CallbackRaised(callback.seqno)
    for note in getattr(inner, "__notes__", ()):
        add_note(raised, note)
    add_note(
        raised,
        f"raised by callback {callback.seqno}, {shown(callback.func)}, "
        f"of the Future of worker {run.worker.pid}",
    )
    return raised


def _claim(run: Run) -> bool:
    """Become the one thread that runs the callbacks.

    That thread looks for more callbacks once it has let go.
    """
    with shielded():
        if not run.callbacks or not run.issuing.acquire(blocking=False):
            return False
        run.issuer = threading.get_ident()
        return True


def _release(run: Run) -> None:
    with shielded():
        if run.issuer == threading.get_ident():
            run.issuer = None
            run.issuing.release()


def _forget_in_child() -> None:
    """A child that was forked within a callback is not inside it."""
    _thread.queue = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
