"""A file in which processes that may die at any instant note what happened to them."""

from __future__ import annotations

import os

KILLED = "killed"  # by itself, and at which point
LOST = "lost"  # a LostResult, as expected
UNEXPECTED = "unexpected"  # any other exception, with its traceback

_descriptors: dict[str, int] = {}


def note(path: str, kind: str, text: str = "") -> None:
    """Add a line. Lines of several processes do not mix: each is one append."""
    # Kept open, so that the last act of a process is quick. Forked children share it.
    if path not in _descriptors:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        _descriptors[path] = os.open(path, flags, 0o600)
    escaped = text.encode("unicode_escape").decode("ascii")
    os.write(_descriptors[path], f"{kind}\t{escaped}\n".encode("ascii"))


def forget(path: str) -> None:
    """Close the file in this process."""
    os.close(_descriptors.pop(path))


def read(path: str) -> list[tuple[str, str]]:
    """The kinds and the texts of all lines."""
    try:
        with open(path, encoding="ascii") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return []
    parted = [line.partition("\t") for line in lines]
    return [(kind, text.encode("ascii").decode("unicode_escape")) for kind, _, text in parted]
