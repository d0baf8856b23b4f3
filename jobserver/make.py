"""What make says of its jobserver to those it starts: MAKEFLAGS, read and written. Pure.

A build that runs with `make -jN` has N slots. One, the implicit one, belongs to each process that
make starts; the others are bytes in a pipe or a fifo, which MAKEFLAGS names:

    kw -j4 --jobserver-auth=3,4 -- CFLAGS=-O2\\ -g
    kw -j4 --jobserver-auth=fifo:/tmp/GMfifo4711 -- CFLAGS=-O2\\ -g

The protocol is "Sharing Job Slots with GNU make" in make's manual. Quoting is as in make's main.c
(`decode_env_switches`): a backslash takes the next character as it is, `$$` stands for `$`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, Optional, Union

import attrs

# Why there is no jobserver to join.
Reason = Literal[
    "absent",  # no MAKEFLAGS
    "not a jobserver",  # MAKEFLAGS names none
    "malformed",
    "disabled",  # make has switched it off for this recipe
    "bad descriptor",
    "not a pipe",
    "cannot open",
    "unsupported",  # on this platform
]

_SHARE: Final = "prefix the recipe with + so that make shares its jobserver with it"
_START: Final = "run the program in a recipe of make -jN, or say how many slots it is to have"
_MENDING: Final[dict[Reason, str]] = {
    "absent": _START,
    "not a jobserver": _START,
    "malformed": "make 4.3 and later write R,W or fifo:PATH there",
    "disabled": _SHARE,
    "bad descriptor": _SHARE,
    "not a pipe": _SHARE,
    "cannot open": "the make that made it has to run still, and its TMPDIR to be seen from here",
    "unsupported": "have make use a fifo (--jobserver-style=fifo), where it can",
}


class NoJobserver(RuntimeError):
    """There is no jobserver of make's that this process could join.

    `reason` is one of the few that there are, in lower-case words; `detail` says what was found.
    """

    def __init__(self, reason: Reason, detail: str, mending: Optional[str] = None) -> None:
        """`mending` says what to do, if that is not what the reason alone calls for."""
        super().__init__(reason, detail, mending)  # args rebuild it when it is unpickled
        self.reason: Reason = reason
        self.detail: str = detail
        self._mending = mending or _MENDING[reason]

    def __str__(self) -> str:
        return f"{self.detail}; {self._mending}"


FIFO: Final = "fifo:"


@attrs.frozen
class Descriptors:
    """A pipe that was inherited: its two ends."""

    read: int
    write: int

    def __str__(self) -> str:
        return f"{self.read},{self.write}"


@attrs.frozen
class Fifo:
    """A named pipe. No tool knows of one whose path has blanks, backslashes or dollars."""

    path: str

    def __str__(self) -> str:
        return f"{FIFO}{self.path}"


Auth = Union[Descriptors, Fifo]

_AUTH: Final = ("--jobserver-auth=", "--jobserver-fds=")  # the latter until make 4.2, and cargo
# getopt_long(3), by which make reads its options, knows abbreviations; nobody else looks for them.
_ABBREVIATED: Final = "--jobserver-au="
# A folder that make is to look into for makefiles, and passes on. gcc before 13 does not read
# words, but looks for the first place where this text occurs.
_INCLUDED: Final = f"-I{_AUTH[0]}"
_WORD: Final = re.compile(r"(?:\\.|[^ \t])+", re.DOTALL)
_QUOTED: Final = re.compile(r"\\(.)", re.DOTALL)
# Options without an argument may precede the j in one word.
_JOBS: Final = re.compile(r"(-[BbdehikLmnpqRrSstvw]*j|--jobs=?)(\d*)", re.ASCII)
_NUMBER: Final = re.compile(r"\d+", re.ASCII)  # as a word of its own, after an option without one
_PAIR: Final = re.compile(r"(-?\d+),(-?\d+)", re.ASCII)
_DIGITS: Final = 9  # what has more overflows an int of C


def find_auth(makeflags: Optional[str]) -> Auth:
    """Where the jobserver is that MAKEFLAGS names; the last one counts. NoJobserver if it is none.

    What the auth names is not looked at: it may be closed, or something else.
    """
    if makeflags is None:
        raise NoJobserver("absent", "MAKEFLAGS is not set")
    named = [word for word in _options(makeflags) if word.startswith(_AUTH)]
    if not named:
        raise NoJobserver("not a jobserver", f"MAKEFLAGS names no jobserver: {makeflags!r}")
    value = named[-1].partition("=")[2]
    if value.startswith(FIFO) and len(value) > len(FIFO):
        return Fifo(value[len(FIFO) :])
    pair = _PAIR.fullmatch(value)
    if pair is None or max(map(len, pair.groups())) > _DIGITS:
        raise NoJobserver(
            "malformed", f"MAKEFLAGS has a jobserver of unknown form: {_short(named[-1])}"
        )
    read, write = int(pair[1]), int(pair[2])
    if read < 0 or write < 0:
        raise NoJobserver("disabled", f"make has switched its jobserver off here: {named[-1]!r}")
    return Descriptors(read, write)


def find_jobs(makeflags: Optional[str]) -> Optional[int]:
    """N of the last -jN in MAKEFLAGS; None when there is none, or no number with it."""
    jobs: Optional[int] = None
    lacks_number = False
    for word in _options(makeflags or ""):
        found = _JOBS.fullmatch(word)
        if found is not None or (lacks_number and _NUMBER.fullmatch(word)):
            digits = word if found is None else found[2]
            jobs = (int(digits or 0) or None) if len(digits) <= _DIGITS else None
        lacks_number = found is not None and not found[2]
    return jobs


def with_auth(
    makeflags: str,
    *auths: Auth,
    of_make: Optional[Auth] = None,
    of_gcc: Optional[Auth] = None,
) -> str:
    """MAKEFLAGS with other jobservers, or without any; all else is as it was.

    Of several, gcc before 13 takes the first, and everybody else the last. `of_make` is what make
    alone takes. `of_gcc` is what gcc before 13 takes, below a make as well. -jN is left out: it
    says how many slots another jobserver has.
    """
    kept: list[str] = []
    rest: list[str] = []
    lacks_number = False
    for raw, plain in _split(makeflags):
        is_number = lacks_number and _NUMBER.fullmatch(plain)
        lacks_number = False
        if rest or plain == "--":
            rest.append(raw)
        elif is_number or plain.startswith((*_AUTH, _ABBREVIATED, _INCLUDED)):
            continue
        elif (found := _JOBS.fullmatch(plain)) is not None:
            lacks_number = not found[2]
            others = plain[: plain.rindex("j")] if not plain.startswith("--") else ""
            if others not in ("-", ""):
                kept.append(others)
        else:
            kept.append(raw)
    if of_gcc is not None:
        kept.append(f"{_INCLUDED}{of_gcc}")
    kept += [f"{_AUTH[0]}{auth}" for auth in auths]
    if of_make is not None:
        kept.append(f"{_ABBREVIATED}{of_make}")
    return " ".join([*kept, *rest])


def _short(text: str) -> str:
    return repr(text if len(text) < 100 else f"{text[:80]}...")


def _options(makeflags: str) -> Iterator[str]:
    """The words that are options, unquoted: those up to `--`."""
    for _, plain in _split(makeflags):
        if plain == "--":
            return
        yield plain


def _split(makeflags: str) -> Iterator[tuple[str, str]]:
    """Each word as it stands, and unquoted. As make has it, the first may lack its dash."""
    if (len(makeflags) - len(makeflags.rstrip("\\"))) % 2:
        makeflags += "\\"  # the last one has nothing to quote, and stands for itself
    for index, raw in enumerate(_WORD.findall(makeflags)):
        plain = _QUOTED.sub(r"\1", raw.replace("$$", "$"))
        if index == 0 and not plain.startswith("-") and "=" not in plain:
            yield raw, "-" + plain
        else:
            yield raw, plain
