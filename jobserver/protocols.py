"""The seams of the library, as Protocols with their promises.

The engine, and everything above it, knows slots, launchers, channels and time only as they are
written here, so each can be replaced: by another source of slots, another way to start workers,
or the doubles that a test drives.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable, Optional, Protocol, TypeVar, Union

import attrs

from . import wire, worker

T_co = TypeVar("T_co", covariant=True)

# A function, its positional and its keyword arguments.
Work = tuple[Callable[..., object], Iterable[object], Mapping[str, object]]


@attrs.frozen
class Task:
    """What a worker is to do."""

    call: worker.Call
    env: worker.Env = ()
    held: Optional[worker.Held] = None  # the slot on which it runs, if it needs one
    receipt: int = -1  # the descriptor that says so, which the worker is to have as well
    for_executor: bool = False  # it ends as ProcessPoolExecutor has it; see `wire`


@attrs.frozen
class Post:
    """What a worker that serves has from its parent: descriptors."""

    reply: int  # on which it answers
    requests: int  # on which it is sent work
    begun: int  # a file in which it counts what it begins
    receipt: int  # what tells of its slots; -1 if nothing does

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.reply, self.requests, self.begun, self.receipt


@attrs.define(eq=False)
class Slot:
    """The right to run one piece of work; see `slots` for what its parts mean."""

    token: bytes  # what goes back into the pipe; nothing for a slot that is lent
    place: int = 0
    relief: Optional[int] = None  # where the receipt of a lent slot goes once it is relieved
    receipt: int = -1  # the description that holds the place
    kept: bool = False  # whether the description is a worker's, and stays with it
    told: bool = False  # whether a worker knows the place, and so may have lent the slot
    tenure: float = 0.0  # the time until which its owner may pass it on to other work


@attrs.frozen
class Grant:
    """What lets a program of another kind draw on the slots by itself, as make's clients do.

    Its descriptors are private to this process, and for the program to inherit.
    """

    read: int  # an end of the pipe as a description of its own, which blocks
    write: int
    presence: int  # while anybody has it, bytes may be with such programs; -1 if nothing tells
    path: str  # a fifo that opens the pipe anew; "" if there is none

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(fd for fd in (self.read, self.write, self.presence) if fd >= 0)


class Closed(enum.Enum):
    """A channel ended before it delivered a frame."""

    CLOSED = "closed"
    UNBEGUN = "unbegun"  # and before the work began, so that another worker may have it


class Clock(Protocol):
    """Seconds that never go backwards, from any origin. `time.monotonic` is one."""

    def __call__(self) -> float: ...


class SlotSource(Protocol):
    """Where slots come from and go back to.

    Slots are conserved: what `take` and `lend` hand out comes back through `give_back`, and what
    processes held that were killed comes back through `audit`. No method waits. The engine calls
    them under its lock.
    """

    @property
    def identity(self) -> str:
        """The same in every process that shares these slots, and nowhere else."""
        ...

    @property
    def count(self) -> Optional[int]:
        """How many slots there are; None when they are another's, who does not say."""
        ...

    def used(self) -> Optional[int]:
        """How many slots are in use, in all processes together; None where that is not known."""
        ...

    @property
    def out(self) -> int:
        """How many slots this process has from it now; not to be closed while it has any."""
        ...

    @property
    def hindered(self) -> bool:
        """Whether the last call was kept from looking, so that `fileno` does not tell when to."""
        ...

    @property
    def recovers(self) -> bool:
        """Whether `audit` can recover anything: then who waits for a slot calls it at times."""
        ...

    @property
    def recovered(self) -> int:
        """How many slots audits have recovered, in all processes together."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable whenever `take` may succeed, unless it was hindered."""
        ...

    def take(self) -> Optional[Slot]:
        """A free slot, or None. OSError when the system is out of something."""
        ...

    def lend(self) -> Optional[Slot]:
        """The slot on which the calling process itself runs, or None when it has none to lend."""
        ...

    @property
    def lent(self) -> Optional[Slot]:
        """The slot that came from `lend` and is not back, nor relieved."""
        ...

    def is_lent(self, slot: Optional[Slot]) -> bool:
        """Whether the slot came from `lend`, and is not relieved."""
        ...

    def relieve(self, slot: Optional[Slot]) -> bool:
        """Make a lent slot one of its own, if a free one can be had: whether that was so."""
        ...

    def held(self, slot: Slot) -> worker.Held:
        """What a worker on this slot has to know of it."""
        ...

    def open_receipt(self) -> int:
        """A description for a worker that serves, on which its slots will be; -1 if none is needed.

        It is the caller's, and closed by `close_receipt`. OSError when there is no room for it.
        """
        ...

    def close_receipt(self, receipt: int) -> None:
        """Close such a description, on which there is no slot."""
        ...

    def hand_over(self, slot: Slot, receipt: int) -> None:
        """Have such a description tell of a slot."""
        ...

    def grant(self, slot: Slot) -> Optional[Grant]:
        """Let a program that runs on this slot draw on the others; None when it was hindered.

        The grant is the caller's, who calls `withdraw` once the slot is given back. OSError when
        there are no descriptors for it, or where a pipe cannot be opened anew.
        """
        ...

    def withdraw(self, grant: Grant) -> None:
        """Close a grant. What its program did not give back is recovered once no heir is left."""
        ...

    def give_back(self, slot: Slot, *, ended: bool = True) -> bool:
        """Free a slot. Not `ended`: the worker that has a copy of its receipt may still run.

        False when it is a lent slot on which somebody runs whom a lost worker left behind; then it
        is to be given back again after a while.
        """
        ...

    def places(self) -> frozenset[int]:
        """Where slots are held; other places when a slot has moved, as far as can be told."""
        ...

    def audit(self) -> int:
        """Recover what the dead have held: how many slots that were."""
        ...

    def close(self) -> None:
        """Let go of what this process holds of the source; slots of others are not touched."""
        ...


class Kernel(Protocol):
    """What a pool of slots asks of the kernel.

    Each call is one step for all other processes: it happens whole or not at all, wherever the
    caller is killed. A *description* is what `open` made, known by its descriptor; a forked child
    or whoever was sent the descriptor has the same one. It holds places until it unlocks them
    or the last of its descriptors is closed, as they are by the kernel when a process ends.
    """

    @property
    def keeps_receipts(self) -> bool:
        """Whether there are any; without, `lock` does nothing and nothing can be recovered."""
        ...

    @property
    def held(self) -> Optional[worker.Held]:
        """The slot on which this process runs."""
        ...

    @property
    def descriptors(self) -> Sequence[int]:
        """What another process needs to have the same pipe, receipts and gate."""
        ...

    @property
    def directory(self) -> str:
        """What it needs besides: where the receipts are, or "" if they are nowhere."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable when there are bytes."""
        ...

    def new_place(self) -> int:
        """A place that nobody else has; `slots.DEPTHS` of them begin with it."""
        ...

    def read(self) -> bytes:
        """Take a byte from the pipe; b"" if there is none."""
        ...

    def write(self, data: bytes) -> None:
        """Put bytes into the pipe."""
        ...

    def waiting(self) -> int:
        """How many bytes are in the pipe."""
        ...

    def reopen(self) -> tuple[int, int, str]:
        """The pipe's two ends as descriptions that block, and the path of its fifo, or "".

        `close` is their end. OSError if there is no room for them.
        """
        ...

    def open(self) -> int:
        """A description of its own, which holds no place. OSError if there is no room for it."""
        ...

    def lock(self, receipt: int, place: int) -> None:
        """Have a description hold one place more. Others may hold the same."""
        ...

    def unlock(self, receipt: int, place: int) -> None:
        """Have a description hold one place less, also for who has a copy."""
        ...

    def close(self, receipt: int) -> None:
        """Close this process's descriptor."""
        ...

    def find(self, start: int, stop: int) -> Optional[int]:
        """Any place from `start` to before `stop` that is held by somebody, or None."""
        ...

    def share(self) -> bool:
        """Enter the gate beside others that share it; False when somebody is alone there."""
        ...

    def exclude(self) -> bool:
        """Enter the gate alone; False when somebody else is there."""
        ...

    def leave(self) -> None:
        """Leave the gate, as one does who is killed there."""
        ...

    def pause(self) -> None:
        """Let others get on, for a moment."""
        ...

    def recovered(self) -> int:
        """How many bytes were `noted`."""
        ...

    def note(self, recovered: int) -> None:
        """Note that so many bytes were recovered; to be called alone in the gate."""
        ...

    def shut(self) -> None:
        """Close what this process has of the pipe, the receipts and the gate."""
        ...


class Poller(Protocol):
    """Waits for descriptors to become readable. Thread-safe, but for `close`."""

    def watch(self, fd: int, subject: object) -> None:
        """Report `subject` whenever `fd` is readable, and nobody else who was reported for it."""
        ...

    def unwatch(self, fd: int) -> None:
        """Stop that. To be called before `fd` is closed."""
        ...

    def poll(self, timeout: Optional[float]) -> Iterable[object]:
        """Wait for at most so many seconds (None: without end); the subjects that are ready."""
        ...

    def wake(self) -> None:
        """Have a `poll` that another thread is waiting in return, whoever else polls with 0."""
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """Where the result of one piece of work arrives. No method waits."""

    @property
    def lasts(self) -> bool:
        """Whether it stays open when it is closed here: then its owner watches it again."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable whenever `receive` may know more."""
        ...

    def receive(self) -> Union[wire.Frame, Closed, None]:
        """The frame once it is whole, a `Closed` if there will be none, None if not yet known."""
        ...

    def close(self) -> None:
        """Close the receiving end."""
        ...


class Channel(Receiver, Protocol):
    """What carries results from one worker, from its making to its close."""

    @property
    def reply(self) -> int:
        """The descriptor on which the worker is to answer."""
        ...

    def close_reply(self) -> None:
        """Close `reply` in this process, once: the worker has its own copy, or there is none."""
        ...


class Worker(Protocol):
    """A worker, as its parent sees it, or one turn of it. No method waits.

    The engine's lock guards it.
    """

    @property
    def pid(self) -> Optional[int]:
        """Its process id, or None if that never became known."""
        ...

    @property
    def exitcode(self) -> Optional[int]:
        """How it ended, once `poll` was True; negative: the signal; None if it cannot be told."""
        ...

    def poll(self) -> bool:
        """Whether it has ended. The first True has reaped it; not called after that."""
        ...

    def fileno(self) -> int:
        """A descriptor that becomes readable when it ends."""
        ...

    def send_signal(self, signum: int) -> None:
        """Send a signal; no error when it has just gone. Not called after `poll` was True."""
        ...

    def close(self) -> None:
        """Close its descriptors, once it has ended."""
        ...


class Servant(Worker, Protocol):
    """A worker that serves, or that is about to end as nobody has work for it."""

    def await_end(self, timeout: Optional[float]) -> None:
        """Wait until it has ended, for at most so many seconds (None: without end)."""
        ...


class Launcher(Protocol):
    """A way to start workers."""

    def launch(self, task: Task, reply: int) -> Worker:
        """Start a worker that sends its frame to the descriptor `reply`.

        The caller closes its own copy of `reply` afterwards. Raises TypeError when the work
        cannot be pickled, OSError when the system is out of something; then nothing was started
        and nothing is left open.
        """
        ...

    def hire(self, post: Post) -> Servant:
        """Start a worker that serves, as `serving` has it; raises OSError as `launch` does."""
        ...


class FutureLike(Protocol[T_co]):
    """What users of a Future may rely on, for code that takes a Future of any make."""

    def done(self, timeout: Optional[float] = 0) -> bool: ...

    def wait(self, timeout: Optional[float] = None, *, signal: Optional[int] = None) -> bool: ...

    def result(self, timeout: Optional[float] = None) -> T_co: ...

    def when_done(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> int: ...
