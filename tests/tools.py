"""The build tools that tests run: found by version, and skipped by name where they are missing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

Version = tuple[int, ...]

# By the name under which a test asks for it: the program, the least version, and the first that
# is too new. `./ci` installs make 4.4.1 and ninja; make 4.3 is Debian's and Ubuntu's.
TOOLS: dict[str, tuple[str, Version, Version]] = {
    "make 4.3": ("make", (4, 2), (4, 4)),  # shares a pipe
    "make 4.4": ("make", (4, 4), (5,)),  # shares a fifo, or a pipe
    "ninja": ("ninja", (1, 13), (2,)),  # the first that is a client
    "cargo": ("cargo", (1, 0), (2,)),
    "gcc": ("gcc", (10,), (99,)),
}
MAKES = ("make 4.3", "make 4.4")

SECONDS = 30.0  # for a program that prints its version


@functools.cache
def find(name: str) -> str | None:
    """The path of a tool, or None: the first on PATH of that version, or beside this Python."""
    program, least, most = TOOLS[name]
    places = [*os.environ.get("PATH", "").split(os.pathsep), os.path.dirname(sys.executable)]
    for place in dict.fromkeys(places):
        path = shutil.which(program, path=place)
        if path is not None and least <= _version(path) < most:
            return path
    return None


def need(name: str) -> str:
    """The path of a tool; skips the test if it is missing."""
    path = find(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _version(path: str) -> Version:
    shown = subprocess.run(
        [path, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    found = re.search(r"\d+(?:\.\d+)+", shown.stdout)
    return tuple(map(int, found[0].split("."))) if found and not shown.returncode else ()
