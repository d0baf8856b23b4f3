"""A hypothesis machine that drives an executor over real processes, beside a model of it.

    from hypothesis.stateful import run_state_machine_as_test
    from jobserver.testing.executors import Executor

    run_state_machine_as_test(Executor)

It drives the package in which it is, with the start method that its attribute `method` names. When
it finds something, hypothesis prints a short program; it runs when it is pasted below

    from jobserver.testing.executors import *
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import itertools
import logging
import os
import shutil
import signal
import struct
import tempfile
import termios
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, Callable, ClassVar, Final, Optional, cast

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
)

from .. import errors
from ..awaiting import AwaitedFuture
from ..executor import JobserverExecutor
from ..future import Future
from ..server import Jobserver, share
from . import executor_model as m
from . import gates
from .machines import name_of, tally
from .model import Outcome
from .processes import children_of

__all__ = ("Executor",)

NOTHING: Outcome = ("value", None)
CHUNK: Final = "a chunk"
FOREVER = 1e4  # seconds: longer than anything here takes

ENDINGS = st.sampled_from(tuple(gates.ENDINGS))
INITIALIZERS = st.sampled_from((None, None, None, "passes", "fails"))
WAYS = (
    "result",
    "exception",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "ALL_COMPLETED",
    "as_completed",
)


class CallbackFailed(Exception):
    """What a callback raises; concurrent.futures logs it, and nothing else comes of it."""


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return record.exc_info is None or record.exc_info[0] is not CallbackFailed


class Elsewhere:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._answers: list[Outcome] = []
        self.thread: threading.Thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._answers.append(what_comes_of(self._call))
        del self._call

    def answer(self, patience: float) -> Outcome:
        """What came of it."""
        self.thread.join(patience)
        return self._answers[0] if self._answers else ("nothing", f"within {patience} s")


class Observed(JobserverExecutor):
    """An executor that shows the futures which `map` keeps to itself, and its slots."""

    futures: dict[int, concurrent.futures.Future[object]]

    def _submit_group(
        self, fn: Callable[..., Any], group: list[tuple[object, ...]], chunksize: int
    ) -> AwaitedFuture[object]:
        future = super()._submit_group(fn, group, chunksize)
        self.futures[cast("int", group[0][1])] = future
        return future

    def free_slots(self) -> int:
        """The tokens in the pipe, as the kernel counts them."""
        fd = share(self._jobserver)[0].engine.slots.fileno()
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


class Results:
    """The iterator over a map's results, and the model's."""

    def __init__(self, iterator: Iterator[object], told: m.Map) -> None:
        self.iterator = iterator
        self.told = told


class Executor(RuleBasedStateMachine):
    """An executor and whoever uses it: everything that a user can do with one, and more at once.

    Each rule tells the model and the executor; then everything that can be seen is compared, once
    it is as the model has foretold, or patience has ended.
    """

    works: Bundle[m.Piece] = Bundle("works")
    maps: Bundle[Results] = Bundle("maps")

    method: ClassVar[str] = "fork"
    patience: ClassVar[float] = 60.0  # seconds that anything may take
    found: ClassVar[Optional[str]] = None  # the step that failed last, and how

    def __init__(self) -> None:
        super().__init__()
        self.numbers: itertools.count[int] = itertools.count()
        self.futures: dict[int, concurrent.futures.Future[object]] = {}
        self.direct: dict[int, Future[object]] = {}
        self.every_map: list[Results] = []
        self.leaving: list[Elsewhere] = []  # shutdowns that wait
        self.log: list[Outcome] = []  # what callbacks did
        self.logged: threading.Condition = threading.Condition()
        self.settled: set[int] = set()  # the pieces whose ends were compared
        self.executor: Optional[Observed] = None
        self.jobserver: Optional[Jobserver] = None
        self.step: str = ""
        self.failed: bool = False
        _start_helpers(self.method)
        self.before: set[str] = _what_is_here()
        self.logger: logging.Logger = logging.getLogger("concurrent.futures")
        self.logger.addFilter(_is_worth_a_line)
        self.home: gates.Home = gates.Home(tempfile.mkdtemp())

    @initialize(slots=st.integers(1, 3), given=st.booleans(), initializer=INITIALIZERS)
    def begin(self, slots: int, given: bool, initializer: Optional[str]) -> None:
        self.step = "begin"
        self.slots = slots
        if given:
            self.jobserver = Jobserver(self.method, slots).__enter__()
        self.model: m.Model = m.Model(slots, initializer)
        self._make(initializer)

    def _make(self, initializer: Optional[str]) -> None:
        options: dict[str, Any] = {}
        if initializer is not None:
            options["initializer"] = gates.initialize
            options["initargs"] = (self.home.path, initializer == "fails")
        if self.jobserver is None:
            self.executor = Observed(self.slots, self.method, **options)
        else:
            self.executor = Observed(self.jobserver, **options)
        self.executor.futures = self.futures

    # How things are compared.

    def same(self, what: str, actual: object, foretold: object) -> None:
        if actual != foretold:
            self.failed = True
            text = f"{self.step}: {what} is {actual!r}, not {foretold!r}"
            type(self).found = text
            raise AssertionError(text)

    def tell(self, outcome: object) -> None:
        tally["Executor", self.step, str(outcome)] += 1

    def settle(self, outcome: object = "done") -> None:
        """Wait until all is as foretold, and compare."""
        self.tell(outcome)
        self.model.launch()
        self._await_what_is_foretold()
        self._compare_pieces()
        self._compare_callbacks()
        self._compare_executor()

    def _await_what_is_foretold(self) -> None:
        told = self.model
        ends = {
            self.futures[each.number]: each.number for each in told.pieces.values() if each.done
        }
        _, late = concurrent.futures.wait(ends, self.patience)
        self.same("what nobody was told the end of", sorted(ends[each] for each in late), [])
        self.home.hear(told.begun.keys(), self.patience)
        for piece in told.running:
            # There is no event that tells it, for work that an initializer holds up.
            self._await(f"{piece.number} to run", self.futures[piece.number].running)
        if told.closing and self.executor is not None:
            self._await("the shutdown", lambda: "(active," not in repr(self.executor))
        with self.logged:
            self.logged.wait_for(lambda: len(self.log) >= len(told.log), self.patience)

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not condition():
            self.same(f"whether there is time for {what}", time.monotonic() < deadline, True)
            time.sleep(0.001)

    def _compare_pieces(self) -> None:
        told = self.model
        begun = {number: initialized for number, (_, initialized) in self.home.begun.items()}
        self.same("what has begun, and whether initialized", begun, told.begun)
        for number, piece in told.pieces.items():
            future = self.futures[number]
            self.same(f"the state of {number}", state_of(future), piece.state)
            if piece.done and number not in self.settled:
                self._compare_outcome(piece, future)

    def _compare_outcome(self, piece: m.Piece, future: concurrent.futures.Future[object]) -> None:
        self.settled.add(piece.number)
        what = what_comes_of(lambda: self._ask(piece, "result", 0))
        self.same(f"what came of {piece.number}", what, piece.outcome)
        error = None if future.cancelled() else future.exception()
        if isinstance(error, errors.LostResult) and piece.number in self.home.begun:
            self.same("its pid", error.pid, self.home.begun[piece.number][0])

    def _ask(self, piece: m.Piece, way: str, timeout: float) -> object:
        future = self.futures[piece.number]
        error = future.exception(timeout) if way == "exception" else None
        if error is not None:
            raise error
        value = future.result(timeout)
        # The values of a chunk are seen through its iterator.
        return value if piece.calls is None else CHUNK

    def _compare_callbacks(self) -> None:
        """Each once, and in order for each future; futures end in any order."""
        with self.logged:
            self.same("what callbacks did", sorted(self.log, key=_first_two), self._told_log())
            ordered = [each[:2] for each in self.log]
            for number in {each[0] for each in self.log}:
                seqnos = [seqno for other, seqno in ordered if other == number]
                self.same("the order of callbacks", seqnos, list(range(len(seqnos))))

    def _told_log(self) -> list[Outcome]:
        return sorted(self.model.log, key=_first_two)

    def _compare_executor(self) -> None:
        told = self.model
        if self.executor is not None:
            seen = repr(self.executor).split(", jobserver=")[0]
            self.same("the repr", seen, f"Observed({told.state}, pending={len(told.pending)}")
            if self.jobserver is not None or not told.ended:
                self.same("the number of free slots", self.executor.free_slots(), told.free)
        for future in self.direct.values():
            self.same("whether it is done", future.done(), False)
        for each in self.leaving:
            if told.ended:
                self.same("what came of shutdown", each.answer(self.patience), ("value", None))
            else:
                self.same("whether shutdown waits", each.thread.is_alive(), True)
        if told.ended:
            self.leaving.clear()

    # Submissions.

    @rule(
        target=works,
        task=st.one_of(st.just("held"), st.sampled_from(m.TASKS)),
        deeds=st.lists(st.sampled_from(("notes", "raises", "submits")), max_size=2),
    )
    @precondition(lambda self: self.has_executor and self.is_small)
    def submit(self, task: str, deeds: list[str]) -> MultipleResults[m.Piece]:
        self.step = "submit"
        number = next(self.numbers)
        self._hold(number, task)
        foretold = self.model.refusal
        what = what_comes_of(lambda: self._submit(number, task))
        self.same("what came of it", what, foretold or ("value", None))
        made = [] if foretold else [self.model.submit(m.Piece(number, task))]
        for piece in made:
            # Work that ends by itself may do so before there is a second one.
            for deed in deeds if task == "held" else deeds[:1]:
                self._add_done_callback(piece, deed, piece)
        self.settle(task if made else what[0])
        return multiple(*made)

    def _hold(self, number: int, task: str) -> None:
        if task == "held":
            self.home.hold(number)

    def _submit(self, number: int, task: str = "held") -> None:
        if self.executor is None:  # forgotten
            raise RuntimeError("cannot schedule new futures after shutdown")  # as it would say
        cargo = gates.Cargo(task) if task not in ("held", "quick") else None
        self.futures[number] = self.executor.submit(
            gates.perform, self.home.path, number, task, cargo
        )

    @rule(target=works, count=st.integers(2, 3))
    @precondition(lambda self: self.has_executor and self.is_small and self.begins)
    def submit_from_threads(self, count: int) -> MultipleResults[m.Piece]:
        """At the same time, so in any order: they are alike."""
        self.step = "submit_from_threads"
        numbers = [next(self.numbers) for _ in range(count)]
        foretold = self.model.refusal
        calls = [functools.partial(self._submit, number, "quick") for number in numbers]
        for each in [Elsewhere(call) for call in calls]:
            self.same("what came of it", each.answer(self.patience), foretold or ("value", None))
        made = [m.Piece(number, "quick") for number in numbers if foretold is None]
        for piece in made:
            self.model.submit(piece)
        self.settle(self.model.state)
        return multiple(*made)

    # The end of work.

    @rule(which=st.integers(0, 3), ending=ENDINGS)
    @precondition(lambda self: self.model.held)
    def end(self, which: int, ending: str) -> None:
        """One of those that run ends so."""
        self.step = "end"
        self._end(self._running(which), ending)
        self.settle(ending)

    def _running(self, which: int) -> m.Piece:
        held = self.model.held
        return held[which % len(held)]

    def _end(self, piece: m.Piece, ending: str) -> None:
        self.home.end(piece.number, ending)
        self.model.end(piece, ending)

    @rule(
        which=st.integers(0, 3), signum=st.sampled_from((int(signal.SIGKILL), int(signal.SIGTERM)))
    )
    @precondition(lambda self: self.model.held)
    def kill(self, which: int, signum: int) -> None:
        """Somebody else kills a worker."""
        self.step = "kill"
        piece = self._running(which)
        os.kill(self.home.begun[piece.number][0], signum)
        self.model.kill(piece, signum)
        self.settle(signal.Signals(signum).name)

    @rule()
    @precondition(lambda self: self.model.running and not self.begins)
    def fail_initializers(self) -> None:
        self.step = "fail_initializers"
        self.home.fail_initializers()
        self.model.fail_initializers()
        self.settle()

    # Futures.

    @rule(work=works, deed=st.sampled_from(m.DEEDS), other=works)
    def add_done_callback(self, work: m.Piece, deed: str, other: m.Piece) -> None:
        self.step = "add_done_callback"
        self._add_done_callback(work, deed, other)
        self.settle(deed)

    def _add_done_callback(self, piece: m.Piece, deed: str, other: m.Piece) -> None:
        number = other.number
        if not piece.done and piece.task != "held" and deed not in m.PLAIN:
            deed = "notes"  # as several pieces that end by themselves may do so in any order
        if deed == "submits":
            number = next(self.numbers)
            self.home.hold(number)
        callback = m.Callback(deed, number)
        called = functools.partial(self._called, piece.number, len(piece.callbacks), callback)
        self.model.add_done_callback(piece, callback)
        self.futures[piece.number].add_done_callback(called)

    def _called(
        self,
        number: int,
        seqno: int,
        callback: m.Callback,
        future: concurrent.futures.Future[object],
    ) -> None:
        """What every callback does."""
        right = future is self.futures[number] and future.done()
        outcome = what_comes_of(lambda: self._do(callback)) if right else ("another's",)
        with self.logged:
            self.log.append((number, seqno, outcome))
            self.logged.notify_all()
        if callback.deed == "raises":
            raise CallbackFailed

    def _do(self, callback: m.Callback) -> object:
        if callback.deed == "submits":
            self._submit(callback.number)
        if callback.deed == "cancels":
            return self.futures[callback.number].cancel()
        if callback.deed == "shuts down" and self.executor is not None:
            self.executor.shutdown(wait=False)
        return None

    @rule(work=works, threads=st.integers(1, 3))
    def cancel(self, work: m.Piece, threads: int) -> None:
        """From so many threads at the same time."""
        self._cancel(work, threads)

    @rule(which=st.integers(0, 3), threads=st.integers(1, 3))
    @precondition(lambda self: bool(self.model.held))
    def cancel_what_runs(self, which: int, threads: int) -> None:
        """It goes on."""
        self._cancel(self._running(which), threads)

    def _cancel(self, work: m.Piece, threads: int) -> None:
        self.step = "cancel"
        foretold = self.model.cancel(work)
        calls = [Elsewhere(self.futures[work.number].cancel) for _ in range(threads)]
        for each in calls:
            self.same("what it says", each.answer(self.patience), ("value", foretold))
        self.settle(foretold)

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.can_race)
    def cancel_while_a_slot_comes_free(self, which: int) -> None:
        """The one answer that is not foretold. Either way it is over afterwards."""
        self.step = "cancel_while_a_slot_comes_free"
        piece, running = self.model.pending[0], self._running(which)
        racer = Elsewhere(self.futures[piece.number].cancel)
        self.home.end(running.number, "returns")
        answer = racer.answer(self.patience)
        if answer == ("value", True):
            self.model.cancel(piece)
        self.model.end(running, "returns")
        self.settle(answer)
        if not piece.done:
            self._end(piece, "returns")
            self.settle(piece.state)

    @rule(work=works, timeout=st.sampled_from((0, 0.001)), way=st.sampled_from(WAYS[:2]))
    def look(self, work: m.Piece, timeout: float, way: str) -> None:
        """Ask for the result or the exception, with a timeout."""
        self.step = "look"
        what = what_comes_of(lambda: self._ask(work, way, timeout))
        self.same("what came of it", what, work.outcome if work.done else ("TimeoutError",))
        self.settle(what[0])

    @rule(several=st.lists(works, min_size=1, max_size=4), way=st.sampled_from(WAYS[2:]))
    def wait(self, several: list[m.Piece], way: str) -> None:
        """Look at several, with no time to wait."""
        self.step = "wait"
        done = {piece.number for piece in several if piece.done}
        rest = {piece.number for piece in several} - done
        foretold: Outcome = ("value", (done, rest))
        if way == "as_completed":
            foretold = ("TimeoutError",) if rest else ("value", done)
        self.same("what came of it", what_comes_of(lambda: self._wait(several, way, 0)), foretold)
        self.settle(way)

    def _wait(self, several: list[m.Piece], way: str, timeout: float) -> object:
        futures = {self.futures[piece.number]: piece.number for piece in several}
        if way == "as_completed":
            return {futures[each] for each in concurrent.futures.as_completed(futures, timeout)}
        answer = concurrent.futures.wait(futures, timeout, way)
        return tuple({futures[each] for each in part} for part in answer)

    @rule(which=st.integers(0, 3), ending=ENDINGS, way=st.sampled_from(WAYS))
    @precondition(lambda self: self.model.held)
    def await_the_end(self, which: int, ending: str, way: str) -> None:
        """One thread waits for what another has end."""
        self.step = "await_the_end"
        piece = self._running(which)
        number = piece.number
        if way in WAYS[:2]:
            waiter = Elsewhere(lambda: self._ask(piece, way, FOREVER))
        else:
            waiter = Elsewhere(lambda: self._wait([piece], way, FOREVER))
        self._end(piece, ending)
        nobody: set[int] = set()
        foretold: dict[str, Outcome] = {
            "result": piece.outcome,
            "exception": piece.outcome,
            "as_completed": ("value", {number}),
        }
        what = waiter.answer(self.patience)
        self.same("what came of it", what, foretold.get(way, ("value", ({number}, nobody))))
        self.settle(way)

    @rule(which=st.integers(0, 3), ending=ENDINGS)
    @precondition(lambda self: self.model.held)
    def await_the_first(self, which: int, ending: str) -> None:
        """A thread waits for whatever ends first."""
        self.step = "await_the_first"
        piece = self._running(which)
        several = [each for each in self.model.pieces.values() if not each.done]
        waiter = Elsewhere(lambda: self._wait(several, "FIRST_COMPLETED", FOREVER))
        self._end(piece, ending)
        kind, *answer = waiter.answer(self.patience)
        self.same("what came of it", kind, "value")
        ((done, rest),) = cast("list[tuple[set[int], set[int]]]", answer)
        self.settle()
        self.same("whether it is done", piece.number in done, True)
        self.same("what is not", [each for each in done if not self.model.pieces[each].done], [])
        self.same("all together", done | rest, {each.number for each in several})

    # Maps.

    @rule(
        target=maps,
        calls=st.integers(0, 5),
        chunksize=st.integers(1, 3),
        buffersize=st.sampled_from((None, 1, 2)),
        timeout=st.sampled_from((None, FOREVER, 0)),
        held=st.booleans(),
    )
    @precondition(lambda self: self.has_executor and self.is_small)
    def map(
        self,
        calls: int,
        chunksize: int,
        buffersize: Optional[int],
        timeout: Optional[float],
        held: bool,
    ) -> MultipleResults[Results]:
        """Of each chunk the first call may be held; the others return at once."""
        self.step = "map"
        task = "held" if held else "quick"
        numbers = [next(self.numbers) for _ in range(calls)]
        pieces: list[m.Piece] = []
        for start in range(0, calls, chunksize):
            chunk = numbers[start : start + chunksize]
            size = None if chunksize == 1 else len(chunk)
            pieces.append(m.Piece(chunk[0], task, size, mapped=True))
            self._hold(chunk[0], task)
        told = m.Map(self.model, pieces, expired=timeout == 0)
        made: list[Results] = []

        def submit() -> None:
            assert self.executor is not None
            iterator = self.executor.map(
                gates.perform,
                [self.home.path] * calls,
                numbers,
                ["follows" if index % chunksize else task for index in range(calls)],
                timeout=timeout,
                chunksize=chunksize,
                buffersize=buffersize,
            )
            made.append(Results(iterator, told))

        foretold = told.begin(buffersize)
        self.same("what came of it", what_comes_of(submit), foretold or ("value", None))
        self.every_map += made
        self.settle(self.model.state)
        return multiple(*made)

    @rule(results=maps, ending=ENDINGS)
    def next_of_map(self, results: Results, ending: str) -> None:
        """If the next result is still to come, it is waited for while it comes."""
        self.step = "next_of_map"
        told, iterator = results.told, results.iterator
        awaited = None if told.expired else told.awaited
        what: Outcome = ("not asked",)
        if awaited is None:
            what = what_comes_of(lambda: next(iterator))
        elif awaited in self.model.held and told.goes_on:
            if told.has_pending or told.has_more:
                # Its error would cancel what is pending, or just submitted, on its way to the slot
                # that has come free.
                ending = "returns"
            waiter = Elsewhere(lambda: next(iterator))
            self._end(awaited, ending)
            what = waiter.answer(self.patience)
        if what[0] != "not asked":
            self.same("what came of it", what, told.next())
        self.settle(what[0])

    @rule(results=maps)
    def abandon_map(self, results: Results) -> None:
        """Nobody has the iterator any more; once abandoned, it is as one that has ended."""
        self.step = "abandon_map"
        self._abandon(results)
        self.settle("asked before" if results.told.started else "never asked")

    def _abandon(self, results: Results) -> None:
        results.iterator = iter(())
        results.told.abandon()

    # The end of the executor.

    @rule(calls=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3))
    @precondition(lambda self: self.has_executor and self.is_worn)
    def shutdown(self, calls: list[tuple[bool, bool]]) -> None:
        """From several threads at the same time: whether each waits, and cancels."""
        self.step = "shutdown"
        assert self.executor is not None
        for wait, cancel in calls:
            call = functools.partial(self.executor.shutdown, wait, cancel_futures=cancel)
            self.leaving.append(Elsewhere(call))
            if not wait:
                self.same("what came of it", self.leaving.pop().answer(self.patience), NOTHING)
        self.model.close(cancel=any(cancel for _, cancel in calls))
        self.settle("waits" if self.leaving else "does not wait")

    @rule(target=works, more=st.integers(0, 3))
    @precondition(lambda self: self.can_forget)
    def forget_the_executor(self, more: int) -> MultipleResults[m.Piece]:
        """Nobody has it any more, and nobody shut it down; its futures are kept."""
        self.step = "forget_the_executor"
        made: list[m.Piece] = []
        for _ in range(more if self.begins and self.model.refusal is None else 0):
            number = next(self.numbers)
            self._hold(number, "held")
            self._submit(number)
            made.append(self.model.submit(m.Piece(number, "held")))
        self._forget()
        self.settle(self.model.state)
        return multiple(*made)

    def _forget(self) -> None:
        assert self.executor is not None
        reference = weakref.ref(self.executor)
        self.executor = None
        self.same("who keeps the executor", reference(), None)
        self.model.forget()

    @rule(initializer=INITIALIZERS)
    @precondition(lambda self: self.model.ended and not self.has_maps)
    def begin_again(self, initializer: Optional[str]) -> None:
        """Another executor, on the same slots if they were given."""
        self.step = "begin_again"
        self.home.shut_initializer()
        self.model = self.model.successor(initializer)
        self._make(initializer)
        self.settle(initializer)

    # The Jobserver that it was given, which others use as well.

    @rule(consume=st.sampled_from((1, 1, 0)))
    @precondition(lambda self: self.jobserver is not None and len(self.direct) < 3)
    def submit_to_the_jobserver(self, consume: int) -> None:
        self.step = "submit_to_the_jobserver"
        number = next(self.numbers)
        self.home.hold(number)
        accepted = self.model.submit_direct(number, consume)
        what = what_comes_of(lambda: self._submit_direct(number, consume))
        self.same("what came of it", what, NOTHING if accepted else ("Blocked",))
        self.settle(what[0])

    def _submit_direct(self, number: int, consume: int) -> None:
        assert self.jobserver is not None
        self.direct[number] = self.jobserver.submit(
            gates.perform, args=(self.home.path, number, "held"), consume=consume, timeout=0
        )

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.direct)
    def end_what_the_jobserver_runs(self, which: int) -> None:
        self.step = "end_what_the_jobserver_runs"
        numbers = list(self.direct)
        self._end_direct(numbers[which % len(numbers)])
        self.settle()

    def _end_direct(self, number: int) -> None:
        self.home.end(number, "returns")
        future = self.direct.pop(number)
        what = what_comes_of(lambda: future.result(self.patience))
        self.same("what came of it", what, ("value", number))
        self.model.end_direct(number)

    # What preconditions ask.

    @property
    def has_executor(self) -> bool:
        return self.executor is not None

    @property
    def has_maps(self) -> bool:
        """Whether an iterator may keep the executor."""
        return any(not results.told.ended for results in self.every_map)

    @property
    def is_worn(self) -> bool:
        return self.model.accepted > 3

    @property
    def can_forget(self) -> bool:
        return self.has_executor and self.is_worn and not self.leaving and not self.has_maps

    @property
    def begins(self) -> bool:
        """Whether work begins, and is not held by an initializer that will fail."""
        return self.model.initializer != "fails"

    @property
    def is_small(self) -> bool:
        return len(self.model.pending) < 6

    @property
    def can_race(self) -> bool:
        told = self.model
        return bool(
            told.held
            and told.pending
            and self.begins
            and not told.pending[0].mapped
            and all(each.plain for each in (told.pending[0], *told.held))
        )

    # The end.

    def teardown(self) -> None:
        try:
            if self.step and not self.failed:
                self._finish()
        except BaseException:
            self.failed = True
            raise
        finally:
            if self.failed:
                self._give_up()
            self.logger.removeFilter(_is_worth_a_line)
            self.home.close()
            shutil.rmtree(self.home.path)

    def _finish(self) -> None:
        """All work ends, and nothing is left."""
        for results in self.every_map:
            self._abandon(results)
        if self.executor is not None:
            self.shutdown([(True, False)])
        self.step = "finish"
        for number in list(self.direct):
            self._end_direct(number)
        self.settle()
        while self.model.running:
            for piece in self.model.held:
                self._end(piece, "returns")
            if self.model.running:
                self.home.fail_initializers()
                self.model.fail_initializers()
            self.settle()
        if self.jobserver is not None:
            self.jobserver.__exit__(None, None, None)
        self.home.close()
        deadline = time.monotonic() + self.patience
        while (left := _what_is_here() - self.before) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.same("what is left", sorted(left), [])

    def _give_up(self) -> None:
        """After a failure: whoever is held goes, and nobody is waited for without end."""
        self.home.close()
        for results in self.every_map:
            results.iterator = iter(())
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)
            self.executor = None
        concurrent.futures.wait(self.futures.values(), self.patience)
        for each in self.leaving:
            each.thread.join(self.patience)
        for future in self.direct.values():
            future.wait(self.patience)
        if self.jobserver is not None:
            self.jobserver.__exit__(None, None, None)


def what_comes_of(call: Callable[[], object]) -> Outcome:
    """What a call returns or raises, in words that can be compared."""
    try:
        value = call()
    except BaseException as error:
        # The traceback refers to frames of the executor; nobody is to be kept by it.
        return _name_of(error.with_traceback(None))
    return ("value", *_name_of(value)) if isinstance(value, Exception) else ("value", value)


def _name_of(error: BaseException) -> Outcome:
    name, *rest = name_of(error)
    if isinstance(error, errors.LostResult):
        kinds = [
            each for each in (errors.LostResult, BrokenProcessPool) if each in type(error).__mro__
        ]
        return (", ".join(each.__name__ for each in kinds), *rest[1:])  # without the pid
    bare = (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, BrokenProcessPool)
    return (name,) if isinstance(error, bare) else (name, *rest)


def state_of(future: concurrent.futures.Future[object]) -> str:
    if future.done():
        return "CANCELLED" if future.cancelled() else "FINISHED"
    return "RUNNING" if future.running() else "PENDING"


def _first_two(entry: Outcome) -> tuple[int, int]:
    return cast("tuple[int, int]", entry[:2])


def _start_helpers(method: str) -> None:
    """Start what multiprocessing keeps until the interpreter ends: it is not ours."""
    if method != "fork":
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()


def _what_is_here() -> set[str]:
    """The threads, the children and the descriptors of this process."""
    found = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    found.update(f"child {pid}" for pid in children_of(os.getpid()))
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"descriptor {fd} {os.readlink('/proc/self/fd/' + fd)}")
    return found
