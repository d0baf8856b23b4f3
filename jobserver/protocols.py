"""The seams of the library, as Protocols with their promises.

The engine, and everything above it, knows slots, launchers, channels and time only as they are
written here, so each can be replaced: by another source of slots, another way to start workers,
or the doubles that a test drives.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
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
    pool: Optional[str] = None  # the pool of whose slots it holds one


@attrs.frozen(eq=False)
class Slot:
    """The right to run one piece of work; `token` is the byte that goes back (lent: none)."""

    token: bytes


class Closed(enum.Enum):
    """A channel ended before it delivered a frame."""

    CLOSED = "closed"


class Clock(Protocol):
    """Seconds that never go backwards, from any origin. `time.monotonic` is one."""

    def __call__(self) -> float: ...


class SlotSource(Protocol):
    """Where slots come from and go back to.

    Slots are conserved: what `take` and `lend` hand out comes back through `give_back`, once.
    No method waits. The engine calls them under its lock.
    """

    @property
    def identity(self) -> str:
        """The same in every process that shares these slots, and nowhere else."""
        ...

    @property
    def count(self) -> int:
        """How many slots there are."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable whenever `take` may succeed."""
        ...

    def take(self) -> Optional[Slot]:
        """A free slot, or None."""
        ...

    def lend(self) -> Optional[Slot]:
        """The slot on which the calling process itself runs, or None when it has none to lend."""
        ...

    def is_lent(self, slot: Optional[Slot]) -> bool:
        """Whether the slot came from `lend`."""
        ...

    def give_back(self, slot: Slot) -> None:
        """Free a slot."""
        ...

    def close(self) -> None:
        """Let go of what this process holds of the source; slots of others are not touched."""
        ...


class Poller(Protocol):
    """Waits for descriptors to become readable. Thread-safe, but for `close`."""

    def watch(self, fd: int, subject: object) -> None:
        """Report `subject` whenever `fd` is readable."""
        ...

    def unwatch(self, fd: int) -> None:
        """Stop that. To be called before `fd` is closed."""
        ...

    def poll(self, timeout: Optional[float]) -> Iterable[object]:
        """Wait for at most so many seconds (None: without end); the subjects that are ready."""
        ...

    def wake(self) -> None:
        """Have a `poll` that another thread is waiting in return."""
        ...

    def close(self) -> None: ...


class Channel(Protocol):
    """The receiving end of one piece of work's result. No method waits."""

    def fileno(self) -> int:
        """A descriptor that is readable whenever `receive` may know more."""
        ...

    def receive(self) -> Union[wire.Frame, Closed, None]:
        """The frame once it is whole, `CLOSED` if there will be none, None if not yet known."""
        ...

    def close(self) -> None: ...


class Worker(Protocol):
    """A started worker, as its parent sees it. No method waits; the engine's lock guards it."""

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


class Launcher(Protocol):
    """A way to start workers."""

    def launch(self, task: Task, reply: int) -> Worker:
        """Start a worker that sends its frame to the descriptor `reply`.

        The caller closes its own copy of `reply` afterwards. Raises TypeError when the work
        cannot be pickled, OSError when the system is out of something; then nothing was started
        and nothing is left open.
        """
        ...


class FutureLike(Protocol[T_co]):
    """What users of a Future may rely on, for code that takes a Future of any make."""

    def done(self, timeout: Optional[float] = 0) -> bool: ...

    def wait(self, timeout: Optional[float] = None, *, signal: Optional[int] = None) -> bool: ...

    def result(self, timeout: Optional[float] = None) -> T_co: ...

    def when_done(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> int: ...
