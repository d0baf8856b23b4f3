"""What a command is given so that it draws on our slots: an environment, and descriptors.

Each tool reads MAKEFLAGS in its own way, and a build may run any of them:

    make >= 4.4      a pipe or a fifo; the last one named, and passes on that one only
    make < 4.4       a pipe; the last one named; a fifo there is a fatal error
    ninja >= 1.13    a fifo; the last one named
    cargo            a pipe or a fifo; the last one named in CARGO_MAKEFLAGS, else in MAKEFLAGS; its
                     build scripts get that one as the MAKEFLAGS of whatever make they run
    gcc >= 13        a pipe or a fifo; the last one named
    gcc < 13         a pipe; the first one named; runs one job at a time if that is a fifo

A pipe is two descriptors, which programs on the way may close. A fifo is a path (see `fifos`).
"auto" therefore has two forms, by the makes that a build can find:

    all are >= 4.4   MAKEFLAGS names the pipe and then the fifo, which all but an old gcc take. make
                     would not pass the pipe on to an old gcc. If there is one, the pipe is named in
                     a -I option instead: make passes that on in front, and finds no such folder.
    one is older     MAKEFLAGS names the same two, and the pipe once more in an abbreviation that
                     only make knows. CARGO_MAKEFLAGS names the pipe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal, Optional, Union

import attrs

from . import environment, forks
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

_SECONDS: Final = 10.0  # for a make or a compiler to print its version
_MAKE_VERSION: Final = re.compile(rb"GNU Make (\d+)\.(\d+)")
_GCC_VERSION: Final = re.compile(rb"^(?:\S*-)?(?:gcc|cc|g\+\+|c\+\+)\S* \([^)]*\) (\d+)\.(\d+)")
_MAKE_WITH_FIFOS: Final = (4, 4)
_GCC_WITH_FIFOS: Final = (13, 0)
_MAKES: Final = ("make", "gmake")
_IS_MAKE: Final = re.compile(r"(g|gnu)?make(-\d.*)?")

# Of an outer make: its depth, and what cargo and make's older clients read.
_FOREIGN: Final = ("MAKELEVEL", "CARGO_MAKEFLAGS", "MFLAGS", environment.OURS)


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
            shared = _shared(grants[0], style, program, _revised(env, settings))
            shared.env.update(environment.describe(resources.engine.slots.count, grants[0].path))
            yield shared
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
    if style == "fifo" and not grant.path:
        raise RuntimeError(
            "style='fifo' needs a fifo, and these slots have none: either none can be made in "
            "$TMPDIR or $XDG_RUNTIME_DIR, or the make around this shares a pipe; use style='auto'"
        )
    if style == "fifo":
        makeflags = with_auth(makeflags, fifo)
    elif style == "pipe" or not grant.path:
        makeflags = with_auth(makeflags, pipe)
    elif not all(map(_make_opens_fifos, _makes(program, env))):
        makeflags = with_auth(makeflags, pipe, fifo, of_make=pipe)
        env["CARGO_MAKEFLAGS"] = with_auth("", pipe)
    elif all(map(_gcc_opens_fifos, _compilers(env))):
        makeflags = with_auth(makeflags, pipe, fifo)
    else:
        makeflags = with_auth(makeflags, fifo, of_gcc=pipe)
    env["MAKEFLAGS"] = makeflags
    return Share(env, grant.descriptors)


def _makes(program: Optional[str], env: Mapping[str, str]) -> Iterator[str]:
    """Every make that the command is, or can find: scripts and CMake choose among them."""
    path = env.get("PATH")
    named = [_first_word(env.get("MAKE"))]
    if program is not None and _IS_MAKE.fullmatch(os.path.basename(program)):
        named.append(program)
    yield from filter(None, (name and shutil.which(name, path=path) for name in named))
    for folder in (os.environ.get("PATH", "") if path is None else path).split(os.pathsep):
        for name in _MAKES:
            found = shutil.which(name, path=folder or os.curdir)
            if found is not None:
                yield found


def _compilers(env: Mapping[str, str]) -> Iterator[str]:
    for name in "gcc", _first_word(env.get("CC")):
        found = name and shutil.which(name, path=env.get("PATH"))
        if found:
            yield found


def _first_word(command: Optional[str]) -> Optional[str]:
    try:
        return next(iter(shlex.split(command or "")), None)
    except ValueError:  # unbalanced quotes
        return None


def _make_opens_fifos(make: str) -> bool:
    version = _version(make, _MAKE_VERSION, _identity(make))
    return version is not None and version >= _MAKE_WITH_FIFOS


def _gcc_opens_fifos(compiler: str) -> bool:
    """What is no gcc has no part in this, and so is as good."""
    version = _version(compiler, _GCC_VERSION, _identity(compiler))
    return version is None or version >= _GCC_WITH_FIFOS


def _identity(program: str) -> Optional[tuple[int, int]]:
    """Another one has taken the place of the one that was asked if this has changed."""
    try:
        status = os.stat(program)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@functools.lru_cache(maxsize=32)
def _version(
    program: str,
    pattern: re.Pattern[bytes],
    identity: Optional[tuple[int, int]],  # noqa: ARG001 - for the cache
) -> Optional[tuple[int, int]]:
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    try:
        # No worker is forked that keeps the pipe, as in `commands`.
        with shielded(), forks.opening:
            asked = subprocess.Popen(
                [program, "--version"],
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
        return None
    found = pattern.search(shown)
    return None if found is None else (int(found[1]), int(found[2]))
