"""Where a submission gets its worker from: a fresh one, or one that has served others before.

A worker that serves has a socket, on which it is sent work, and one result channel; it has one
piece of work at a time. In between it is idle: it holds no slot, and leaves by itself after a
while, or when its parent has gone. So a worker may leave, or be killed, at the very moment at which
it is sent work. It counts what it begins in a file that is shared with its parent: what it has not
begun, another worker is given, once.

    submission ──> turn ── request ──> member ──> worker: serving
                     ^                                 │
                     └──────────── one frame ──────────┘
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterable
from multiprocessing import util
from typing import Callable, Final, Optional, Union

from . import credentials, forks, pickles, serving, wire
from .channel import ResultChannel
from .engine import Engine
from .memory import open_unnamed
from .parcels import NO_SIGNAL, Collector, file_of, pickled, united
from .protocols import Channel, Closed, Launcher, Post, Receiver, Servant, Slot, Task, Worker
from .settings import Reuse

# What a request has in its message; what is larger is in a file. Nothing is in the socket when one
# is sent, and it holds more than this (net.core.wmem_default: 212,992), so that no sender waits.
_MOST_INLINE: Final = 1 << 15  # bytes


_LONGEST: Final = (1 << 31) - 1  # milliseconds that poll(2) can wait

# Who is told to leave has nothing to do. One that takes longer must be stopped, and is killed.
_PATIENCE: Final = 5.0  # seconds


class Crew:
    """The workers of one owner. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        launcher: Launcher,
        make_channel: Callable[[], Channel] = ResultChannel,
        read_credentials: Callable[[], object] = credentials.current,
    ) -> None:
        self.engine = engine
        self._read_credentials = read_credentials
        self.closed: bool = False
        self.launcher = launcher
        self._make_channel = make_channel
        self._idle: list[_Member] = []  # whoever has served last is last
        self._leaving: set[_Member] = set()
        forks.reset_in_children(self)

    def start(self, task: Task) -> tuple[Worker, Receiver]:
        """A fresh worker, for this task alone."""
        channel = self._make_channel()
        try:
            worker = self.launcher.launch(task, channel.reply)
        except BaseException:
            channel.close()
            raise
        finally:
            channel.close_reply()
        return worker, channel

    def engage(
        self, task: Task, method: str, reuse: Reuse, slot: Optional[Slot]
    ) -> tuple[Turn, Answer]:
        """A turn of a worker that is idle, or of a new one."""
        request = _Request(task, method, reuse.idle)
        turn = Turn(self, request, reuse, slot)
        try:
            turn.assign()
        except BaseException:
            request.close()
            raise
        return turn, Answer(turn)

    def find(self, reuse: Reuse, slot: Optional[Slot]) -> Optional[_Member]:
        """One that is idle and may serve once more, on this slot. Under the engine's lock."""
        wanted = self._read_credentials()
        for member in reversed(self._idle.copy()):
            if member.credentials != wanted:
                self.part_with(member)
            elif member.is_free_for(slot) and (
                reuse.max_tasks is None or member.served < reuse.max_tasks
            ):
                self._idle.remove(member)
                return member
        return None

    def hire(self) -> _Member:
        """A new one. Not to be called under the engine's lock, as it takes its time."""
        if not self.closed:  # else work is given again that was under way: its engine drains it
            _close_at_exit(self)
        slots = self.engine.slots
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            requests, receiving = forks.socketpair()
            undo.callback(forks.close_socket, requests)
            theirs.callback(forks.close_socket, receiving)
            channel = ResultChannel(requests)
            undo.callback(channel.close)
            theirs.callback(channel.close_reply)
            with forks.opening:
                begun = forks.private(open_unnamed())
            undo.callback(forks.close, begun)
            with self.engine.lock:
                receipt = slots.open_receipt()
            undo.callback(slots.close_receipt, receipt)
            post = Post(channel.reply, receiving.fileno(), begun, receipt)
            member_credentials = self._read_credentials()
            worker = self.launcher.hire(post)
            member = _Member(self, worker, requests, channel, begun=begun, receipt=receipt)
            member.credentials = member_credentials
            with self.engine.lock:
                member.attend()
            undo.pop_all()
        return member

    def release(self, member: _Member) -> None:
        """It has served, and may again. Under the engine's lock."""
        self._idle.append(member)
        if self.closed:
            self.part_with(member)
        else:
            most = self.engine.slots.count
            if most is not None and len(self._idle) > most:
                self.part_with(self._idle[0])

    def part_with(self, member: _Member) -> None:
        """Have one leave that is idle, or that has ended. Under the engine's lock."""
        if member in self._idle:
            self._idle.remove(member)
        member.retire()
        if self.closed:
            self._end([member])
            self.close_member(member)
        elif member.worker.poll():
            self.close_member(member)
        else:
            self.engine.attend(member.worker.fileno(), member)
            self._leaving.add(member)

    def move_along(self, member: _Member) -> None:
        """There is something to see of one that has no work. Under the engine's lock."""
        if member in self._idle:
            # Not when what another thread has heard of was the answer to its last work.
            if member.is_heard():
                self.part_with(member)
        elif member in self._leaving and member.worker.poll():
            self._leaving.discard(member)
            self.engine.neglect(member.worker.fileno())
            self.close_member(member)

    def close_member(self, member: _Member) -> None:
        """Let go of one that has ended. Under the engine's lock."""
        member.leave_receipt()
        member.close()
        if member.receipt is not None:
            self.engine.slots.close_receipt(member.receipt)

    def close(self) -> None:
        """Have all leave that are idle, and wait for their ends. Those at work leave after it."""
        with self.engine.lock:
            self.closed = True
            # Nobody else sees to them from here on.
            ending = [*self._idle, *self._leaving]
            for member in self._idle:
                member.retire()
            for member in self._leaving:
                self.engine.neglect(member.worker.fileno())
            self._idle = []
            self._leaving = set()
        self._end(ending)
        with self.engine.lock:
            for member in ending:
                self.close_member(member)
            _crews.discard(self)

    def _end(self, members: Iterable[_Member]) -> None:
        """Wait until workers that have no work have ended."""
        clock = self.engine.clock
        deadline = clock() + _PATIENCE
        for member in members:
            while not member.worker.poll():
                remaining = deadline - clock()
                if remaining <= 0:
                    member.worker.send_signal(signal.SIGKILL)
                member.worker.await_end(remaining if remaining > 0 else None)

    def after_fork(self) -> None:
        """In a forked child: they are its parent's, and the descriptors are closed."""
        self._idle = []
        self._leaving = set()
        _crews.discard(self)


class _Member:
    """A worker that serves, as its parent has it."""

    def __init__(
        self,
        crew: Crew,
        worker: Servant,
        requests: socket.socket,
        channel: ResultChannel,
        *,
        begun: int,
        receipt: int,
    ) -> None:
        self.worker = worker
        self.requests = requests
        self.channel = channel
        self.receipt: Optional[int] = receipt  # None once it has been left to a slot
        self.slot: Optional[Slot] = None  # the last that was handed over to it
        self.served = 0  # how much work it was sent
        self.credentials: object = None  # those with which it was started
        self._crew = crew
        self._attended = False
        self._begun = begun
        forks.reset_in_children(self)

    def has_begun(self) -> bool:
        """Whether it has begun all that it was sent."""
        data = os.pread(self._begun, serving.BEGUN.size, 0)
        return bool(data) and serving.BEGUN.unpack(data)[0] == self.served

    def is_heard(self) -> bool:
        """Whether there is anything on its channel, be it the end."""
        waiting = select.poll()
        waiting.register(self.channel.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def is_free_for(self, slot: Optional[Slot]) -> bool:
        """Whether its description holds no slot but this: another's owner may pass that one on."""
        last = self.slot
        return last is None or last is slot or last.receipt != self.receipt

    def leave_receipt(self) -> None:
        """Leave the description to the slot that is on it, for this worker has ended."""
        slot = self.slot
        if slot is not None and slot.kept and slot.receipt == self.receipt:
            slot.kept = False
            self.receipt = None

    def advance(self) -> None:
        self._crew.move_along(self)

    def attend(self) -> None:
        """See to it while it has no work. Under the engine's lock, as what follows."""
        self._crew.engine.attend(self.channel.fileno(), self)
        self._attended = True

    def neglect(self) -> None:
        """See to it no more."""
        if self._attended:
            self._attended = False
            self._crew.engine.neglect(self.channel.fileno())

    def retire(self) -> None:
        """Have it leave, if it has not: there will be no more work."""
        self.neglect()
        forks.close_socket(self.requests)

    def close(self) -> None:
        forks.close_socket(self.requests)
        self.channel.close()
        forks.close(self._begun)
        self.worker.close()

    def after_fork(self) -> None:
        """In a forked child: the descriptor is closed, and its number may be another's by now."""
        self.requests.detach()


class Turn:
    """What one submission has of a worker that serves: a `protocols.Worker`."""

    def __init__(self, crew: Crew, request: _Request, reuse: Reuse, slot: Optional[Slot]) -> None:
        self.member: _Member
        self.answered = False  # and the worker stays
        self.stillborn: bool = False  # its last worker has ended before it began anything
        self._crew = crew
        self._request = request
        self._reuse = reuse
        self._slot = slot
        self._signals: list[int] = []
        self._over = False  # and the worker is idle again
        self._may_be_repeated = True

    def assign(self, *, anew: bool = False) -> None:
        """Send it to a worker that is idle; or to a new one, which is not just about to leave."""
        crew = self._crew
        slots = crew.engine.slots
        while True:
            member: Optional[_Member] = None
            if not anew:
                with crew.engine.lock:
                    member = crew.find(self._reuse, self._slot)
            if member is None:
                member = crew.hire()
            member.served += 1
            sent = False
            try:
                slot = self._slot
                if slot is not None and slot.receipt != member.receipt:
                    with crew.engine.lock:
                        # Before it can begin: from then on the slot is in use while it lives.
                        if member.receipt is not None:
                            slots.hand_over(slot, member.receipt)
                            member.slot = slot
                sent = self._request.send(member.requests)
            finally:
                if not sent:  # it has just left; or it cannot be told, and is to leave
                    with crew.engine.lock:
                        crew.part_with(member)
            if sent:
                self.member = member
                return

    def is_unbegun(self) -> bool:
        """Whether the work can be given to another worker, now that this one has closed."""
        self.stillborn = not self.member.has_begun()
        return self._may_be_repeated and not self._signals and self.stillborn

    def repeat(self) -> None:
        """Give the work to another worker; if that cannot be, it is lost with this one."""
        self._may_be_repeated = False
        crew, member = self._crew, self.member
        try:
            self.assign(anew=True)
        except Exception:
            return
        with crew.engine.lock:
            crew.part_with(member)
            for signum in self._signals:  # sent meanwhile
                self.member.worker.send_signal(signum)

    @property
    def pid(self) -> Optional[int]:
        return self.member.worker.pid

    @property
    def exitcode(self) -> Optional[int]:
        return 0 if self._over else self.member.worker.exitcode

    def poll(self) -> bool:
        """Whether the worker is idle again; or, if it is not used again, whether it has ended."""
        member = self.member
        most = self._reuse.max_tasks
        worn = most is not None and member.served >= most
        if self.answered and not (worn or self._signals or self._crew.closed):
            self._over = True
            self._crew.release(member)
            return True
        member.retire()
        return member.worker.poll()

    def fileno(self) -> int:
        return self.member.worker.fileno()

    def send_signal(self, signum: int) -> None:
        self._signals.append(signum)
        self.member.worker.send_signal(signum)

    def close(self) -> None:
        self._request.close()
        if not self._over:
            self._crew.close_member(self.member)


class Answer:
    """The result of one turn: a `protocols.Receiver`."""

    lasts: bool = True

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def fileno(self) -> int:
        return self._turn.member.channel.fileno()

    def receive(self) -> Union[wire.Frame, Closed, None]:
        turn = self._turn
        received = turn.member.channel.receive()
        if isinstance(received, wire.Frame):
            turn.answered = not received.last
        elif received is Closed.CLOSED and turn.is_unbegun():
            return Closed.UNBEGUN
        return received

    def close(self) -> None:
        """Leave the channel to the worker, with which it is closed."""
        member = self._turn.member
        member.attend()
        if not self._turn.answered:
            member.retire()


class _Request:
    """Work, pickled once, to be sent until somebody begins it."""

    def __init__(self, task: Task, method: str, idle: float) -> None:
        with Collector() as fds:
            content = pickled(task, f"start method {method!r} with reused workers")
        if len(fds) > serving.MOST_DESCRIPTORS - 1:
            raise ValueError(f"the work refers to more than {serving.MOST_DESCRIPTORS - 1} files")
        self._fds: Final[list[int]] = []
        whole: pickles.Pickled = content
        in_file = bool(content.buffers) or content.size > _MOST_INLINE
        if in_file:
            try:
                self._fds.append(file_of(content))
            except OSError:  # there is a limit, on memory or the sizes of files
                in_file, whole = False, united(content)
        header = serving.HEADER.pack(whole.size, int(min(idle * 1000, _LONGEST)), in_file)
        self._message: Final = header if in_file else b"".join((header, *whole.stream))
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for fd in fds:
                # Of its own: whose the others are may close them before this is sent again.
                self._fds.append(forks.duplicate(fd))
            undo.pop_all()

    def send(self, requests: socket.socket) -> bool:
        """Whether a worker may get it; False when it has certainly gone."""
        try:
            if self._fds:
                sent = socket.send_fds(requests, [self._message], self._fds, NO_SIGNAL)
            else:
                sent = requests.send(self._message, NO_SIGNAL)
            if sent < len(self._message):  # no file could hold it
                requests.sendall(memoryview(self._message)[sent:], NO_SIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def close(self) -> None:
        while self._fds:
            forks.close(self._fds.pop())


# Those that may have somebody, whoever drops them: as long as one is known to its parent,
# multiprocessing must not take it for garbage and close its descriptors.
_crews: set[Crew] = set()
_closing_pid: Optional[int] = None


def _close_at_exit(crew: Crew) -> None:
    """Have no worker outlive its parent's end, once the engine has drained what still runs."""
    global _closing_pid
    _crews.add(crew)
    if _closing_pid != os.getpid():
        _closing_pid = os.getpid()
        util.Finalize(None, _close_all, exitpriority=90)


def _close_all() -> None:
    for crew in list(_crews):
        crew.close()
