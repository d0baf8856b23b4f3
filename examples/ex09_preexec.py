"""Preexec: prepare the worker, or put something around the work.

`replace_preexec(fn, ...)` returns a new handle on the same slots, whose workers call `fn(...)` just
before the work. If that returns a context manager, it is entered around the work: a place, a lock,
a profile, a redirection. If its exit swallows the work's exception, the result is None. What the
preexec itself raises counts as raised by the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from jobserver import Jobserver


def write(name: str, text: str) -> int:
    """Write a file in the current directory."""
    return Path(name).write_text(text, encoding="utf-8")


def read(name: str) -> str:
    return Path(name).read_text(encoding="utf-8")


def refuse(reason: str) -> None:
    raise PermissionError(reason)


@contextlib.contextmanager
def scratch(parent: str) -> Generator[None, None, None]:
    """Run the work in a directory of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=parent) as place:
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(parent)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Jobserver(slots=2) as js:
        # A callable: it changes the worker, and returns None.
        there = js.replace_preexec(os.chdir, directory)
        assert there(write, "note", "hello").result() == 5
        assert there(read, "note").result() == "hello"
        assert os.listdir(directory) == ["note"]
        deep = js.replace_preexec(sys.setrecursionlimit, 4321)
        assert deep(sys.getrecursionlimit).result() == 4321

        # A context manager: the file was written, and went with its directory.
        assert js.replace_preexec(scratch, directory)(write, "other", "bye").result() == 3
        assert os.listdir(directory) == ["note"]

        # One that swallows the exception makes the result None.
        lenient = js.replace_preexec(contextlib.suppress, FileNotFoundError)
        assert lenient(read, os.path.join(directory, "other")).result() is None

        # An error in the preexec is the Future's.
        refused = js.replace_preexec(refuse, "not today")(write, "note", "overwritten")
        try:
            refused.result()
        except PermissionError as error:
            assert str(error) == "not today"
        else:
            raise AssertionError("the work ran all the same")

        # The workers changed; this process did not.
        assert os.getcwd() != directory
        assert sys.getrecursionlimit() != 4321
        print("the note says", there(read, "note").result())


if __name__ == "__main__":
    main()
