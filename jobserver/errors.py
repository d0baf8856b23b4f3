"""The three exceptions of the library. They are final, and they survive pickling."""

from __future__ import annotations

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from typing import Optional, final
else:

    def final(cls):
        return cls


@final
class Blocked(Exception):
    """No slot could be had, or no result was there, before the timeout."""

    def __init_subclass__(cls) -> None:
        raise TypeError("Blocked is final: catch it, or raise an exception of your own from it")


@final
class CallbackRaised(Exception):
    """A callback registered with `Future.when_done` raised; `__cause__` is what it raised.

    `seqno` is the number that `when_done` returned for the callback.
    """

    def __init__(self, seqno: int) -> None:
        _check_seqno(seqno)
        super().__init__(seqno)  # args rebuild the exception when it is unpickled
        self.seqno = seqno

    def __init_subclass__(cls) -> None:
        raise TypeError(
            "CallbackRaised is final: catch it, or raise an exception of your own from it"
        )

    def __repr__(self) -> str:
        return f"CallbackRaised(seqno={self.seqno!r})"

    __str__ = __repr__


@final
class LostResult(Exception):
    """A worker ended without giving a result.

    `pid` is the worker's process id and `exitcode` what it ended with, as multiprocessing tells
    it: a negative number is the signal that killed it. Either is None when it could not be told.
    `raised` is the repr of the SystemExit or KeyboardInterrupt that ended the work, if one did.
    """

    raised: Optional[str] = None

    def __init__(self, pid: Optional[int] = None, exitcode: Optional[int] = None) -> None:
        super().__init__(pid, exitcode)  # args rebuild the exception when it is unpickled
        self.pid = pid
        self.exitcode = exitcode

    def __init_subclass__(cls, *, combined: bool = False) -> None:
        # The executor's one combination with BrokenProcessPool is the exception to the rule.
        if not combined:
            raise TypeError(
                "LostResult is final: catch it, or raise an exception of your own from it"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pid={self.pid!r}, exitcode={self.exitcode!r})"

    def __str__(self) -> str:
        who = "a worker" if self.pid is None else f"worker {self.pid}"
        if self.raised is not None:
            return f"{who} was ended by {self.raised}"
        if self.exitcode is None:
            return f"{who} ended without a result; how it ended could not be told"
        if self.exitcode >= 0:
            return f"{who} exited with status {self.exitcode} without giving a result"
        return f"{who} was killed by {_signal_name(-self.exitcode)}"


def _check_seqno(seqno: object) -> None:
    if isinstance(seqno, bool) or not isinstance(seqno, int):
        raise TypeError(f"seqno must be an int, not {seqno!r} of type {type(seqno).__qualname__}")


def _signal_name(signum: int) -> str:
    import signal

    try:
        name = signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
    if name == "SIGKILL":
        return "SIGKILL; out of memory is a common cause"
    return name
