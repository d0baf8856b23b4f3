"""The signal handling with which every process of this package starts: that of a new program.

`exec` resets the signals that a program handles and keeps those that it ignores. A fork keeps all
handlers, and the wakeup descriptor, which is the parent's: a worker that gets SIGTERM would run the
program's handler, or tell the parent's event loop. So a forked process of this package does what
`exec` does. Neither touches the signal mask. A program that blocks signals, to wait for them in a
thread, would have workers that no signal ends; so workers unblock all signals.

Timers need nothing: a forked child does not inherit them.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Callable

# All that a program can block; none where there are no masks.
ALL = frozenset(map(int, signal.valid_signals()))
_HAS_MASKS = hasattr(signal, "pthread_sigmask")

# Those of which a helper is stopped and continued with the rest of its job.
_JOB_CONTROL = frozenset(
    getattr(signal, name)
    for name in ("SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT")
    if hasattr(signal, name)
)
# What a helper blocks. It ends when its socket closes. The signals of a whole process group
# (Ctrl-C, a service that is stopped) are for the program, which may have work left.
OF_HELPERS = ALL - _JOB_CONTROL

# With these a process is asked to end.
_REQUESTS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")
    if hasattr(signal, name)
)

# The signal module wraps the functions of `_signal` to turn numbers into enums. With all signals
# to look at, that takes a tenth of a millisecond at every fork.
_plain: dict[str, Any] = vars(sys.modules.get("_signal", signal))
_getsignal: Callable[[int], object] = _plain["getsignal"]
_setsignal: Callable[[int, object], object] = _plain["signal"]
_DEFAULT: object = _plain["SIG_DFL"]


def block() -> Iterable[int]:
    """Block all signals in this thread; return the mask there was."""
    return set_mask(ALL) if _HAS_MASKS else ()


def set_mask(mask: Iterable[int]) -> Iterable[int]:
    """Block these signals in this thread and no others; return the mask there was."""
    was: Iterable[int] = _plain["pthread_sigmask"](signal.SIG_SETMASK, mask)
    return was


def current_mask() -> Iterable[int]:
    """The signals that this thread blocks."""
    mask: Iterable[int] = _plain["pthread_sigmask"](signal.SIG_BLOCK, ())
    return mask


def unblock() -> None:
    """Let all signals through to this thread."""
    if _HAS_MASKS:
        set_mask(())


def reset_handlers() -> None:
    """In a forked child, with signals blocked: handle signals as a new program does.

    Handled signals get their default handling, and SIGINT that of Python. Ignored ones stay
    ignored. `faulthandler` keeps its fatal signals, and those on which it only dumps tracebacks;
    but a signal that asks the process to end is not spent on a dump.
    """
    faulthandler = sys.modules.get("faulthandler")
    if faulthandler is not None and hasattr(faulthandler, "unregister"):  # not on Windows
        for signum in _REQUESTS:
            faulthandler.unregister(signum)
    for signum in ALL:
        if callable(_getsignal(signum)):
            # Also where SIGINT has that handler already: this takes back `siginterrupt`, with which
            # the kernel repeats a system call before Python sees the signal.
            is_interrupt = signum == signal.SIGINT
            _setsignal(signum, signal.default_int_handler if is_interrupt else _DEFAULT)
    signal.set_wakeup_fd(-1)
