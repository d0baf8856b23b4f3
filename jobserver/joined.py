"""Slots that make has: bytes of its jobserver's pipe, and the implicit slot of this process.

    make's pipe ── take ──> our ledger, a pipe as well ── give back ──> make's pipe

Others take bytes from make's pipe and put them back, and leave no receipts, so nothing can be told
from counting it. But what our tree has taken is in the ledger until it goes back: that is what our
receipts are held against (see `slots`). Bytes in the ledger for which nobody holds a receipt are
those of the dead, and an audit moves them back. So whoever lives of the tree returns what the
others had, byte for byte, and never one that was not read: a make with one byte too many runs more
than it should, which is worse than one too few.

Where neither pipe can run out of room the kernel moves a byte in one step (splice), so a kill at
any instant leaves it in the one or the other. Else it is read and written, and whoever is killed
just between the two has lost it.

The implicit slot is the one on which make started this process. There is no byte for it. It is the
process's own to lend, to one piece of work at a time: a place of its own that only the pool which
joined takes, and gives back by letting it go. What is lent on from there goes by depths, as ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Sequence
from typing import Final, Optional

import attrs

from .ancestors import find_holder
from .kernel import HAS_OFD, OfdKernel, create
from .make import FIFO, Auth, Descriptors, Fifo, NoJobserver, Reason
from .protocols import Grant, Slot
from .slots import PLACES, SlotPool

if sys.platform != "win32":
    import fcntl
    import termios

_NAMES_A_FIFO: Final = "have MAKEFLAGS name the fifo of a make that runs, or clear it"
_OF_PROCESS: Final = re.compile(r"//?proc/(self|thread-self|\d+)/|//?dev/(fd/|std)")

IMPLICIT: Final = PLACES  # the first place of a block that no other slot has


class JoinedKernel(OfdKernel):
    """`protocols.Kernel` whose bytes come from another pipe and go back there.

    Those in the pipe of its own are those that are taken.
    """

    def __init__(self, descriptors: Sequence[int], most: Optional[int]) -> None:
        """`most` bytes can be in either pipe at a time, if anybody knows."""
        *ours, self._outer_read, self._outer_write = descriptors
        super().__init__(*ours)
        # What is spliced has a page of the pipe to itself. Were there more bytes than pages, make
        # could wait for ever to put one back.
        self._splices = most is not None and most <= min(
            map(_pages, (self._write, self._outer_write))
        )

    @property
    def descriptors(self) -> tuple[int, ...]:
        return *super().descriptors, self._outer_read, self._outer_write

    def fileno(self) -> int:
        return self._outer_read

    def read(self) -> bytes:
        return self._move(self._outer_read, self._write)

    def write(self, data: bytes) -> None:
        for _ in data:
            self._move(self._read, self._outer_write)

    def _move(self, source: int, target: int) -> bytes:
        try:
            if self._splices:
                return b"+" * _splice(source, target)
            data = os.read(source, 1)
        except BlockingIOError:
            return b""
        os.write(target, data)
        return data


if sys.version_info >= (3, 10) and sys.platform == "linux":

    def _pages(pipe: int) -> int:
        try:
            return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) // os.sysconf("SC_PAGE_SIZE")
        except OSError:  # a device
            return 0

    def _splice(source: int, target: int) -> int:
        return os.splice(source, target, 1, flags=os.SPLICE_F_NONBLOCK)

else:

    def _pages(pipe: int) -> int:  # noqa: ARG001
        return 0

    def _splice(source: int, target: int) -> int:
        raise AssertionError(f"{source} is not spliced to {target}, for which there are no pages")


class JoinedPool(SlotPool):
    """The slots of make's jobserver that this tree has, as this process sees them."""

    hindered: bool
    out: int

    def __init__(
        self,
        identity: str,
        count: Optional[int],
        kernel: JoinedKernel,
        auth: str,
        *,
        implicit: bool = False,
    ) -> None:
        """`implicit`: this is the process that make started."""
        super().__init__(identity, count, kernel)
        self._auth = auth
        self._has_implicit = implicit
        self._retired = False

    @classmethod
    def join(cls, auth: Auth, count: Optional[int]) -> JoinedPool:
        """The pool that `auth` names; `count` is how many slots it has, if that is known.

        NoJobserver when there is none, OSError when there are no descriptors for it.
        """
        outer = _open(auth, count)
        try:
            ours = create()
            assert isinstance(ours, OfdKernel), "it has been asked for before"
            kernel = JoinedKernel((*ours.descriptors, *outer), count)
        except BaseException:
            for fd in outer:
                os.close(fd)
            raise
        return cls(os.urandom(16).hex(), count, kernel, str(auth), implicit=True)

    @classmethod
    def arrive(
        cls, identity: str, count: Optional[int], origin: str, descriptors: Sequence[int]
    ) -> JoinedPool:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        return cls(identity, count, JoinedKernel(descriptors, count), origin)

    @property
    def origin(self) -> str:
        """What named the pool in MAKEFLAGS."""
        return self._auth

    def used(self) -> None:
        """Not known: make says at most how many slots there are, and not who has one."""

    def retire(self) -> None:
        """Have this process take no more."""
        self._retired = True

    def take(self) -> Optional[Slot]:
        self.hindered = self._retired
        if self._retired:
            return None
        # The implicit slot first: make can give what is in the pipe to others.
        if self._has_implicit and self._is_free(IMPLICIT):
            # Nobody else takes it, so it needs no gate; those who are lent it hold it meanwhile.
            receipt = self._open()
            self.kernel.lock(receipt, IMPLICIT)
            self.out += 1
            return Slot(b"", IMPLICIT, None, receipt)
        return super().take()

    def grant(self, slot: Slot) -> Optional[Grant]:
        grant = super().grant(slot)
        if grant is not None and self._auth.startswith(FIFO):
            # As make has it: whoever is given it can open it when this process is gone.
            grant = attrs.evolve(grant, path=self._auth[len(FIFO) :])
        return grant

    def after_fork(self) -> None:
        super().after_fork()
        self._has_implicit = False

    def _missing(self) -> int:
        # Less than nothing: somebody is about to take.
        return max(0, self.kernel.waiting() - self._receipts())


def _open(auth: Auth, count: Optional[int]) -> tuple[int, int]:
    """The two ends of make's pipe, as descriptions of our own. NoJobserver if that cannot be."""
    if not HAS_OFD or not os.path.exists("/proc/self/fd"):
        raise NoJobserver("unsupported", f"slots of make are shared on Linux only, not {auth}")
    if isinstance(auth, Descriptors):
        _check_inherited(auth)
        # Opened anew: others have these descriptions, too, and want no flag of theirs changed.
        read, write = f"/proc/self/fd/{auth.read}", f"/proc/self/fd/{auth.write}"
        mend = None
    else:
        read = write = auth.path
        mend = _NAMES_A_FIFO
        if _OF_PROCESS.match(os.path.normpath(auth.path)):
            raise NoJobserver(
                "cannot open",
                f"{auth.path}, which MAKEFLAGS names, is what some process has open there",
                _NAMES_A_FIFO,
            )
    opened: list[int] = []
    try:
        for path, flags in (write, os.O_WRONLY), (read, os.O_RDONLY):
            # The write end first, which is refused when nobody is left to read.
            opened.append(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
            mode = os.fstat(opened[-1]).st_mode
            if not (stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and isinstance(auth, Fifo))):
                raise NoJobserver("not a pipe", f"{path}, which MAKEFLAGS names, is no pipe", mend)
        writes, reads = opened
        _check_behaviour(path, reads, writes, count, mend)
    except BaseException as error:
        for fd in opened:
            os.close(fd)
        if isinstance(error, OSError):
            raise NoJobserver(
                "cannot open", f"make's jobserver cannot be opened: {error}"
            ) from error
        raise
    return reads, writes


def _check_behaviour(
    path: str, read: int, write: int, count: Optional[int], mend: Optional[str]
) -> None:
    """NoJobserver unless it is used as one, as far as that can be told without taking a token."""
    if stat.S_ISFIFO(os.fstat(read).st_mode):
        waiting = int.from_bytes(fcntl.ioctl(read, termios.FIONREAD, bytes(4)), sys.byteorder)
        if count is not None and waiting > count:
            raise NoJobserver(
                "not a pipe",
                f"{path}, which MAKEFLAGS names, has {waiting} bytes, but -j{count} no more than "
                f"{count - 1} tokens",
                mend,
            )
        return
    # A device that keeps tokens has none, or some; it never ends, and is nobody's keyboard.
    with contextlib.suppress(BlockingIOError):
        token = b"" if os.isatty(read) or _is_memory(read) else os.read(read, 1)
        if not token:
            raise NoJobserver("not a pipe", f"{path}, which MAKEFLAGS names, has no tokens", mend)
        os.write(write, token)


def _is_memory(fd: int) -> bool:
    """Whether it is /dev/null, /dev/zero or another one of that kind (Linux: devices.txt)."""
    return os.major(os.fstat(fd).st_rdev) == 1


def _check_inherited(auth: Descriptors) -> None:
    """NoJobserver unless make has left the two ends of a pipe to this process."""
    inodes: list[int] = []
    for fd, unfit in (auth.read, os.O_WRONLY), (auth.write, os.O_RDONLY):
        what = f"descriptor {fd}, which MAKEFLAGS names,"
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise _lost("bad descriptor", f"{what} is not open", auth) from error
        # What survived exec has no close-on-exec flag; all that Python opens has one.
        if not os.get_inheritable(fd):
            raise _lost("bad descriptor", f"{what} is not make's but this program's own", auth)
        if not stat.S_ISFIFO(status.st_mode):
            raise _lost("not a pipe", f"{what} is no pipe", auth)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == unfit:
            raise _lost("bad descriptor", f"{what} is the other end of the pipe", auth)
        inodes.append(status.st_ino)
    if inodes[0] != inodes[1]:
        raise _lost("not a pipe", f"descriptors {auth} are of two pipes", auth)


def _lost(reason: Reason, detail: str, auth: Descriptors) -> NoJobserver:
    """Say who has the pipe and has not passed it on, if make has shared it."""
    holder = find_holder(auth.read, auth.write)
    if holder is None:
        return NoJobserver(reason, detail)
    return NoJobserver(
        reason,
        f"{detail} although {holder} has both",
        "have what that program started pass on its descriptors, as subprocess does with "
        "close_fds=False or pass_fds, or use a make from 4.4 on, whose fifo needs none",
    )
