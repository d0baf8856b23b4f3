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
import sys
from collections.abc import Sequence
from typing import Callable, Final, NoReturn, Optional

from . import own_jobs, sharing
from .hosting import Signalled, Signals, die_by
from .make import NoJobserver
from .server import Jobserver, share

_PAUSE: Final = 1.0  # seconds between looks at the load or the memory
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# As shells have it.
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run it; the exit status, or minus the signal by which this program is to die."""
    options = _parser().parse_args(arguments)
    if options.command == ["status"]:
        return _status()
    command: list[str] = options.command[options.command[:1] == ["--"] :]
    if not command:
        _parser().error("a command is needed, or status")
    signals = Signals()
    try:
        with signals.passing_on():
            return _host(options, command, signals)
    except Signalled as signalled:  # while it waits for a slot
        return -signalled.signum


def _host(options: argparse.Namespace, command: list[str], signals: Signals) -> int:
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
    own = own_jobs.find(command, os.environ)
    if own:
        _say(
            f"{', '.join(own)}: this takes the build, or a part of it, out of the pool of slots; "
            "leave it out, for -j of python -m jobserver says how many jobs there are"
        )
    with jobserver:
        status = _run(jobserver, command, options.style, signals)
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


def _run(jobserver: Jobserver, command: list[str], style: sharing.Style, signals: Signals) -> int:
    with sharing.share(*share(jobserver), style, program=command[0]) as shared:
        try:
            return signals.host(command, shared.env, shared.pass_fds)
        except OSError as error:
            _say(f"{command[0]}: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


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


def script() -> NoReturn:
    """The console script `jobserver`: run it, and end as its command did."""
    try:
        status = main()
    except KeyboardInterrupt:
        status = -signal.SIGINT
    if status < 0:
        die_by(-status)
    sys.exit(status)


if __name__ == "__main__":
    script()
