"""Ctrl-C at any moment of `submit`, `wait` and `result`: nothing is lost by it.

Each test is a program, for SIGINT is a matter of a whole process. It is hit in two ways: by a
timer, at random instants, and by a trace function, at each line that is executed in turn.
"""

from __future__ import annotations

import dis
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Callable, Optional

import pytest

import jobserver
from jobserver import Future, Jobserver
from tests.conftest import children_of
from tests.processes import await_blocked, check_slots, run_program
from tests.work import PATIENCE, Gate, await_file, identity, pass_gate, touch_and_pass_gate

SLOTS = 2
MANY = 2_000  # callbacks


def by_timer(action: Callable[[], object], delay: float) -> bool:
    """Whether a SIGINT after `delay` seconds interrupted the action, or came after it."""

    def interrupt(_signum: int, _frame: Optional[FrameType]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            # A signal that came just before is handled here, at the latest.
            time.sleep(0)
    except KeyboardInterrupt:
        return True
    return False


struck: list[str] = []  # the lines at which `by_line` has sent its signals


def by_line(action: Callable[[], object], number: int) -> bool:
    """Whether a SIGINT at the line event of that number interrupted the action."""
    me = os.getpid()
    left = number

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if os.getpid() != me:
            sys.settrace(None)
            return None
        if event == "line":
            left -= 1
            if left == 0:
                struck.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                # Python turns tracing off when this raises here; when the library holds the
                # signal back, it raises later, and no second one is sent.
                os.kill(me, signal.SIGINT)
        return trace

    before = sys.gettrace()
    try:
        try:
            sys.settrace(trace)
            action()
        finally:
            sys.settrace(before)
            time.sleep(0)
    except KeyboardInterrupt:
        return True
    return False


def count_lines(action: Callable[[], object]) -> int:
    """How many line events the action makes."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Bench:
    """A Jobserver to be interrupted, and the proof that it took no harm."""

    def __init__(self, method: str, directory: str) -> None:
        self.directory = Path(directory)
        self.js = Jobserver(method, SLOTS)
        # What is opened and imported once, is by now.
        assert self.js.submit(identity, args=(0,)).result(PATIENCE) == 0
        self.children = children_of(os.getpid())
        self.descriptors = self.open_descriptors()

    @staticmethod
    def open_descriptors() -> set[str]:
        return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}

    def settle(self) -> None:
        """Have everything that was submitted reclaimed, in bounded time."""
        deadline = time.monotonic() + PATIENCE
        while "tracked=0" not in repr(self.js):
            assert time.monotonic() < deadline, f"never reclaimed: {self.js!r}"
            self.js.reclaim_resources()
            time.sleep(0.0005)

    def check(self, where: str) -> None:
        """Nothing is lost: no slot, no descriptor, no process."""
        self.settle()
        deadline = time.monotonic() + PATIENCE
        while children_of(os.getpid()) != self.children:
            assert time.monotonic() < deadline, f"{where}: a process is left"
            time.sleep(0.001)
        left = self.open_descriptors() ^ self.descriptors
        assert not left, f"{where}: descriptors {left}"
        name = self.directory / f"slots{time.monotonic_ns()}"
        check_slots(self.js, SLOTS, name)


# Runs what it is given, interrupts it at a chosen instant, and tells whether it did.
Hit = Callable[[Callable[[], object]], bool]
Action = Callable[[Bench, Hit], bool]


def hit_submit(bench: Bench, hit: Hit) -> bool:
    """Interrupt a submission; a Future that it gave is good."""
    futures: list[Future[str]] = []
    interrupted = hit(
        lambda: futures.append(bench.js.submit(identity, args=("value",), timeout=PATIENCE))
    )
    for future in futures:
        assert future.result(PATIENCE) == "value"
    return interrupted


def hit_ask(ask: Callable[[Future[str]], object]) -> Action:
    """Interrupt what waits for a Future; asked again, it settles, and has called back once."""

    def run(bench: Bench, hit: Hit) -> bool:
        seen: list[str] = []
        future = bench.js(identity, "value")
        future.when_done(seen.append, "called back")
        interrupted = hit(lambda: ask(future))
        where = struck[-1:] or "some instant"
        assert future.wait(PATIENCE) is True, f"never done after {where}"
        assert future.result(PATIENCE) == "value"
        assert seen == ["called back"], f"{seen} after {where}"
        return interrupted

    return run


ACTIONS: dict[str, Action] = {
    "submit": hit_submit,
    "done": hit_ask(lambda future: future.done(PATIENCE)),
    "wait": hit_ask(lambda future: future.wait(PATIENCE)),
    "result": hit_ask(lambda future: future.result(PATIENCE)),
}


def interrupt_by_timer(method: str, directory: str, action: str, rounds: int) -> None:
    bench = Bench(method, directory)
    chance = random.Random(f"{method} {action}")
    spent: list[float] = []

    def measure(run: Callable[[], object]) -> bool:
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
        return False

    for _ in range(5):
        ACTIONS[action](bench, measure)
    hits = 0
    for number in range(rounds):
        delay = chance.uniform(1e-6, 1.2 * sorted(spent)[2])
        hits += ACTIONS[action](bench, partial(by_timer, delay=delay))
        if number % 25 == 0:
            bench.check(f"round {number}, after {delay:.6f} s")
    bench.check("at the end")
    sys.stdout.write(str(hits))


def interrupt_by_line(method: str, directory: str, action: str, rounds: int) -> None:
    bench = Bench(method, directory)
    lines: list[int] = []

    def count(run: Callable[[], object]) -> bool:
        lines.append(count_lines(run))
        return False

    for _ in range(3):
        ACTIONS[action](bench, count)
    last = max(lines)
    step = max(1, last // rounds)
    hits = 0
    for number in range(1, last + 1, step):
        hits += ACTIONS[action](bench, partial(by_line, number=number))
        bench.settle()
        if number // step % 25 == 0:
            bench.check(f"after {struck[-25:]}")
    bench.check("at the end")
    sys.stdout.write(str(hits))


ROUNDS = {"fork": 300, "spawn": 25, "forkserver": 50}


@pytest.mark.thorough
@pytest.mark.parametrize("action", list(ACTIONS))
@pytest.mark.parametrize("way", [interrupt_by_timer, interrupt_by_line])
def test_interrupted_at_any_moment(
    method: str, tmp_path: Path, action: str, way: Callable[[str, str, str, int], None]
) -> None:
    done = run_program(way, method, str(tmp_path), action, ROUNDS[method])
    # Some rounds miss; a test in which none hits would prove nothing.
    assert int(done.stdout) >= ROUNDS[method] // 10


def interrupt_blocked(method: str, directory: str, action: str) -> None:
    """Interrupt a call that waits for what does not come; afterwards, everything comes."""
    bench = Bench(method, directory)
    with Gate(bench.directory) as gate:
        held: list[Future[Any]] = []
        for number in range(SLOTS):
            mark = str(bench.directory / f"mark{number}")
            held.append(bench.js.submit(touch_and_pass_gate, args=(mark, gate.path, "value")))
            await_file(mark)
        seen: list[str] = []
        held[0].when_done(seen.append, "called back")
        calls: dict[str, Callable[[], object]] = {
            "submit": lambda: bench.js.submit(pass_gate, args=(gate.path,)),
            "submit with a timeout": lambda: bench.js.submit(
                pass_gate, args=(gate.path,), timeout=PATIENCE
            ),
            "done": lambda: held[0].done(PATIENCE),
            "wait": held[0].wait,
            "result": held[0].result,
        }
        for round_ in range(10):
            start = time.monotonic()
            assert by_timer(calls[action], 0.02 + 0.01 * round_), "it came back"
            assert time.monotonic() - start < PATIENCE / 3
            assert not held[0].done()
        gate.open()
        assert [future.result(PATIENCE) for future in held] == ["value"] * SLOTS
        assert seen == ["called back"]
    bench.check(action)


@pytest.mark.parametrize("action", ["submit", "submit with a timeout", "done", "wait", "result"])
def test_interrupted_while_blocked(method: str, tmp_path: Path, action: str) -> None:
    run_program(interrupt_blocked, method, str(tmp_path), action)


def interrupt_beside_a_thread(method: str, directory: str) -> None:
    """The thread that waits for the same Future waits on."""
    bench = Bench(method, directory)
    with Gate(bench.directory) as gate:
        future = bench.js.submit(pass_gate, args=(gate.path, "value"))
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(future.result(PATIENCE)))
        thread.start()
        for _ in range(5):
            assert by_timer(future.result, 0.05)
        assert thread.is_alive()
        gate.open()
        thread.join(PATIENCE)
        assert answers == ["value"]
        assert future.result(0) == "value"
    bench.check("beside a thread")


def test_interrupted_beside_a_thread(method: str, tmp_path: Path) -> None:
    run_program(interrupt_beside_a_thread, method, str(tmp_path))


def go_on_with_an_own_handler(method: str, directory: str) -> None:
    """A handler that returns ends no wait: it goes on, and keeps its deadline."""
    bench = Bench(method, directory)
    with Gate(bench.directory) as gate:
        future = bench.js.submit(pass_gate, args=(gate.path, "value"))
        caught: list[int] = []
        signal.signal(signal.SIGALRM, lambda signum, _frame: caught.append(signum))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            start = time.monotonic()
            assert future.wait(0.3) is False
            assert 0.3 <= time.monotonic() - start < PATIENCE / 3
            gate.open()
            assert future.result(PATIENCE) == "value"
            for _ in range(20):
                value = bench.js.submit(identity, args=("value",), timeout=PATIENCE).result(
                    PATIENCE
                )
                assert value == "value"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(caught) >= 5
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    bench.check("with a handler of the program's own")


def test_a_handler_that_returns_ends_no_wait(method: str, tmp_path: Path) -> None:
    run_program(go_on_with_an_own_handler, method, str(tmp_path))


def wait_in_a_handler(method: str, directory: str, closed: bool) -> None:
    """The handler's wait has the end of what the wait that it interrupted waits for."""
    bench = Bench(method, directory)
    answers: list[bool] = []
    with Gate(bench.directory) as gate, ExitStack() as stack:
        js = stack.enter_context(Jobserver(method, 1))
        future = js.submit(pass_gate, args=(gate.path, "value"))
        if closed:
            stack.close()  # then what the waits need is closed with the end of the work

        def handle(_signum: int, _frame: Optional[FrameType]) -> None:
            gate.open()
            answers.append(future.wait(PATIENCE))

        def interrupt() -> None:
            await_blocked(os.getpid())
            os.kill(os.getpid(), signal.SIGALRM)

        signal.signal(signal.SIGALRM, handle)
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert future.wait()
        assert answers == [True]
        thread.join(PATIENCE)
    bench.check("a wait in a handler")


@pytest.mark.parametrize("closed", [False, True])
def test_a_handler_that_waits_ends_no_wait(method: str, tmp_path: Path, closed: bool) -> None:
    run_program(wait_in_a_handler, method, str(tmp_path), closed)


def interrupt_many_callbacks(method: str) -> None:
    """Each of them has run, or is due still, at whatever instant the interrupt comes."""
    chance = random.Random(method)
    with Jobserver(method, 1) as js:
        for _ in range(30):
            future = js.submit(identity, args=("value",))
            seen: list[int] = []
            for number in range(MANY):
                future.when_done(seen.append, number)
            while by_timer(future.result, chance.uniform(1e-5, 1e-3)):
                pass
            assert seen == list(range(MANY))


def test_callbacks_at_any_moment(method: str) -> None:
    run_program(interrupt_many_callbacks, method)


# What has to be done by a `finally`, whenever an interrupt comes.
ENDS_BY_FINALLY = {
    "callbacks": {"issue", "_issue_all"},
    "draining": {"drain"},
    "engine": {"Engine.wait"},
    "interrupts": {"shielded.restore"},
    "launch": {"_check_descriptors"},
    "mapping": {"Results._submit_what_can_be"},
    "resources": {"Resources.exit"},
}


def codes_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="of CPython 3.13 only")
@pytest.mark.parametrize("room", ENDS_BY_FINALLY)
def test_no_jump_back_is_left_out_of_a_try(room: str) -> None:
    """CPython 3.13 has the jump back of a loop that ends a `try` outside of it."""
    path = Path(jobserver.__file__).with_name(f"{room}.py")
    known: set[str] = set()
    found: set[str] = set()
    for code in codes_of(compile(path.read_text(), str(path), "exec")):
        name: str = getattr(code, "co_qualname")  # noqa: B009  # of Python 3.11
        known.add(name)
        bytecode: Any = dis.Bytecode(code)
        entries = bytecode.exception_entries
        before = None
        for instruction in bytecode:
            covered = any(each.start <= instruction.offset < each.end for each in entries)
            if instruction.opname == "JUMP_BACKWARD" and before and not covered:
                found.add(name)
            before = covered
    assert ENDS_BY_FINALLY[room] <= known
    assert not found & ENDS_BY_FINALLY[room]
