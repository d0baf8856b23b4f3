"""Real input: compress and hash the sources of Python's own standard library.

One submission a folder, and each folder submits its files in turn, through the Jobserver that it
was handed as an argument. Folders differ in size by a factor of hundreds, and none knows what the
others do; the slots that they share keep the whole at N files at once. A folder keeps its slot
while it waits for its files, so the slots will be full of folders at times: then the files of a
folder run on the folder's own slot, one after the other, and nothing stands still.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sysconfig
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from jobserver import Jobserver

# No more than there are CPUs to use; and few enough that a machine with many shows the limit.
SLOTS = min(4, os.cpu_count() or 1)

# A file takes a millisecond, a new worker a few under fork and fifty under spawn. So a worker gets
# up to 32 files: the large folders are worth their workers, and are still spread over all slots.
# Most folders are small, and are not: with two CPUs, do not expect to win much.
CHUNK = 32


class Digest(NamedTuple):
    """What became of a file, and when it was worked on (on a clock that all processes share)."""

    path: str
    sha256: str
    start: float
    end: float


def digest(path: str) -> Digest:
    """Compress a file, and hash what came out."""
    start = time.monotonic()
    with open(path, "rb") as file:
        compressed = zlib.compress(file.read(), level=9)
    return Digest(path, hashlib.sha256(compressed).hexdigest(), start, time.monotonic())


def digest_folder(js: Jobserver, paths: list[str]) -> list[Digest]:
    """Submit the files of one folder."""
    return list(js.map(digest, [(path,) for path in paths], chunksize=CHUNK))


def sources(root: Path) -> list[list[str]]:
    """The standard library's Python files, folder by folder, the largest folder first.

    What starts last should be small: then no slot is left working alone for long.
    """
    folders: list[list[str]] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted({*subfolders} - {"site-packages", "dist-packages", "__pycache__"})
        paths = [os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")]
        if paths:
            folders.append(paths)
    return sorted(folders, key=len, reverse=True)


def most_at_once(digests: list[Digest]) -> int:
    """The largest number of files that were being worked on at one time."""
    # At equal times an end comes before a start: those two did not overlap.
    events = sorted([(d.start, 1) for d in digests] + [(d.end, -1) for d in digests])
    most = running = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most


def main() -> None:
    folders = sources(Path(sysconfig.get_path("stdlib")))

    start = time.monotonic()
    expected = {path: digest(path).sha256 for paths in folders for path in paths}
    alone = time.monotonic() - start

    # Fork, where there is one: its workers start soonest, and this process has no threads to harm.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    start = time.monotonic()
    with Jobserver(method, slots=SLOTS) as js:
        results = js.map(digest_folder, [(js, paths) for paths in folders])
        digests = [one for folder in results for one in folder]
    together = time.monotonic() - start

    assert len(expected) > 500  # this really was a standard library
    assert len(digests) == len(expected)
    assert {one.path: one.sha256 for one in digests} == expected
    most = most_at_once(digests)
    assert most <= SLOTS
    print(f"{len(expected)} files in {len(folders)} folders; the digests agree")
    print(f"at most {most} at once: {together:.1f} s; one after the other: {alone:.1f} s")


if __name__ == "__main__":
    main()
