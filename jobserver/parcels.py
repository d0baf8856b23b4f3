"""Work on its way into another process: pickled, with the descriptors that it refers to."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from multiprocessing import reduction
from multiprocessing.context import set_spawning_popen
from typing import TYPE_CHECKING, Callable, Final, Optional, cast

from . import forks, memory, wire, worker
from .protocols import Task

if TYPE_CHECKING:
    from multiprocessing import popen_spawn_posix

# An initializer that is larger is stored in a file: to send its descriptor along with each call
# takes about as long as to copy so much.
_SMALL: Final = 1 << 13  # bytes


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


def pickled(task: Task, needed_by: str) -> wire.Pickled:
    """The work as two pickles: see `worker.run_received`. TypeError if it cannot be pickled."""
    fn, args, kwargs = task.call[1:]
    plain = (task.call[0], fn, tuple(args), dict(kwargs))
    whole = wire.Pickled()
    try:
        whole.dump(plain)
    except Exception as cause:
        raise TypeError(
            f"the work is not picklable, as {needed_by} needs it to be: {cause!r}"
        ) from cause
    receipt = None if task.receipt < 0 else reduction.DupFd(task.receipt)
    beside = tuple(map(len, whole.buffers))
    first = (tuple(task.env), task.held, receipt, beside)
    whole.put_first(pickle.dumps(first, pickle.HIGHEST_PROTOCOL))
    return whole


def file_of(content: wire.Pickled) -> int:
    """A file without a name that has this content, private to this process."""
    return _file(content.buffers, content.stream)


def _file(buffers: Iterable[memoryview], stream: Iterable[bytes]) -> int:
    with forks.opening:
        file = forks.private(memory.open_unnamed())
    try:
        memory.store(file, buffers, stream)
    except BaseException:
        forks.close(file)
        raise
    return file


class Initializer(worker.Initialize):
    """An executor's initializer, pickled once for however many calls it goes along with."""

    def __init__(
        self,
        initializer: Callable[..., object],
        initargs: tuple[object, ...],
        preexec: Optional[Callable[[], object]],
    ) -> None:
        super().__init__(os.urandom(16), initializer, initargs, preexec)
        self._stream: Optional[bytes] = None  # of its pickle
        self._file = -1  # or the file that has it
        self._sizes: tuple[int, ...] = ()  # of the blocks in the file
        forks.reset_in_children(self)

    def __reduce__(self) -> tuple[object, ...]:
        if self._stream is None and self._file < 0:
            self._store()
        stored = self._stream if self._file < 0 else reduction.DupFd(self._file)
        initargs = stored, self._sizes
        return worker.Initialize, (self.key, worker.run_stored, initargs, self.preexec)

    def _store(self) -> None:
        content = wire.Pickled()
        content.dump((self.initializer, self.initargs))
        stream = b"".join(content.stream)
        if not content.buffers and len(stream) <= _SMALL:
            self._stream = stream
            return
        blocks = [*content.buffers, memoryview(stream)]
        self._sizes = tuple(map(len, blocks))
        self._file = _file(blocks, ())

    def __del__(self) -> None:
        if self._file >= 0:
            forks.close(self._file)

    def after_fork(self) -> None:
        """In a forked child: the descriptor is closed."""
        self._file = -1
