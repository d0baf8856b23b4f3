"""A command that stands in for this program: signals reach it, and what ends it ends this.

Signals that come before the command has been started end the wait for its slot. From then on they
are the command's, and this program waits for it to end.

A terminal sends its signals to the whole job of a shell, so the command has them already. The
kernel says in siginfo whether a signal came from there. Only `sigwaitinfo` hands that out, and only
for blocked signals. A command inherits what is blocked, so they are blocked once it has started.

If the command ends because of such a signal, this program dies by the same one after it has cleaned
up. A shell stops a loop or a script only if it sees that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Final, NoReturn, Optional

from . import fifos

# By default a program ends on these. Those that stop and continue a program come to a whole job of
# a shell, and so to the command as well.
_PASSED_ON: Final = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
# By keys, to the whole job. (Of a terminal that has gone, its session's leader alone is told.)
_OF_TERMINALS: Final = (signal.SIGINT, getattr(signal, "SIGQUIT", None))
_KILLED: Final = 128  # plus the signal, as shells have it


class Signalled(KeyboardInterrupt):
    """A signal has come before there was a command that it could be passed on to."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Those that come to this program, within a `passing_on` block."""

    def __init__(self) -> None:
        self._early: list[int] = []
        self._holds = False
        self._caught = {
            signal.Signals(getattr(signal, name))
            for name in _PASSED_ON
            # What this program ignores, the command ignores as well.
            if hasattr(signal, name)
            and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN
        }

    def host(self, command: Sequence[str], env: dict[str, str], pass_fds: Sequence[int]) -> int:
        """Run the command: its exit status; minus a signal if this program is to die by it.

        128 plus the signal if one killed it that this program has not had. OSError if it cannot be
        started.
        """
        self._holds = True
        process = subprocess.Popen(command, env=env, pass_fds=pass_fds)
        had = self._wait(process)
        status = process.returncode
        ended_by = -status if status < 0 else status - _KILLED  # a shell says so of its command
        if ended_by in had:
            return -ended_by
        return status if status >= 0 else _KILLED - status

    def _wait(self, process: subprocess.Popen[bytes]) -> set[int]:
        """Wait until the process has ended; the signals that came meanwhile."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._caught, signal.SIGCHLD})
        had = set(self._early)
        for signum in self._early:
            process.send_signal(signum)
        while process.poll() is None:
            told = signal.sigwaitinfo({*self._caught, signal.SIGCHLD})
            if told.si_signo != signal.SIGCHLD:
                had.add(told.si_signo)
                from_terminal = told.si_code > 0 and told.si_signo in _OF_TERMINALS
                if not from_terminal:
                    process.send_signal(told.si_signo)
        return had

    @contextlib.contextmanager
    def passing_on(self) -> Generator[None]:
        """Have signals raise `Signalled`, or pass them on to the command that is hosted within."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        before = {signum: signal.signal(signum, self._note) for signum in self._caught}
        # Where this is ignored, the kernel keeps nobody's exit status.
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _note(self, signum: int, frame: Optional[FrameType]) -> None:  # noqa: ARG002
        if not self._holds:
            raise Signalled(signum)
        self._early.append(signum)


def die_by(signum: int) -> NoReturn:
    """End this program by a signal, after what it does at exit."""
    fifos.leave()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the crash is not ours
    signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
    os.kill(os.getpid(), signum)
    sys.exit(_KILLED + signum)
