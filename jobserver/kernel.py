"""What a pool of slots asks of the kernel: a pipe, receipts and a gate.

On Linux receipts are locks of open file descriptions (F_OFD_SETLK in fcntl(2)): read locks of one
byte of an unnamed file, on descriptions made by opening /proc/self/fd anew. Who knows a place can
lock it too, without minding the others.

Elsewhere a receipt is a file in a directory, which flock(2) keeps while it lives, and in which its
places are written. The directory is there while there are receipts. Those of the dead are removed
by whoever comes across them; when nobody is left to do so, they stay.

The gate is a record lock of the process (F_SETLK). No copy of it goes astray in a process that is
just being forked, and it needs no description of its own. For that, two things are minded here:
closing any descriptor of its file would drop it, so that file is no other's, and is closed by one
who has the turnstile; and it does not exclude threads, hence the turnstile.

Where there is none of this, slots are counted and no more: what a killed process held is lost.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import time
from collections.abc import Sequence
from threading import get_ident
from typing import Final, Optional, Union

from . import forks, worker

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of Linux: type, whence, start, length, pid
_PLACES: Final = struct.Struct("qq")  # in the file of a receipt; -1: none
_NUMBER: Final = struct.Struct("q")

if sys.platform != "win32":
    import fcntl
    import termios

    _SHARE: Final = fcntl.LOCK_SH | fcntl.LOCK_NB
    _EXCLUDE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
    _NOBODY: Final = struct.pack("h", fcntl.F_UNLCK)

HAS_FLOCK: Final = sys.platform != "win32"
HAS_OFD: Final = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")

_BITS: Final = 46  # of chance in a new place; with those of the depth below it, 62
_DEPTH_BITS: Final = 16  # as `slots.DEPTHS` has it

_PAUSE: Final = 0.0005  # seconds; nobody should be in the gate for a tenth of it
_PATIENCE: Final = 0.1  # seconds for another thread to pass the turnstile: it must be stuck


class _Turnstile:
    """Lets one thread of this process be in a gate at a time: in any gate, as it is for moments."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Optional[int] = None
        self._gates: list[int] = []  # to be closed by whoever leaves
        forks.reset_in_children(self)

    def enter(self) -> bool:
        if forks.behind:
            forks.catch_up()
        # A finalizer that is run amid a step must not wait for that step.
        if not self._lock.acquire(False) and (
            self._inside == get_ident() or not self._lock.acquire(timeout=_PATIENCE)
        ):
            return False
        self._inside = get_ident()
        return True

    def leave(self) -> None:
        if self._gates:
            self._close_gates()
        self._inside = None
        self._lock.release()

    def _close_gates(self) -> None:
        while self._gates:
            os.close(self._gates.pop())

    def close(self, gate: int) -> None:
        """Close a gate's descriptor, once nobody is in a gate that this might open."""
        self._gates.append(gate)
        if self.enter():
            self.leave()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._inside = None


_turnstile = _Turnstile()


class _Pipe:
    """The bytes. Both ends are non-blocking: all who hold them are of this package."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write
        self._drawn_by = 0
        self._last = 0

    directory = ""  # where the receipts are, if they are files

    @property
    def held(self) -> Optional[worker.Held]:
        return worker.held

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self._read, self._write

    def fileno(self) -> int:
        return self._read

    def new_place(self) -> int:
        # Counted on from a number that chance has chosen for this process: asking it costs more.
        if self._drawn_by != os.getpid():
            self._drawn_by = os.getpid()
            self._last = int.from_bytes(os.urandom(6), "big")
        self._last = (self._last + 1) % (1 << _BITS)
        return self._last << _DEPTH_BITS

    def read(self) -> bytes:
        try:
            return os.read(self._read, 1)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        os.write(self._write, data)

    def reopen(self) -> tuple[int, int, str]:
        path = f"/proc/self/fd/{self.fileno()}"
        read = forks.open_file(path, os.O_RDONLY)
        try:
            write = forks.open_file(path, os.O_WRONLY)
        except BaseException:
            forks.close(read)
            raise
        from . import fifos

        return read, write, fifos.path_of(self.fileno())

    def pause(self) -> None:
        time.sleep(_PAUSE)


class _Gated(_Pipe):
    """The bytes and the gate, in whose file recovered bytes are counted."""

    keeps_receipts = True

    def __init__(self, read: int, write: int, gate: int) -> None:
        super().__init__(read, write)
        self._gate = gate

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self._read, self._write, self._gate

    def waiting(self) -> int:
        data = fcntl.ioctl(self._read, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(data, sys.byteorder)

    def share(self) -> bool:
        return self._enter(_SHARE)

    def exclude(self) -> bool:
        return self._enter(_EXCLUDE)

    def _enter(self, how: int) -> bool:
        if not _turnstile.enter():
            return False
        try:
            fcntl.lockf(self._gate, how, 1)
        except BaseException as error:
            _turnstile.leave()
            if isinstance(error, (BlockingIOError, PermissionError)):  # POSIX allows either
                return False
            raise
        return True

    def leave(self) -> None:
        try:
            fcntl.lockf(self._gate, fcntl.LOCK_UN, 1)
        finally:
            _turnstile.leave()

    def recovered(self) -> int:
        data = os.pread(self._gate, _NUMBER.size, 0)
        return int(_NUMBER.unpack(data)[0]) if data else 0

    def note(self, recovered: int) -> None:
        os.pwrite(self._gate, _NUMBER.pack(self.recovered() + recovered), 0)

    def shut(self) -> None:
        for fd in self.descriptors:
            if fd == self._gate:
                _turnstile.close(fd)
            else:
                os.close(fd)


class OfdKernel(_Gated):
    """`protocols.Kernel` over the locks of Linux."""

    def __init__(self, read: int, write: int, gate: int, receipts: int) -> None:
        super().__init__(read, write, gate)
        self._receipts = receipts
        self._path = f"/proc/self/fd/{receipts}"

    @property
    def descriptors(self) -> tuple[int, ...]:
        return *super().descriptors, self._receipts

    def open(self) -> int:
        return forks.open_file(self._path, os.O_RDWR)

    def lock(self, receipt: int, place: int) -> None:
        fcntl.fcntl(receipt, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, place, 1, 0))

    def unlock(self, receipt: int, place: int) -> None:
        fcntl.fcntl(receipt, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, place, 1, 0))

    def close(self, receipt: int) -> None:
        forks.close(receipt)

    def find(self, start: int, stop: int) -> Optional[int]:
        # The description asked is the one that all processes have, and that never holds a place.
        wanted = _FLOCK.pack(fcntl.F_WRLCK, 0, start, stop - start, 0)
        found = fcntl.fcntl(self._receipts, fcntl.F_OFD_GETLK, wanted)
        return None if found[:2] == _NOBODY else int(_FLOCK.unpack(found)[2])


class FlockKernel(_Gated):
    """`protocols.Kernel` over files that are locked while whoever they speak for lives."""

    def __init__(self, read: int, write: int, gate: int, directory: str) -> None:
        super().__init__(read, write, gate)
        self.directory = directory
        self._paths: dict[int, str] = {}  # of the receipts opened here

    def open(self) -> int:
        while True:
            path = os.path.join(self.directory, os.urandom(8).hex())
            try:
                fd = forks.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileNotFoundError:  # whoever had the last receipt removed the directory
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.directory, 0o700)
                continue
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, _SHARE)
                if os.fstat(fd).st_nlink:
                    self._paths[fd] = path
                    return fd
            # Somebody came across it before it was locked, and took it for one of the dead.
            forks.close(fd)

    def lock(self, receipt: int, place: int) -> None:
        held = _places(receipt)
        os.pwrite(receipt, _PLACES.pack(*held, place, *[-1] * (1 - len(held))), 0)

    def unlock(self, receipt: int, place: int) -> None:
        left = [other for other in _places(receipt) if other != place]
        os.pwrite(receipt, _PLACES.pack(*left, *[-1] * (2 - len(left))), 0)

    def close(self, receipt: int) -> None:
        path = self._paths.pop(receipt)
        # With a place in it, a worker may still live by it. Then it is removed when that is dead.
        if not _places(receipt):
            os.unlink(path)
        forks.close(receipt)

    def find(self, start: int, stop: int) -> Optional[int]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return None
        for name in names:
            for place in self._held_by(os.path.join(self.directory, name)):
                if start <= place < stop:
                    return place
        return None

    @staticmethod
    def _held_by(path: str) -> list[int]:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            fcntl.flock(fd, _EXCLUDE)
        except BlockingIOError:
            return _places(fd)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return []
        finally:
            os.close(fd)

    def shut(self) -> None:
        super().shut()
        with contextlib.suppress(OSError):  # others have receipts, or have removed it
            os.rmdir(self.directory)


def _places(receipt: int) -> list[int]:
    data = os.pread(receipt, _PLACES.size, 0)
    return [place for place in _PLACES.unpack(data) if place >= 0] if data else []


class CountingKernel(_Pipe):
    """`protocols.Kernel` without receipts: what a killed process held is lost."""

    keeps_receipts = False

    def waiting(self) -> int:
        raise AssertionError("nothing is counted where nothing can be recovered")

    def open(self) -> int:
        return -1

    def lock(self, receipt: int, place: int) -> None:
        pass

    def unlock(self, receipt: int, place: int) -> None:
        pass

    def close(self, receipt: int) -> None:
        pass

    def find(self, start: int, stop: int) -> Optional[int]:  # noqa: ARG002
        return None

    def share(self) -> bool:
        return True

    def exclude(self) -> bool:
        return True

    def leave(self) -> None:
        pass

    def recovered(self) -> int:
        return 0

    def note(self, recovered: int) -> None:
        raise AssertionError(f"{recovered} were recovered where nothing can be")

    def shut(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


Kernels = Union[OfdKernel, FlockKernel, CountingKernel]


def create(pipe: Optional[tuple[int, int]] = None) -> Kernels:
    """What is best here, with this empty pipe or a new one. OSError if descriptors run out.

    The pipe is closed then.
    """
    with contextlib.ExitStack() as undo:
        read, write = pipe or os.pipe()
        for fd in (read, write):
            undo.callback(os.close, fd)
            os.set_blocking(fd, False)
        if sys.platform != "win32":
            # `reopen` works for a process that has changed its user. Others cannot reach the pipe:
            # it has no name, or its directory is private. Some platforms refuse this for a pipe.
            with contextlib.suppress(OSError):
                os.fchmod(read, 0o666)
        kernel: Kernels
        if HAS_OFD and os.path.exists("/proc/self/fd"):
            gate = os.memfd_create("jobserver-gate", os.MFD_CLOEXEC)
            undo.callback(os.close, gate)
            receipts = os.memfd_create("jobserver-receipts", os.MFD_CLOEXEC)
            kernel = OfdKernel(read, write, gate, receipts)
        elif HAS_FLOCK:
            import tempfile  # it brings random, which every forked child seeds anew

            gate, path = tempfile.mkstemp(prefix="jobserver-")
            undo.callback(os.close, gate)
            os.unlink(path)
            kernel = FlockKernel(read, write, gate, tempfile.mkdtemp(prefix="jobserver-"))
        else:
            kernel = CountingKernel(read, write)
        undo.pop_all()
    return kernel


def arrive(descriptors: Sequence[int], directory: str) -> Kernels:
    """What was in another process; the descriptors are this process's own by now."""
    for fd in descriptors:
        # They came inheritable. A program that is started here must not have them.
        os.set_inheritable(fd, False)
    read, write, *others = descriptors
    if not others:
        return CountingKernel(read, write)
    gate, *others = others
    if not others:
        return FlockKernel(read, write, gate, directory)
    return OfdKernel(read, write, gate, *others)
