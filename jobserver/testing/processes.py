"""The processes of one round, seen and ended from outside. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import time
from pathlib import Path
from typing import Final, Optional

import attrs

from .. import forks

_PR_SET_CHILD_SUBREAPER: Final = 36
_PF_FORKNOEXEC: Final = 0x40  # forked, and has not executed another program
_HELPERS: Final = (b"multiprocessing.forkserver", b"multiprocessing.resource_tracker")


def adopt_orphans(*, adopt: bool = True) -> None:
    """Have those whose parents died become children of this process, however deep they were."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@attrs.frozen
class Member:
    """A living process."""

    pid: int
    tracker: bool  # a resource tracker of multiprocessing
    helper: bool  # that, or a forkserver: they stay as long as somebody might need them


@attrs.define
class Group:
    """The process group of which `leader` was the first, below this process."""

    leader: int
    # pidfds, and when to continue them
    _stopped: dict[int, float] = attrs.field(factory=dict[int, float])

    def members(self) -> list[Member]:
        found: list[Member] = []
        pending = [os.getpid()]
        while pending:
            for pid in children_of(pending.pop()):
                pending.append(pid)
                if self._has(pid):
                    found.append(_member(pid))
        return found

    def _has(self, pid: int) -> bool:
        fields = stat_of(pid)
        return fields is not None and fields[0] != "Z" and int(fields[2]) == self.leader

    def send(self, pid: int, signum: signal.Signals) -> Optional[int]:
        """Send a signal if it still is of the group: its pidfd, else None."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Looked at after the pidfd was opened, which stays with the one process.
        if self._has(pid):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)
                return pidfd
        os.close(pidfd)
        return None

    def kill(self, pid: int) -> bool:
        """Whether it was there to be killed."""
        pidfd = self.send(pid, signal.SIGKILL)
        if pidfd is not None:
            os.close(pidfd)
        return pidfd is not None

    def stop(self, pid: int, seconds: float) -> bool:
        """Stop it, for so long."""
        pidfd = self.send(pid, signal.SIGSTOP)
        if pidfd is not None:
            self._stopped[pidfd] = time.monotonic() + seconds
        return pidfd is not None

    def go_on(self, *, everybody: bool = False) -> None:
        """Continue those whose time it is."""
        now = time.monotonic()
        for pidfd, until in list(self._stopped.items()):
            if everybody or now >= until:
                del self._stopped[pidfd]
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                os.close(pidfd)

    def wake(self) -> None:
        """Continue everybody: also those that were stopped by one who died before it went on."""
        for member in self.members():
            pidfd = self.send(member.pid, signal.SIGCONT)
            if pidfd is not None:
                os.close(pidfd)

    def describe(self) -> str:
        """What each is doing, in a line."""
        lines: list[str] = []
        for member in self.members():
            fields = stat_of(member.pid)
            with contextlib.suppress(OSError):
                wchan = Path(f"/proc/{member.pid}/wchan").read_text()
                command = _command(member.pid).replace(b"\0", b" ").decode(errors="replace")
                if fields is not None:
                    lines.append(f"{member.pid} < {fields[1]} {fields[0]} {wchan} {command[:100]}")
        return "\n".join(lines)

    def end(self) -> None:
        """Kill whoever is left."""
        self.go_on(everybody=True)
        while members := self.members():
            for member in members:
                self.kill(member.pid)
            reap_orphans(set())
            time.sleep(0.001)


def reap_orphans(known: set[int]) -> None:
    """Take note of the end of adopted children; `known` ones are somebody's own affair."""
    for pid in children_of(os.getpid()):
        fields = stat_of(pid)
        if pid not in known and fields is not None and fields[0] == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def children_of(pid: int) -> list[int]:
    """The living and the zombie children of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                found += [int(word) for word in words]
    return found


def descendants_of(pid: int) -> set[int]:
    """The living and the zombies below a process, however deep."""
    # Twice: an orphan moves up meanwhile, from where we have not looked yet to where we have.
    return _walk_below(pid) | _walk_below(pid)


def _walk_below(pid: int) -> set[int]:
    found: set[int] = set()
    pending = [pid]
    while pending:
        below = children_of(pending.pop())
        found.update(below)
        pending += below
    return found


def stat_of(pid: int) -> Optional[list[str]]:
    """What /proc/PID/stat says after the name: state, parent, group, session, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def ends_within(pidfd: int, patience: float) -> bool:
    """Whether a process ends, and is at least a zombie, before patience does."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def tasks_of(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def is_stopped(pid: int) -> bool:
    fields = stat_of(pid)
    return fields is not None and fields[0] == "T"


def connections_of(pid: int) -> set[str]:
    """The pipes, those with a name too, and the ends of sockets that a process has."""
    found: set[str] = set()
    for fd, name in descriptors_of(pid).items():
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                found.add(name)
    return found


def descriptors_of(pid: Optional[int] = None) -> dict[str, str]:
    """What is open in a process, by default this one."""
    found: dict[str, str] = {}
    folder = f"/proc/{pid or 'self'}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found[fd] = os.readlink(f"{folder}/{fd}")
    return found


def has_answered(pid: int, fd: int) -> bool:
    """Whether there is something in a pipe, of which a process has the other end as `fd`."""
    # For a moment there is one more reader, of which no forked child gets a copy.
    with forks.opening:
        try:
            pipe = forks.private(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK))
        except FileNotFoundError:
            return False
        try:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            return any(events & select.POLLIN for _, events in poll.poll(0))
        finally:
            forks.close(pipe)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _member(pid: int) -> Member:
    fields, command = stat_of(pid), _command(pid)
    # Workers of a forkserver have its command line, but have not executed it themselves.
    executed = fields is not None and not int(fields[6]) & _PF_FORKNOEXEC
    helper = executed and any(name in command for name in _HELPERS)
    return Member(pid, helper and _HELPERS[1] in command, helper)
