"""Slots for any command, from the command line.

    python -m jobserver -j 8 -- make -C kernel
    python -m jobserver status

The first runs a command in which make, ninja, cargo and programs that use this package share so
many slots; without -j those of the jobserver that this runs in, or as many as there are CPUs. The
second says what jobserver there is, and what is wrong if there should be one.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Callable, Final, NoReturn, Optional

from . import sharing
from .make import NoJobserver
from .server import Jobserver, share

_PAUSE: Final = 1.0  # seconds between looks at the load or the memory
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Those on which a program would end. The ones that stop and continue a program come to a whole job
# of a shell, and so to the command as well.
_PASSED_ON: Final = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
_OF_TERMINALS: Final = ("SIGINT", "SIGQUIT")  # which the command has from there, too

# As shells have it.
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
_KILLED: Final = 128  # plus the signal


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run it; the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == ["status"]:
        return _status()
    command: list[str] = options.command[options.command[:1] == ["--"] :]
    if not command:
        _parser().error("a command is needed, or status")
    try:
        jobserver = Jobserver(slots=options.jobs)
    except ValueError as error:
        _parser().error(str(error))
    gates = [
        *([_below_load(options.load)] if options.load is not None else []),
        *([_above_memory(options.memory)] if options.memory is not None else []),
    ]
    if gates:
        jobserver = jobserver.replace_sleep(lambda: max(gate() for gate in gates) or None)
    with jobserver:
        status = _run(jobserver, command, options.style)
        recovered = share(jobserver)[0].engine.slots.recovered
    if options.verbose:
        _say(f"{recovered} slots recovered")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobserver",
        usage="%(prog)s [options] [--] command ... | status",
        description="Run a command whose makes, ninjas, cargos and Pythons share slots.",
        epilog="status: say what jobserver there is here, and what is wrong with it.",
    )
    add = parser.add_argument
    add("-j", "--jobs", type=int, metavar="N", help="slots (default: the outer make's, or CPUs)")
    add("--style", choices=sharing.STYLES, default="auto", help="how MAKEFLAGS names the jobserver")
    add("--load", type=float, metavar="X", help="start the command at a load below this")
    add("--memory", type=size, metavar="SIZE", help="and with so much available, such as 2G")
    add("-v", "--verbose", action="store_true", help="say how many slots had to be recovered")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def size(text: str) -> int:
    number = text.rstrip("KMGT")
    return int(number) * _UNITS[text[len(number) :]]


def _below_load(most: float) -> Callable[[], float]:
    """How long to wait, in seconds, as the load is too high."""
    return lambda: _PAUSE if os.getloadavg()[0] >= most else 0.0


def _above_memory(least: int) -> Callable[[], float]:
    """How long to wait, in seconds, as too little memory is available."""

    def look() -> float:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                if name == "MemAvailable":
                    return _PAUSE if int(rest.split()[0]) * 1024 < least else 0.0
        return 0.0

    return look


def _run(jobserver: Jobserver, command: list[str], style: sharing.Style) -> int:
    with sharing.share(*share(jobserver), style, program=command[0]) as shared:
        try:
            with _passing_on() as passed:
                process = subprocess.Popen(command, env=shared.env, pass_fds=shared.pass_fds)
                passed(process)
                status = process.wait()
        except OSError as error:
            _say(f"{command[0]}: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    return status if status >= 0 else _KILLED - status


@contextmanager
def _passing_on() -> Generator[Callable[[subprocess.Popen[bytes]], None]]:
    """Pass signals on to a process that is told of; those that come before wait for it."""
    early: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def note(signum: int, frame: Optional[FrameType]) -> None:  # noqa: ARG001
        if not started:
            early.append(signum)
        elif not (signal.Signals(signum).name in _OF_TERMINALS and _in_foreground()):
            started[0].send_signal(signum)

    def tell(process: subprocess.Popen[bytes]) -> None:
        started.append(process)
        while early:
            process.send_signal(early.pop())

    signals = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    # What this program is to ignore, the command ignores as well.
    caught = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(signum, note) for signum in caught]
    try:
        yield tell
    finally:
        for signum, handler in zip(caught, before):
            signal.signal(signum, handler)


def _in_foreground() -> bool:
    """Whether this is in the foreground of a terminal, which sends its signals to the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _status() -> int:
    try:
        jobserver = Jobserver.from_environ()
    except NoJobserver as error:
        _print(f"{error.reason}: {error}")
        return 1
    with jobserver:
        number = "an unknown number of" if jobserver.slots is None else jobserver.slots
        _print(f"joined: {number} slots, {os.environ.get('MAKEFLAGS')}")
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"jobserver: {text}\n")


def _end() -> NoReturn:
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while it waits for a slot
        sys.exit(_KILLED + signal.SIGINT)


if __name__ == "__main__":
    _end()
