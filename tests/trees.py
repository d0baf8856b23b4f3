"""Trees of work that submits work, and a log that tells how much of it computed at once.

The log is an oracle of the tests' own: it knows the clock and nothing of slots. Work counts as
computing from its first line to its last, but for the spans in which it is blocked by submitting
or, where an executor submits for it, by waiting. Each span is noted from within, so what the log
shows is never more than what was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Union

from jobserver import Blocked, Future, Jobserver, JobserverExecutor, LostResult
from tests.work import PATIENCE, add, die, getpid, pass_gate, touch

A_LOT = 0.3  # seconds, in which what must not run beside would have begun
LINGER = 0.003  # seconds that each piece of work computes before and after it submits


class Log:
    """A file of moments at which one more or one less was computing."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def note(self, change: int) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # The clock is the same in all processes. So short a write is not torn apart.
            os.write(fd, b"%d %d\n" % (time.monotonic_ns(), change))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def computing(self) -> Generator[None, None, None]:
        self.note(+1)
        try:
            yield
        finally:
            self.note(-1)

    @contextlib.contextmanager
    def blocked(self) -> Generator[None, None, None]:
        self.note(-1)
        try:
            yield
        finally:
            self.note(+1)

    def peak(self) -> int:
        """The most that computed at once."""
        moments: list[tuple[int, int]] = []
        for line in Path(self.path).read_text().splitlines():
            moment, _, step = line.partition(" ")
            moments.append((int(moment), int(step)))
        peak = now = 0
        for _, change in sorted(moments):  # at the same moment, ends come first
            now += change
            peak = max(peak, now)
        assert now == 0, f"{now} were still computing at the end of the log"
        return peak


def bound_this_process() -> None:
    """End this worker when the tree stands still, so that a failed test leaves nothing behind."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(2 * PATIENCE))


Branch = Callable[[Jobserver, Log, int], int]


def chain(js: Jobserver, log: Log, depth: int) -> int:
    """Compute, submit the rest of the chain, wait for it, compute; its length."""
    bound_this_process()
    below = 0
    with log.computing():
        time.sleep(LINGER)
        if depth > 1:
            with log.blocked():
                future = js.submit(chain, args=(js, log, depth - 1))
            below = future.result()
        time.sleep(LINGER)
    return 1 + below


def hold(log: Log, mark: str, path: str) -> None:
    """Compute until the gate at `path` is open."""
    bound_this_process()
    with log.computing():
        touch(mark)
        pass_gate(path)


def fan(js: Jobserver, log: Log, width: int, depth: int) -> int:
    """Submit all the chains before waiting for the first; how many pieces of work there were."""
    bound_this_process()
    with log.computing():
        futures: list[Future[int]] = []
        for _ in range(width):
            with log.blocked():
                futures.append(js.submit(chain, args=(js, log, depth)))
            time.sleep(LINGER)
        return 1 + sum(future.result() for future in futures)


def executor_chain(js: Jobserver, log: Log, depth: int) -> int:
    """`chain` by an executor of its own; that lends the slot out while it is waited for."""
    bound_this_process()
    below = 0
    with log.computing():
        time.sleep(LINGER)
        if depth > 1:
            with JobserverExecutor(js) as executor:
                future = executor.submit(executor_chain, js, log, depth - 1)
                time.sleep(LINGER)
                with log.blocked():
                    below = future.result()
        time.sleep(LINGER)
    return 1 + below


def executor_fan(js: Jobserver, log: Log, width: int, depth: int) -> int:
    """`fan` by an executor of its own."""
    bound_this_process()
    total = 1
    with log.computing(), JobserverExecutor(js) as executor:
        futures = [executor.submit(executor_chain, js, log, depth) for _ in range(width)]
        for future in futures:
            time.sleep(LINGER)
            with log.blocked():
                total += future.result()
    return total


def executor_two_in_turn(js: Jobserver, log: Log) -> int:
    """Wait for the first of two, and compute beside nobody before waiting for the second."""
    bound_this_process()
    with log.computing(), JobserverExecutor(js) as executor:
        first = executor.submit(leaf, log)
        second = executor.submit(leaf, log, A_LOT)
        with log.blocked():
            total = first.result()
        time.sleep(A_LOT)
        with log.blocked():
            total += second.result()
    return total


# Single steps in a full tree


def submit_and_report(js: Jobserver, returned: str, begun: str, gate: str) -> bool:
    """Submit work that holds at the gate; whether it was done when `submit` returned."""
    bound_this_process()
    future = js.submit(touch_then_pass, args=(begun, gate))
    touch(returned)
    done = future.done()
    future.result()
    return done


def touch_then_pass(mark: str, gate: str) -> None:
    bound_this_process()
    touch(mark)
    if gate:
        pass_gate(gate)


def submit_without_end(js: Jobserver, mark: str) -> int:
    bound_this_process()
    return js.submit(touch_and_pid, args=(mark,)).result()


def touch_and_pid(mark: str) -> int:
    touch(mark)
    return os.getpid()


def submit_within(js: Jobserver, timeout: float) -> Union[int, str]:
    """Submit under a deadline, then without one: what the first came to, once both are over."""
    bound_this_process()
    try:
        first: Union[int, str] = js.submit(getpid, timeout=timeout).result()
    except Blocked:
        first = "Blocked"
    assert js.submit(add, args=(1, 2)).result() == 3
    assert js.submit(add, args=(1, 2), consume=0, timeout=timeout).result() == 3
    return first


def lose_and_go_on(js: Jobserver) -> str:
    """Have a worker die that runs on this one's slot; then use the slot again."""
    bound_this_process()
    lost: Future[None] = js.submit(die)
    try:
        lost.result()
    except LostResult as error:
        assert js.submit(add, args=(1, 2)).result() == 3
        return str(error)
    raise AssertionError("a killed worker had a result")


def fail_and_go_on(js: Jobserver) -> str:
    """Submit what is refused where no slot is free; then submit what is not."""
    bound_this_process()
    try:
        js.submit(add, args=5)  # type: ignore[arg-type]
    except TypeError as error:
        assert js.submit(add, args=(1, 2)).result() == 3
        return str(error)
    raise AssertionError("5 is no iterable")


def pickle_and_go_on(js: Jobserver) -> str:
    """Submit what cannot be pickled where no slot is free; then submit what can."""
    bound_this_process()
    try:
        js.submit(lambda: None)
    except TypeError as error:
        assert js.submit(add, args=(1, 2)).result() == 3
        return str(error)
    raise AssertionError("a lambda was pickled")


def submit_from_threads(js: Jobserver, log: Log, threads: int, each: int) -> int:
    """Submit from several threads of one piece of work, all of which wait."""
    bound_this_process()

    def run(_: int) -> int:
        return sum(js.submit(leaf, args=(log,)).result() for _ in range(each))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads)))


def leaf(log: Log, seconds: float = LINGER) -> int:
    bound_this_process()
    with log.computing():
        time.sleep(seconds)
    return 1


def count_threads(js: Jobserver) -> tuple[int, int]:
    """How many threads there are in work that submits, before and after."""
    before = threading.active_count()
    js.submit(add, args=(1, 2)).result()
    return before, threading.active_count()


def map_here(js: Jobserver, log: Log, number: int, chunksize: int, buffersize: int) -> int:
    bound_this_process()
    calls = [(log,)] * number
    results = js.map(leaf, calls, chunksize=chunksize, buffersize=buffersize or None)
    return sum(results)
