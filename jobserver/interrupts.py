"""Steps that a signal handler's exception must not tear apart.

KeyboardInterrupt is raised by a Python signal handler between any two bytecodes of the main
thread. A step such as "read the token and remember it" is wrapped in `shielded()`: signals that
arrive meanwhile are noted, and their handlers run, with whatever they raise, at its end.

Only what returns soon is shielded; nothing that may wait is.

A known limit: after a shield, such a signal interrupts system calls again, though the program had
`signal.siginterrupt(signum, False)`. `signal.signal` resets that, Python has no way to ask for it,
and setting it is one more system call. Python's own calls are repeated anyway (PEP 475).
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Callable, Optional

# The signals on which programs commonly hang a handler that raises.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP")
    if hasattr(signal, name)
)

_Handler = Callable[[int, Optional[FrameType]], object]

# The signal module wraps the functions of `_signal` to turn numbers into enums, which takes ten
# times as long as they do.
_plain = vars(sys.modules.get("_signal", signal))
_getsignal: Callable[[int], object] = _plain["getsignal"]
_setsignal: Callable[[int, _Handler], object] = _plain["signal"]

_main_thread = threading.main_thread().ident

_active: Optional[shielded] = None  # the main thread's; other threads run no handlers


class shielded:  # noqa: N801 - used as a statement: `with shielded():`
    """Context manager: the main thread's signal handlers run at its end, not within."""

    __slots__ = ("_noted", "_saved")

    def __init__(self) -> None:
        self._saved: list[tuple[int, _Handler]] = []
        self._noted: list[tuple[int, Optional[FrameType]]] = []

    def __enter__(self) -> None:
        global _active
        if not unshielded():
            return
        try:
            for signum in SIGNALS:
                handler = _getsignal(signum)
                if callable(handler):
                    self._saved.append((signum, handler))
                    _setsignal(signum, self._note)
            _active = self
        except ValueError:  # a subinterpreter: it gets no signals
            self._saved.clear()
        except BaseException:
            self.restore()
            raise

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        global _active
        if _active is not self:
            return
        handlers = dict(self._saved)
        _active = None
        self.restore()
        for signum, frame in self._noted:
            handlers[signum](signum, frame)

    def _note(self, signum: int, frame: Optional[FrameType]) -> None:
        self._noted.append((signum, frame))

    def restore(self) -> None:
        """Install the handlers that were there before."""
        # SIGINT last; and should a restored handler raise at once, the others still come back.
        try:
            self._restore_each()
        finally:
            if self._saved:
                self.restore()

    def _restore_each(self) -> None:
        # A function of its own: see `callbacks._issue_queue`.
        while self._saved:
            signum, handler = self._saved[-1]
            _setsignal(signum, handler)
            self._saved.pop()


def unshielded() -> bool:
    """Whether a signal handler may now run, in this thread, between any two steps."""
    return _active is None and threading.get_ident() == _main_thread


def forget_in_child() -> None:
    """Restore the program's own handlers in a forked child; `forks` calls this."""
    global _active, _main_thread
    _main_thread = threading.get_ident()
    active, _active = _active, None
    if active is not None:
        active.restore()
