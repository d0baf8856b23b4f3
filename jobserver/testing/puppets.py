"""Workers that do as they are told: a machine says when each submits, waits, answers and ends.

Every puppet connects to the machine's socket, says who it is, and then obeys one command after the
other. So a tree of processes does one thing at a time, and a model can foretell what comes of it.
Linux only: the sockets have abstract addresses.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Final, Optional

from .. import worker
from ..errors import Blocked, CallbackRaised, LostResult

if TYPE_CHECKING:
    from ..future import Future
    from ..server import Jobserver

Outcome = tuple[Any, ...]
Via = tuple[int, Optional[int]]  # which handle, and how many pieces of work its workers may serve

PATIENCE: Final = 60.0  # seconds; what takes so long hangs
HUGE: Final = 1 << 20  # bytes: more than a pipe holds
EXITCODE: Final = 7  # of a worker that leaves without an answer
PLAIN: Final[Via] = (0, 1)  # a fresh worker
IDLE: Final = 3600.0  # seconds: no worker leaves by itself, unless it is to do so at once


_LARGEST: Final = 1 << 16  # bytes of a message
_PAUSE: Final = 0.001  # seconds between two looks for what nobody tells of

_sockets: set[socket.socket] = set()  # all that are open in this process
_kept: list[object] = []  # what lives until the process ends, as its Futures may still run


class Voice:
    """One end of a connection between a machine and a thread that obeys it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(PATIENCE)
        _sockets.add(connection)

    @classmethod
    def of(cls, name: str, address: str) -> Voice:
        """A thread's end; it has introduced itself."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(address)
        voice = cls(connection)
        voice.say((name, os.getpid(), worker.answering))
        return voice

    def say(self, message: tuple[Any, ...]) -> None:
        self._connection.send(pickle.dumps(message))

    def hear(self, *, forever: bool = False) -> Optional[tuple[Any, ...]]:
        """The next message, or None when the other end is closed."""
        self._connection.settimeout(None if forever else PATIENCE)
        data = self._connection.recv(_LARGEST)
        message: Optional[tuple[Any, ...]] = pickle.loads(data) if data else None
        return message

    def close(self) -> None:
        close(self._connection)


def listen(address: str) -> socket.socket:
    """Where puppets connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    listener.settimeout(PATIENCE)
    _sockets.add(listener)
    return listener


def close(connection: socket.socket) -> None:
    _sockets.discard(connection)
    connection.close()


def what_comes_of(call: Callable[[], object]) -> Outcome:
    """What a call returns or raises, in words that can be sent and compared."""
    try:
        return "value", call()
    except Blocked:
        return ("Blocked",)
    except LostResult as error:
        return "LostResult", error.pid, error.exitcode
    except CallbackRaised as error:
        return "CallbackRaised", error.seqno
    except Exception as error:
        text = str(error)
        known = [phrase for phrase in ("not picklable", "is closed") if phrase in text]
        return (type(error).__name__, *(known or [text]))


def play(jobserver: Jobserver, address: str, number: int) -> object:
    """The work of every puppet: to obey until it is told how to end."""
    stage = Stage(jobserver, address)
    _kept.append(stage)
    return stage.obey(number)


def echo(value: int) -> tuple[int, int]:
    """Work that ends by itself, and tells where it ran."""
    return value, os.getpid()


def _close_inherited() -> None:
    """In a forked child: these are copies of its parent's."""
    while _sockets:
        _sockets.pop().close()


os.register_at_fork(after_in_child=_close_inherited)


class Stage:
    """What the threads of one process share: its handles, its Futures, what callbacks did."""

    def __init__(self, jobserver: Jobserver, address: str) -> None:
        self.handles: list[Jobserver] = [jobserver.__enter__()]
        self.futures: dict[int, Future[object]] = {}
        self.called: dict[int, list[object]] = {}
        self._address = address

    def obey(self, number: int) -> object:
        """Carry out commands until the last, which says how to end."""
        voice = Voice.of(str(number), self._address)
        while True:
            command = voice.hear(forever=True)
            if command is None:
                os._exit(EXITCODE)  # the machine is gone
            name, *args = command
            if name == "end":
                voice.close()
                return self._end(number, *args)
            voice.say(self.perform(name, *args))

    def perform(self, name: str, *args: object) -> Outcome:
        method: Callable[..., object] = getattr(self, name)
        return what_comes_of(lambda: method(*args))

    def in_thread(self, name: str, command: str, *args: object) -> None:
        """Have a thread, which introduces itself with `name`, do one thing and tell of it."""

        def speak() -> None:
            voice = Voice.of(name, self._address)
            try:
                with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
                    voice.say(self.perform(command, *args))
            finally:
                voice.close()

        threading.Thread(target=speak, name=name, daemon=True).start()

    @staticmethod
    def _end(number: int, ending: str) -> object:
        if ending == "raises":
            raise ValueError(f"puppet {number}")
        if ending == "exits":
            os._exit(EXITCODE)
        if ending == "leaves":
            sys.exit(EXITCODE)
        if ending == "huge":
            return bytes(HUGE)
        return number if ending == "answers" else threading.Lock()

    # Commands.

    def submit(
        self, number: int, consume: int, timeout: Optional[float], via: Via, callbacks: int
    ) -> None:
        """Have a puppet below this one."""
        js = self._handle(via)
        args = js, self._address, number
        future = js.submit(play, args=args, consume=consume, timeout=timeout)
        self.futures[number] = future
        called: list[object] = []
        self.called[number] = called
        for seqno in range(callbacks):
            assert future.when_done(called.append, seqno) == seqno

    def refuse(self, via: Via) -> None:
        """Submit what cannot be pickled."""
        self._handle(via).submit(echo, args=(threading.Lock(),), timeout=0)

    def done(self, number: int, timeout: float = 0) -> bool:
        return self.futures[number].done(timeout)

    def wait(self, number: int, timeout: float = PATIENCE, signum: Optional[int] = None) -> bool:
        return self.futures[number].wait(timeout, signal=signum)

    def result(self, number: int) -> object:
        value = self.futures[number].result(PATIENCE)
        return len(value) if isinstance(value, bytes) else value

    def when_done(self, number: int, deed: str) -> int:
        """Register a callback that does something."""
        return self.futures[number].when_done(getattr(self, "_" + deed), number)

    def _notes(self, number: int) -> None:
        self.called[number].append("noted")

    def _raises(self, number: int) -> None:
        self.called[number].append("raised")
        raise LookupError("a callback")

    def _submits(self, number: int) -> None:
        """The slot of what is done is back by now."""
        future = self._handle(PLAIN).submit(echo, args=(number,), timeout=0)
        self.called[number].append(future.result(PATIENCE)[0])

    def noted(self, number: int, count: int) -> list[object]:
        """What so many callbacks noted. Another thread may be at it, if it observes the same."""
        called = self.called[number]
        _await(lambda: len(called) >= count)
        return called

    def forget(self, number: int) -> None:
        """Drop the Future."""
        del self.futures[number], self.called[number]

    def reclaim(self, via: Via) -> None:
        self._handle(via).reclaim_resources()

    def derive(self, how: str) -> None:
        js = self.handles[-1]
        new = copy.copy(js) if how == "copy" else js.revise_env({"JOBSERVER_PUPPET": "1"})
        self.handles = [*self.handles[:1], new]

    def enter_and_leave(self) -> None:
        """Scopes within the one that is entered for as long as the stage is."""
        with self.handles[-1] as js:
            with copy.copy(js):
                pass
            js.reclaim_resources()
        self.handles[0].reclaim_resources()

    def leave(self) -> None:
        """Close the handles; what runs goes on."""
        self.handles[0].__exit__(None, None, None)

    def map(
        self, count: int, taken: int, chunksize: int, buffersize: Optional[int], via: Via
    ) -> list[tuple[int, int]]:
        """The first results of a map that is abandoned then."""
        calls = ((value,) for value in range(count))
        js = self._handle(via)
        results = js.map(echo, calls, chunksize=chunksize, buffersize=buffersize)
        return list(itertools.islice(results, taken))

    def one_by_one(self, count: int, via: Via, idle: float) -> list[tuple[int, int]]:
        """Results of work of which each is awaited before the next is submitted."""
        js = self._handle(via, idle)
        return [js(echo, value).result(PATIENCE) for value in range(count)]

    def at_once(self, count: int, most: Optional[int]) -> list[Outcome]:
        """Have threads submit and wait at the same time: what comes of each."""
        outcomes: list[Outcome] = [()] * count

        def submit_and_wait(value: int) -> None:
            js = self._handle((value, most))
            outcomes[value] = what_comes_of(lambda: js(echo, value).result(PATIENCE))

        threads = [
            threading.Thread(target=submit_and_wait, args=(value,), daemon=True)
            for value in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        return outcomes

    def report(self) -> tuple[int, dict[int, tuple[str, list[object]]]]:
        """How many Futures are tracked; and each that is kept: its repr, what callbacks noted."""
        kept = {
            number: (repr(future).rpartition(",")[0], self.called[number])
            for number, future in self.futures.items()
        }
        return self._tracked(), kept

    def _tracked(self) -> int:
        return int(repr(self.handles[0]).rpartition("tracked=")[2].partition(",")[0].rstrip(")"))

    def await_tracked(self, count: int) -> bool:
        """Reclaim until so few Futures run: what nobody keeps a Future of has ended then."""

        def are_so_few() -> bool:
            self.handles[0].reclaim_resources()
            return self._tracked() <= count

        return _await(are_so_few) and self._tracked() == count

    def _handle(self, via: Via, idle: float = IDLE) -> Jobserver:
        number, most = via
        return self.handles[number % len(self.handles)].replace_workers(most, idle)


def _await(condition: Callable[[], bool]) -> bool:
    """Look again and again for what nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
