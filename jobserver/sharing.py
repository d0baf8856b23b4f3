"""What a command is given so that it draws on our slots: an environment, and descriptors.

Each tool reads MAKEFLAGS in its own way, and a build may run any of them:

    make >= 4.4            a pipe or a fifo; the last one named
    make < 4.4             a pipe; the last one named; a fifo there is a fatal error
    ninja >= 1.13, cargo   a fifo (some a pipe as well); the last one named
    gcc >= 13              a pipe or a fifo; the last one named
    gcc < 13               a pipe; the first one named; runs one job at a time if that is a fifo

A pipe is two descriptors, which are lost on whoever does not inherit them. Our fifo is no file that
a kill would leave behind: it is the path under /proc that opens our very pipe anew.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Final, Literal, Optional, Union

import attrs

from . import forks
from .interrupts import shielded
from .make import Descriptors, Fifo, with_auth
from .resources import Resources
from .settings import Settings

if TYPE_CHECKING:
    from .protocols import Grant, Slot

Style = Literal["auto", "fifo", "pipe"]
Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]
Environment = Union[Mapping[str, Path], Mapping[bytes, Path]]

STYLES: Final = ("auto", "fifo", "pipe")

_SECONDS: Final = 10.0  # for a make to print its version
_VERSION: Final = re.compile(rb"GNU Make (\d+)\.(\d+)")
_FIRST_WITH_FIFOS: Final = (4, 4)
_IS_MAKE: Final = re.compile(r"(g|gnu)?make(-\d.*)?")

# Of an outer make: its depth, and what cargo and make's older clients read.
_FOREIGN: Final = ("MAKELEVEL", "CARGO_MAKEFLAGS", "MFLAGS")


@attrs.frozen
class Share:
    """What a command is started with, so that it draws on the slots."""

    env: dict[str, str]  # the whole environment
    pass_fds: tuple[int, ...]  # descriptors that it is to inherit, as `subprocess.Popen` has it


@contextlib.contextmanager
def share(
    resources: Resources,
    settings: Settings,
    style: Style,
    *,
    program: Optional[str] = None,
    env: Optional[Environment] = None,
    deadline: Optional[float] = None,
) -> Generator[Share]:
    """A slot for a command, which may draw on the others, within. See `Jobserver.share`.

    `program` is what the command runs, if that is known; `env` its environment, None: ours.
    """
    if not os.path.exists("/proc/self/fd"):
        raise NotImplementedError(
            "commands draw on slots through /proc/self/fd, which this platform does not have; "
            "start them in work of their own, with as many jobs as it has slots: one"
        )
    held: list[Slot] = []
    grants: list[Grant] = []
    owner = os.getpid()
    try:
        try:
            resources.grant(settings, deadline, held, grants)
            yield _shared(grants[0], style, program, _revised(env, settings))
        finally:
            if os.getpid() == owner:  # else a forked child leaves, and all this is its parent's
                resources.withdraw(held, grants)
    finally:
        # Again, as an interrupt can come after the block and before its `finally`.
        if os.getpid() == owner and (held or grants):
            resources.withdraw(held, grants)


def check_style(style: object) -> None:
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(map(repr, STYLES))}, not {style!r}")


def _revised(env: Optional[Environment], settings: Settings) -> dict[str, str]:
    given = os.environ if env is None else env
    revised = {os.fsdecode(name): os.fsdecode(value) for name, value in given.items()}
    for name, value in settings.env:
        if value is None:
            revised.pop(name, None)
        else:
            revised[name] = value
    return revised


def _shared(grant: Grant, style: Style, program: Optional[str], env: dict[str, str]) -> Share:
    for name in _FOREIGN:
        env.pop(name, None)
    pipe, fifo = Descriptors(grant.read, grant.write), Fifo(grant.path)
    makeflags = env.pop("MAKEFLAGS", "")
    if style == "pipe":
        makeflags = with_auth(makeflags, pipe)
    elif style == "fifo":
        makeflags = with_auth(makeflags, fifo)
    elif _opens_fifos(_make_of(program, env.get("PATH"))):
        makeflags = with_auth(makeflags, pipe, fifo)
    else:
        makeflags = with_auth(makeflags, pipe, fifo, of_make=pipe)
    env["MAKEFLAGS"] = makeflags
    return Share(env, grant.descriptors)


def _make_of(program: Optional[str], path: Optional[str]) -> Optional[str]:
    """The make that a command is, or that it will find."""
    if program is not None and _IS_MAKE.fullmatch(os.path.basename(program)):
        return shutil.which(program, path=path)
    return shutil.which("make", path=path)


@functools.lru_cache(maxsize=8)
def _opens_fifos(make: Optional[str]) -> bool:
    if make is None:
        return False
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    try:
        # No worker is forked that keeps the pipe, as in `commands`.
        with shielded(), forks.opening:
            asked = subprocess.Popen(
                [make, "--version"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        with asked:
            try:
                shown, _ = asked.communicate(timeout=_SECONDS)
            except BaseException:
                asked.kill()
                raise
    except (OSError, subprocess.TimeoutExpired):
        shown = b""
    found = _VERSION.search(shown)
    return found is not None and (int(found[1]), int(found[2])) >= _FIRST_WITH_FIFOS
