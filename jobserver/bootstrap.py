"""What a forked worker does around its work: multiprocessing's bootstrap, less what costs.

A fork shares its parent's memory until either side writes to it; then the page is copied, and a
thousand pages are a millisecond. multiprocessing makes a process object and two pipes in the
parent, and in the child walks its registries and joins its children, whether or not there is
anything in them. Here a child becomes the same to all who ask multiprocessing within the work,
but goes only where there is something to do, and pidfds stand in for the pipes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable
from multiprocessing import process as mp_process
from multiprocessing import util
from typing import Any, Callable, Final, NoReturn

from . import signals

# What the standard library keeps for itself is not in typeshed.
_context: Final[Any] = sys.modules["multiprocessing.context"]
_process: Final[Any] = mp_process
_util: Final[Any] = util

# From 3.13 on, the exit functions that the work registers run at its end; before, they do not.
_HONOURS_ATEXIT: Final = sys.version_info >= (3, 13)


def fork(
    process: mp_process.BaseProcess, target: Callable[..., object], args: tuple[object, ...]
) -> int:
    """Fork a child that calls `target(*args)`; return its process id.

    `process`, which is never started, becomes the child's `current_process()`, and can serve any
    number of forks. The child is none of those that multiprocessing knows of: to reap it is up to
    the caller.
    """
    _util._flush_std_streams()
    number = next(_process._process_counter)
    parent = os.getpid()

    def live() -> int:
        try:
            status = _run(process, number, parent, target, args)
        finally:
            _end()
        return status

    return fork_into(live)


def is_original(process: mp_process.BaseProcess) -> bool:
    """Whether `fork` does what multiprocessing would, had it to start this process.

    A context may have a class of its own; and tools (coverage, for one) put their own bootstrap in
    the place of multiprocessing's, to be called in every child.
    """
    kind: Any = type(process)
    return kind is _context.ForkProcess and kind._bootstrap.__module__ == mp_process.__name__


def fork_into(child: Callable[[], int], blocked: Iterable[int] = ()) -> int:
    """Fork a process that calls `child` and exits with the status it returns; its process id.

    It starts with these signals blocked. No signal reaches it before `forks` has reset its
    handlers, which are the parent's until then.

    It shares this process's resource tracker, as multiprocessing's do. From 3.14 on, another child
    starts a tracker of its own, which at the child's end removes the shared memory that the work
    has made for others.

    Nothing that is raised takes it back into the code of its parent: signals wait until it is in
    `child`. To be called within `forks.handing_over`.
    """
    _warn_of_threads()
    mask = signals.block()
    try:
        pid = _fork_with_tracker()
        if pid == 0:
            _exit_with(child, blocked)
    finally:
        signals.set_mask(mask)
    return pid


def _fork_with_tracker() -> int:
    # No tracker runs before it is imported.
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent: Any = getattr(tracker, "_fork_intent", None)
    if intent is None:
        return os.fork()
    intent.preserve_fd = True
    try:
        return os.fork()
    finally:
        intent.preserve_fd = False


def _exit_with(child: Callable[[], int], blocked: Iterable[int]) -> NoReturn:
    status = 1
    try:
        try:
            signals.set_mask(blocked)
            status = child()
        finally:
            os._exit(status)
    finally:
        # Again, as an interrupt can come after the block and before its `finally`.
        os._exit(status)


def _warn_of_threads() -> None:
    """Before a fork: raise Python's warning of threads, where warnings are errors.

    From 3.15 on `os.fork` raises it then, but when the child runs already, unknown to everybody.
    """
    if sys.version_info < (3, 15):
        return
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        threads = threading.active_count()
    if threads > 1:
        warnings.warn(
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may lead to "
            "deadlocks in the child.",
            DeprecationWarning,
            stacklevel=3,
        )


def _become(process: Any, number: int, parent: int) -> None:
    """Be what `multiprocessing.current_process()` tells of."""
    was = _process._current_process
    process._identity = (*was._identity, number)
    process._config = was._config.copy()
    process._parent_pid = parent
    process._parent_name = was.name
    _process._process_counter = itertools.count(1)
    _process._children = set()
    _process._current_process = process
    _process._parent_process = _process._ParentProcess(was.name, parent, _sentinel_of(parent))
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # not in typeshed
    _context._force_start_method(process._start_method)
    _util._close_stdin()
    _util._finalizer_registry.clear()
    if _HONOURS_ATEXIT:
        atexit._clear()  # pyright: ignore[reportPrivateUsage]
        atexit.register(_finish)
    if _util._afterfork_registry:
        _util._run_after_forkers()


def _run(
    process: mp_process.BaseProcess,
    number: int,
    parent: int,
    target: Callable[..., object],
    args: tuple[object, ...],
) -> int:
    """Become the process and call the target: the exit status."""
    try:
        _become(process, number, parent)
        try:
            target(*args)
        finally:
            if not _HONOURS_ATEXIT:
                _finish()
    except SystemExit as leaving:
        code = leaving.code
        if code is None or isinstance(code, int):
            return (code or 0) & 0xFF  # as Python itself; `os._exit` refuses large ones
        sys.stderr.write(f"{code}\n")
        return 1
    except BaseException:
        sys.stderr.write(f"Process {process.name}:\n")
        traceback.print_exc()
        return 1
    return 0


def _end() -> None:
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # not in typeshed
        _util._flush_std_streams()
    finally:
        if _HONOURS_ATEXIT:
            atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]


def _finish() -> None:
    """Run multiprocessing's finalizers and end its children, if the work has left any."""
    if _util._finalizer_registry or _process._children:
        _util._exit_function()


def _sentinel_of(parent: int) -> int:
    """A descriptor that becomes readable when the parent ends: `parent_process().sentinel`."""
    try:
        pidfd = os.pidfd_open(parent)
        if os.getppid() == parent:
            return pidfd
        os.close(pidfd)  # of whoever has the number now
    except ProcessLookupError:
        pass
    read, write = os.pipe()
    os.close(write)
    return read
