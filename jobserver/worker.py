"""The worker's side: set the environment, run the work, answer, end.

This module is all that a fresh process imports of the package, besides `wire`.
"""

from __future__ import annotations

import os
import pickle
import time
from multiprocessing import reduction

from . import pickles, signals, wire

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import BinaryIO, Callable, NoReturn, Optional, Protocol, Union

    class Detachable(Protocol):
        """A descriptor on its way into a new process, as `multiprocessing.reduction.DupFd`."""

        def detach(self) -> int: ...

    Env = Sequence[tuple[str, Optional[str]]]
    Call = tuple[
        Optional[Callable[[], object]],  # preexec
        Callable[..., object],
        Iterable[object],
        Mapping[str, object],
    ]
    Held = tuple[str, int, Optional[int]]  # the pool, the place and its relief; see slots


# The slot on which the work of this process runs, if it does on one.
held: Optional[Held] = None

# The descriptor that says so to the kernel, for as long as this process lives.
receipt: Optional[int] = None

# The descriptor on which the work of this process will be answered.
answering: Optional[int] = None

# What a process forked by a `forker` inherited in memory, because it may not be picklable.
carried: Optional[Callable[[], object]] = None

# The descriptors that came with the work that runs here, -1 in the place of those that somebody has
# taken; see `Descriptor`.
received: list[int] = []


class Descriptor:
    """A descriptor that goes through a socket: its place in the list of those received."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index: int = index

    def __reduce__(self) -> tuple[object, ...]:
        return Received, (self.index,)


class Received:
    """A descriptor that came through a socket; the first to ask has it."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index: int = index

    def __reduce__(self) -> tuple[object, ...]:
        return arrived, (reduction.DupFd(received[self.index]),)

    def detach(self) -> int:
        fd, received[self.index] = received[self.index], -1
        return fd


def arrived(descriptor: Detachable) -> Detachable:
    """What is pickled of a descriptor that is duplicated for the new process."""
    return descriptor


class Carried:
    """Stands in a pickle for `carried`."""

    def __call__(self) -> object:
        assert carried is not None, "only a forker that carries something is sent this"
        return carried()


_NO_KWARGS: dict[str, object] = {}


class InitializerFailed(Exception):
    """An executor's initializer raised, so no work can run; `__cause__` says what."""


# The initializers that have run in this process.
initialized: set[bytes] = set()


class Initialize:
    """Run an executor's initializer, once in a process, then the preexec of its Jobserver."""

    def __init__(
        self,
        key: bytes,
        initializer: Callable[..., object],
        initargs: tuple[object, ...],
        preexec: Optional[Callable[[], object]],
    ) -> None:
        self.key = key
        self.initializer = initializer
        self.initargs = initargs
        self.preexec = preexec

    def __call__(self) -> object:
        if self.key not in initialized:
            try:
                self.initializer(*self.initargs)
            except BaseException as cause:  # whatever it is, no other worker will fare better
                raise InitializerFailed(repr(cause)) from cause
            initialized.add(self.key)
        return None if self.preexec is None else self.preexec()


def run_stored(
    stream: Union[bytes, memoryview, None],
    sizes: Sequence[int],
    descriptors: Iterable[Detachable],
) -> object:
    """Run a call that was pickled once for many workers, with the descriptors it refers to.

    Without a stream it is in a file, the last of the descriptors: of its blocks, the last is the
    stream, and the others are its buffers.
    """
    global received
    others, received = received, [descriptor.detach() for descriptor in descriptors]
    try:
        buffers: Sequence[memoryview] = ()
        if stream is None:
            from . import memory  # most work has no need of it

            # Mapped, and not read: others have the file's position as well.
            *buffers, stream = memory.blocks(received[-1], sizes)
        fn, args = pickles.loads(stream, buffers)
    finally:
        close_received()
        received = others
    return fn(*args)


def run_unblocked(target: Callable[..., object], *args: object) -> None:
    """A worker that multiprocessing started with its parent's signal mask: first drop that."""
    signals.unblock()
    target(*args)


def run_prepared(facts: Mapping[str, object], target: Callable[..., object], *args: object) -> None:
    """A worker that was started late: first learn what multiprocessing could not tell it."""
    from multiprocessing import spawn  # imported already in any process that gets here

    spawn.prepare(dict(facts))
    target(*args)


def run_inherited(reply: int, env: Env, slot: Optional[Held], lock: int, call: Call) -> None:
    """A forked worker of a Jobserver: everything came in memory."""
    _work(reply, env, slot, lock, lambda: call)


def run_received(reply: Detachable, parcel: Detachable) -> None:
    """A worker that was started afresh: `parcel` is a file of two pickles, env first.

    The first also tells what large buffers the second has beside it.
    """
    reply_fd, parcel_fd = reply.detach(), parcel.detach()
    # They arrive inheritable. A program that the work starts must not keep the channel open.
    os.set_inheritable(reply_fd, False)
    os.set_inheritable(parcel_fd, False)
    with open(parcel_fd, "rb") as stream:
        env, slot, lock, beside, for_executor = pickle.load(stream)
        lock_fd = -1
        if lock is not None:
            lock_fd = lock.detach()
            os.set_inheritable(lock_fd, False)

        def load() -> Call:
            with stream:
                return load_call(stream, beside)

        _work(reply_fd, env, slot, lock_fd, load, for_executor=for_executor)


def load_call(stream: BinaryIO, beside: Sequence[int]) -> Call:
    """Unpickle the work from a stream that is the file with the buffers, if there are any."""
    call: Call
    if beside:
        from . import memory  # most work has no need of it

        buffers = memory.blocks(stream.fileno(), beside)
        call = pickles.Unpickler(stream, buffers=buffers).load()
    else:
        call = pickle.load(stream)
    return call


def run_chunk(
    fn: Callable[..., object],
    columns: Sequence[Sequence[object]],
    launched: Optional[float],
    for_executor: bool,
) -> wire.Chunk:
    """Several calls as one piece of work: `fn` over columns of equal length, as `map` has it.

    `launched` is the time, by this machine's clock, at which the chunk was about to be launched.
    What ends the process, and an interrupt, ends the chunk.
    """
    begun = time.monotonic()
    values: list[object] = []
    apart: dict[int, wire.Ending] = {}
    # Not `map`, which takes a StopIteration of `fn` for its own end.
    for args in zip(*columns):
        try:
            values.append(fn(*args))
        except BaseException as error:
            interrupt = isinstance(error, KeyboardInterrupt)
            if interrupt or wire.ends_process(error, for_executor=for_executor):
                raise
            apart[len(values)] = wire.pack_error(error, for_executor=for_executor).ending()
            values.append(None)
    together = wire.pack_values(values, apart, for_executor=for_executor)
    launch = None if launched is None else max(0.0, begun - launched)
    return together, apart, (len(values), launch, time.monotonic() - begun)


def call_with(
    fn: Callable[..., object], args: Iterable[object], kwargs: Mapping[str, object] = _NO_KWARGS
) -> object:
    """A call whose arguments are in two columns, or in one."""
    return fn(*args, **kwargs)


def _work(
    reply: int,
    env: Env,
    slot: Optional[Held],
    lock: int,
    load: Callable[[], Call],
    *,
    for_executor: bool = False,
) -> None:
    global held, receipt, answering
    held, answering = slot, reply
    if slot is not None:
        receipt = lock
    try:
        try:
            revise_environ(env)
            packet = wire.pack_value(call(*load()), for_executor=for_executor)
        except BaseException as error:
            if wire.ends_process(error, for_executor=for_executor):
                raise
            packet = wire.pack_error(error, for_executor=for_executor)
    except BaseException as leaving:
        # Also from pickling the result, or the exception: user code runs there as well.
        answer(reply, wire.pack_error(leaving, for_executor=for_executor), reply)
        leave(leaving)
    else:
        answer(reply, packet, reply)


def revise_environ(env: Iterable[tuple[str, Optional[str]]]) -> None:
    """Set environment variables; None unsets one."""
    for name, value in env:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def call(
    preexec: Optional[Callable[[], object]],
    fn: Callable[..., object],
    args: Iterable[object],
    kwargs: Mapping[str, object],
) -> object:
    """Run the work, within what preexec returns if that is a context manager."""
    around = None if preexec is None else preexec()
    if around is None:
        return fn(*args, **kwargs)
    if not (hasattr(type(around), "__enter__") and hasattr(type(around), "__exit__")):
        raise TypeError(
            "preexec must return None or a context manager, "
            f"not an object of type {type(around).__qualname__}"
        )
    with around:  # type: ignore[attr-defined]  # checked just above
        return fn(*args, **kwargs)
    return None


def answer(reply: int, packet: wire.Packet, files: int, *, last: bool = True) -> None:
    """Send how the work ended; close the channel with the `last` answer.

    `files` is the socket through which files go, -1 if there is none.
    """
    global answering
    try:
        packet.send(reply, files, last=last)
    except ConnectionError:
        pass  # whoever wanted the result has gone
    if last:
        answering = None
        os.close(reply)


def close_received() -> None:
    """Close those of the descriptors received that nobody has taken."""
    while received:
        fd = received.pop()
        if fd >= 0:
            os.close(fd)


def leave(leaving: BaseException) -> NoReturn:
    """End with the exit status that multiprocessing gives, without its traceback on stderr."""
    if isinstance(leaving, SystemExit):
        raise leaving
    raise SystemExit(1) from None


def _forget_slot() -> None:
    """In a forked child: the slot is its parent's. A worker is told of its own."""
    global held, receipt
    held = None
    if receipt is not None:
        os.close(receipt)
        receipt = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_slot)
