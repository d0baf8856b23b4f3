"""`Jobserver.map`: its inputs, checked, and the iterator over its results."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Callable, Final, Generic, Optional, TypeVar, Union, cast

from . import hints, wire
from .chunks import Chunksize, Growth
from .cpus import usable_cpus
from .errors import Blocked, CallbackRaised
from .future import load
from .lifecycle import State
from .protocols import Slot, Work
from .resources import Resources
from .run import Run
from .settings import Settings
from .tracebacks import clear_traceback
from .worker import call_with, run_chunk

T = TypeVar("T")

# While the results of a chunk are taken, how often to look whether more can be submitted.
_LOOK: Final = 0.001  # seconds

Call = tuple[tuple[object, ...], dict[str, object]]


def calls_of(argses: object, kwargses: object, *, lazily: bool) -> Iterator[Call]:
    """The calls of a map, checked one by one; all of them now, unless `lazily`."""
    if argses is None and kwargses is None:
        return iter(())
    for name, whole in (("argses", argses), ("kwargses", kwargses)):
        if whole is not None and not _is_sequence(whole):
            raise TypeError(
                f"{name} must be an iterable with one element a call, not {whole!r} "
                f"of type {_type_name(whole)}"
            )
    if isinstance(argses, Sized) and isinstance(kwargses, Sized) and len(argses) != len(kwargses):
        raise _unequal(len(argses), len(kwargses))
    calls = _calls(argses, kwargses)
    return calls if lazily else iter(list(calls))


def _calls(argses: object, kwargses: object) -> Iterator[Call]:
    if argses is None:
        kwargs_only = cast("Iterable[object]", kwargses)
        return (((), _kwargs(index, value)) for index, value in enumerate(kwargs_only))
    if kwargses is None:
        args_only = cast("Iterable[object]", argses)
        none: dict[str, object] = {}
        return ((_args(index, value), none) for index, value in enumerate(args_only))
    return _pairs(cast("Iterable[object]", argses), cast("Iterable[object]", kwargses))


def _pairs(argses: Iterable[object], kwargses: Iterable[object]) -> Iterator[Call]:
    missing = object()
    pairs = itertools.zip_longest(argses, kwargses, fillvalue=missing)
    for index, (args, kwargs) in enumerate(pairs):
        if args is missing or kwargs is missing:
            longer = index + 1 + sum(1 for _ in pairs)
            raise _unequal(*((index, longer) if args is missing else (longer, index)))
        yield _args(index, args), _kwargs(index, kwargs)


def _unequal(argses: int, kwargses: int) -> ValueError:
    return ValueError(f"argses and kwargses must have the same length, not {argses} and {kwargses}")


def _args(index: int, value: object) -> tuple[object, ...]:
    if type(value) is tuple:  # an abstract class takes its time to say so
        return cast("tuple[object, ...]", value)
    if isinstance(value, (str, bytes)) or not _is_sequence(value):
        raise TypeError(
            f"argses[{index}] must be an iterable of positional arguments, not {value!r} "
            f"of type {_type_name(value)}{hints.for_one_argument(value)}"
        )
    return tuple(cast("Iterable[object]", value))


def _kwargs(index: int, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"kwargses[{index}] must be a mapping of keyword arguments, not {value!r} "
            f"of type {_type_name(value)}"
        )
    return dict(cast("Mapping[str, object]", value))


def _is_sequence(value: object) -> bool:
    """Whether it has elements in an order. A mapping, of which only keys would count, has not."""
    return isinstance(value, Iterable) and not isinstance(value, Mapping)


def _type_name(value: object) -> str:
    return type(value).__qualname__


def _without_frames(error: Exception) -> Exception:
    """An error that the iterator keeps: frames refer to it, and it would never be abandoned."""
    parts: list[Optional[BaseException]] = [error]
    seen: set[int] = set()  # as `raise error from error` is allowed
    while parts:
        part = parts.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            clear_traceback(part)
            parts += part.__cause__, part.__context__
    return error


def _not_the_end() -> RuntimeError:
    """What stands for a StopIteration, which would end the iterator that raises it."""
    return RuntimeError("a call of this map raised StopIteration")


class _Chunk:
    """One submission of the map, or why there is none; and the endings of its calls."""

    __slots__ = ("endings", "size", "source")

    def __init__(self, size: int, source: Union[Run, BaseException]) -> None:
        self.size = size  # calls whose endings have not been taken
        self.source = source
        self.endings: Optional[wire.Endings] = None

    def ready(self) -> bool:
        return not isinstance(self.source, Run) or self.source.state is State.DONE


class Results(Iterator[T], Generic[T]):
    """The results of a map, in order. Not for several threads at once."""

    def __init__(
        self,
        resources: Resources,
        settings: Settings,
        fn: Callable[..., T],
        calls: Iterator[Call],
        *,
        timeout: Optional[float],
        chunksize: Chunksize,
        buffersize: Optional[int],
    ) -> None:
        self._pid = os.getpid()
        self._resources = resources
        self._settings = settings
        self._fn = fn
        self._calls = calls
        self._clock = resources.engine.clock
        self._timeout = timeout
        self._deadline = resources.engine.deadline(timeout)
        self._chunksize = chunksize
        self._growth = Growth(resources.engine.slots.count or usable_cpus())  # for "auto" only
        self._unmeasured: list[_Chunk] = []  # those that run, for the most part
        self._look_at = 0.0  # there is no need to see before what can be submitted
        self._buffersize = buffersize
        self._next: list[Call] = []  # read, but not submitted
        self._broken: Optional[BaseException] = None  # what reading the inputs raised after `_next`
        self._outstanding: deque[_Chunk] = deque()
        self._held: list[Slot] = []  # for the next submission
        self._pause = resources.engine.clock()  # the gate is not to be asked before
        self._submit_what_can_be()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this iterator belongs to process {self._pid}, of which this process is a fork"
            )
        if self._chunksize == "auto" and self._outstanding:
            # Small calls are many: what else there is to do is not looked for at each of them.
            head = self._outstanding[0]
            if head.size > 1 and head.endings is not None and self._clock() < self._look_at:
                head.size -= 1
                try:
                    return cast("T", head.endings.take())  # `_fn` returns T
                except StopIteration as error:
                    raise _not_the_end() from error
        while True:
            self._submit_what_can_be()
            if self._outstanding:
                if self._outstanding[0].ready():
                    try:
                        return self._take(self._outstanding[0])
                    except StopIteration as error:
                        raise _not_the_end() from error
                    finally:
                        # What it raises is kept, and refers to this frame: do not refer back.
                        del self
                self._wait(self._outstanding[0])
            elif self._read():
                # Nothing of ours is under way: wait as any other submission does.
                self._submit_and_wait()
            else:
                raise StopIteration

    def _take(self, head: _Chunk) -> T:
        """The ending of the next call, of which nothing is kept."""
        try:
            head.size -= 1
            if head.size == 0:
                self._outstanding.popleft()
            if isinstance(head.source, BaseException):
                raise head.source
            if self._chunksize == 1:
                return cast("T", load(head.source))  # `_fn` returns T
            if head.endings is None:
                together, apart, _ = cast("wire.Chunk", load(head.source))  # of `run_chunk`
                head.endings = wire.Endings(together, apart)
            return cast("T", head.endings.take())  # `_fn` returns T
        finally:
            del self, head  # as in `__next__`

    def _read(self) -> bool:
        """Have the next chunk of calls at hand; False at the end of the inputs.

        What reading an input raises takes the place of that input's result, and is the last.
        """
        if self._broken is None:
            further = max(0, self._size() - len(self._next))
            try:
                # Keeps what there was before an exception.
                self._next.extend(itertools.islice(self._calls, further))
            except KeyboardInterrupt:
                raise  # it need not be of the input, and does not wait for its turn
            except BaseException as error:
                self._broken = error
        if not self._next and self._broken is not None:
            self._outstanding.append(_Chunk(1, self._broken))
            self._broken = None
            self._calls = iter(())
        return bool(self._next)

    def _size(self) -> int:
        """How many calls the next chunk is to have."""
        if isinstance(self._chunksize, int):
            return self._chunksize
        for chunk in [chunk for chunk in self._unmeasured if chunk.ready()]:
            self._unmeasured.remove(chunk)
            self._measure(chunk)
        unread = operator.length_hint(self._calls, -1)  # of a list's iterator only it is known
        return self._growth.size(None if unread < 0 else len(self._next) + unread)

    def _measure(self, chunk: _Chunk) -> None:
        try:
            assert isinstance(chunk.source, Run), "only what was launched is measured"
            _, _, timing = cast("wire.Chunk", load(chunk.source))  # of `run_chunk`
        except KeyboardInterrupt:
            raise  # of this process: a worker's is a LostResult
        except BaseException:
            return  # which is told when its turn comes
        self._growth.note(*timing)

    def _work(self, launched: Optional[float] = None) -> Work:
        if self._chunksize == 1:
            args, kwargs = self._next[0]
            return self._fn, args, kwargs
        argses = [args for args, _ in self._next]
        kwargses = [kwargs for _, kwargs in self._next]
        columns = (argses, kwargses) if any(kwargses) else (argses,)
        fn = functools.partial(call_with, self._fn)
        return run_chunk, (fn, columns, launched, False), {}

    def _work_now(self) -> Work:
        """As `_work`, to be launched now."""
        return self._work(time.monotonic())

    def _submitted(self, source: Union[Run, Exception]) -> None:
        chunk = _Chunk(len(self._next), source)
        self._outstanding.append(chunk)
        if self._chunksize == "auto" and isinstance(source, Run):
            self._unmeasured.append(chunk)
        self._next = []

    def _wants_more(self) -> bool:
        """Whether there is something to submit, and room for it."""
        if self._buffersize is not None and len(self._outstanding) >= self._buffersize:
            return False
        return not self._expired() and self._read()

    def _expired(self) -> bool:
        return self._deadline is not None and self._resources.engine.clock() >= self._deadline

    def _over(self) -> str:
        assert self._timeout is not None, "without it there is no deadline"
        return f"the {hints.seconds(self._timeout)} of this map are over"

    def _submit_what_can_be(self) -> None:
        """Submit as much as buffer, gate and slots allow without waiting."""
        resources = self._resources
        self._look_at = self._clock() + _LOOK
        try:
            resources.engine.advance()
            self._submit_each(resources)
        finally:
            resources.put_back(self._held)

    def _submit_each(self, resources: Resources) -> None:
        # A function of its own: see `callbacks._issue_queue`.
        while self._wants_more() and resources.engine.clock() >= self._pause:
            try:
                outcome = resources.attempt(self._settings, self._work_now, self._held)
            except Exception as error:
                self._submitted(_without_frames(error))
                continue
            if outcome is None:
                break
            if isinstance(outcome, Run):
                self._submitted(outcome)
            else:
                self._pause = resources.engine.clock() + outcome

    def _submit_and_wait(self) -> None:
        """Submit one chunk, waiting for gate and slot. Blocked at the deadline."""
        if self._expired():
            raise Blocked(f"no next call was submitted: {self._over()}")
        try:
            run = self._resources.submit(self._settings, self._work(), 1, self._deadline)
        except (Blocked, CallbackRaised):
            raise  # nothing was submitted, and the inputs are still at hand
        except Exception as error:
            self._submitted(_without_frames(error))
        else:
            self._submitted(run)

    def _wait(self, head: _Chunk) -> None:
        """Wait until the head is there, or more can be submitted. Blocked at the deadline."""
        engine = self._resources.engine
        until = self._deadline
        more = self._wants_more()
        paused = more and engine.clock() < self._pause
        if paused:
            until = self._pause if until is None else min(until, self._pause)

        def ready() -> bool:
            if head.ready():
                return True
            if more and not paused:
                if self._resources.closed:
                    return True  # for the next submission to tell
                slot = engine.slots.take()
                if slot is not None:
                    self._held.append(slot)
            return bool(self._held)

        try:
            there = engine.wait(ready, until, for_slot=more and not paused)
        except BaseException:
            self._resources.put_back(self._held)
            raise
        if not there and self._expired():
            raise Blocked(f"no next result came: {self._over()}")

    def __del__(self) -> None:
        # Abandoned early: the slots of what has finished are not to wait for somebody's call.
        # And a slot that an interrupt left here is put back.
        resources: Optional[Resources] = getattr(self, "_resources", None)
        if resources is None or not hasattr(self, "_held") or self._pid != os.getpid():
            return
        if self._held or self._outstanding:
            resources.engine.finalize(functools.partial(_abandon, resources, self._held))


def _abandon(resources: Resources, held: list[Slot]) -> None:
    """What `Results.__del__` has to do, without keeping the results."""
    resources.put_back(held)
    resources.engine.glance()
