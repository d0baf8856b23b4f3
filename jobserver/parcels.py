"""Work on its way into another process: pickled, with the descriptors that it refers to."""

from __future__ import annotations

import io
import os
import pickle
from multiprocessing import reduction
from multiprocessing.context import set_spawning_popen
from typing import IO, TYPE_CHECKING, cast

from . import worker
from .protocols import Task

if TYPE_CHECKING:
    from multiprocessing import popen_spawn_posix


class Collector:
    """Collects the descriptors of what is pickled within, in the place of multiprocessing's Popen.

    What comes of them in the other process is a `worker.Descriptor`.
    """

    DupFd = worker.Descriptor

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __enter__(self) -> list[int]:
        # What pickles for a process asks of a Popen what this has; the stubs name their own only.
        set_spawning_popen(cast("popen_spawn_posix.Popen", self))
        return self.fds

    def __exit__(self, *error: object) -> None:
        set_spawning_popen(None)

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1


def pickled(task: Task, needed_by: str) -> memoryview:
    """The work as two pickles: see `worker.run_received`. TypeError if it cannot be pickled."""
    buffer = io.BytesIO()
    receipt = None if task.receipt < 0 else reduction.DupFd(task.receipt)
    pickle.dump((tuple(task.env), task.held, receipt), buffer, pickle.HIGHEST_PROTOCOL)
    fn, args, kwargs = task.call[1:]
    plain = (task.call[0], fn, tuple(args), dict(kwargs))
    try:
        reduction.ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(plain)
    except Exception as cause:
        raise TypeError(
            f"the work is not picklable, as {needed_by} needs it to be: {cause!r}"
        ) from cause
    return buffer.getbuffer()


def unnamed_file(content: memoryview) -> IO[bytes]:
    """A file without a name that has this content and is positioned at its start."""
    file = os.fdopen(open_unnamed(), "rb", buffering=0)
    try:
        write_all(file.fileno(), content)
    except BaseException:
        file.close()
        raise
    return file


def write_all(fd: int, content: memoryview) -> None:
    """Write to the start of a file, whose position stays: one write takes 2 GiB at most."""
    written = 0
    while written < len(content):
        written += os.pwrite(fd, content[written:], written)


def open_unnamed() -> int:
    """An empty file without a name, in memory where that can be."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jobserver", os.MFD_CLOEXEC)
    import tempfile  # it brings random, which every forked child seeds anew

    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())
