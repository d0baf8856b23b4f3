"""What takes a build out of the pool: a number of jobs of its own, in its command or environment.

make, ninja and CMake drop the jobserver around them when they are given one. cargo says so itself
if it is in its command. One job at a time is no harm, so that is left alone.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_TOOL: Final = re.compile(r"(g|gnu)?make(-\d.*)?|ninja(-build)?|samu|cmake|meson")
_WRAPPERS: Final = ("env", "nice", "ionice", "nohup", "setsid", "stdbuf", "time", "timeout")
_SHELLS: Final = ("sh", "bash", "dash", "ksh", "zsh")
_PUNCTUATION: Final = frozenset("();<>|&")

# Options without an argument may precede the j in one word.
_JOBS: Final = re.compile(r"(-[a-zA-Z]*j|--jobs=?|--parallel=?)(\d*)", re.ASCII)
_NUMBER: Final = re.compile(r"\d+", re.ASCII)

_NUMBERS: Final = ("CMAKE_BUILD_PARALLEL_LEVEL", "CARGO_BUILD_JOBS")
_FLAGS: Final = ("NINJAFLAGS", "GNUMAKEFLAGS")


def find(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Each, as the user wrote it; those of the command first."""
    found = list(_of_words(_plain(command)))
    for name in _NUMBERS:
        value = environ.get(name, "").strip()
        if value and value != "1":
            found.append(f"{name}={value}")
    for name in _FLAGS:
        found += (f"{name}={environ[name]}" for _ in _jobs(_split(environ.get(name, ""))))
    return list(dict.fromkeys(found))


def _plain(command: Sequence[str]) -> list[str]:
    """The words of a command, or of the script that a shell is given."""
    words = list(command)
    for index, word in enumerate(words[:-1]):
        if os.path.basename(word) in _SHELLS and re.fullmatch(r"-[a-z]*c", words[index + 1]):
            return [*words[:index], *_split(" ".join(words[index + 2 : index + 3]))]
    return words


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:  # unbalanced quotes
        return []


def _of_words(words: Sequence[str]) -> Iterator[str]:
    """Those of each tool that begins a command, behind wrappers or not."""
    tool = ""
    arguments: list[str] = []
    begins = True
    for word in [*words, ";"]:
        if word and _PUNCTUATION.issuperset(word):
            yield from (f"{tool} {jobs}" for jobs in _jobs(_until_dashes(tool, arguments)))
            tool, arguments, begins = "", [], True
        elif tool:
            arguments.append(word)
        elif begins and _TOOL.fullmatch(os.path.basename(word)):
            tool = os.path.basename(word)
        else:
            # What is no option, number or assignment is a program, and what follows is its own.
            name = os.path.basename(word)
            begins = begins and (
                name in _WRAPPERS or word.startswith("-") or "=" in word or word[:1].isdigit()
            )


def _until_dashes(tool: str, arguments: Sequence[str]) -> Sequence[str]:
    # Behind them CMake has what the tool that it runs is to get; others have names of files.
    if tool == "cmake" or "--" not in arguments:
        return arguments
    return arguments[: list(arguments).index("--")]


def _jobs(words: Sequence[str]) -> Iterator[str]:
    for index, word in enumerate(words):
        found = _JOBS.fullmatch(word)
        if found is not None:
            following = words[index + 1] if index + 1 < len(words) else ""
            apart = not found[2] and _NUMBER.fullmatch(following) is not None
            if (following if apart else found[2]) != "1":
                yield f"{word} {following}" if apart else word
