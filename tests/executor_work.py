"""What the tests of JobserverExecutor run in workers. Spawn pays for each import."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, Optional

from jobserver import Jobserver, JobserverExecutor
from tests.work import (
    PATIENCE,
    die,
    identity,
    pass_gate,
    raise_value_error,
    sys_exit,
    touch,
    touch_and_pass_gate,
)

MEANS = ("result", "wait", "as_completed", "map", "shutdown")


def threads_for(value: object) -> int:  # called once a value by map
    return threading.active_count()


def pid_for(value: object) -> int:  # called once a value by map
    return os.getpid()


def getenv(name: str) -> Optional[str]:
    return os.environ.get(name)


def append(path: str, text: str) -> None:
    """Leave a mark that keeps the order of those who came."""
    with open(path, "a") as file:
        file.write(text)


def raise_with_cause(text: str) -> NoReturn:
    try:
        raise_value_error("the first " + text)
    except ValueError as error:
        raise KeyError("the second " + text) from error


def stop_iteration_at(number: int, bad: int) -> int:
    if number == bad:
        raise StopIteration(number)
    return number


def raise_keyboard_interrupt() -> NoReturn:
    raise KeyboardInterrupt("in the work")


def note_pid_and_die(path: str, signum: int) -> None:
    Path(path).write_text(str(os.getpid()))
    die(signum)


def hold_and_note_pid(path: str, gate: str) -> None:
    # Renamed into place, so that whoever sees the file reads the whole number.
    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    pass_gate(gate)


def die_at(fatal: int, number: int) -> int:
    if number == fatal:
        die()
    return number


def die_with(data: bytes) -> None:  # the test is about sending it
    die()


def die_behind(gate: str) -> None:
    pass_gate(gate)
    die()


class TouchesWhenFreed:
    """Leaves a mark when its last reference goes, except in the process that made it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.home = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            touch(self.path)


def identity_of(value: object) -> int:
    return id(value)


def become_another_program() -> None:
    os.execv("/bin/true", ["true"])


class Detailed(Exception):
    """An exception with an attribute, rebuilt from its args."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def raise_detailed(code: int) -> NoReturn:
    raise Detailed(code)


class Traveller:
    """Carries the ids of the processes that unpickled it."""

    def __init__(self) -> None:
        self.trail: list[int] = []

    def __getstate__(self) -> list[int]:
        return [0, *self.trail]  # never falsy: an object with a falsy state is not restored

    def __setstate__(self, state: list[int]) -> None:
        self.trail = [*state[1:], os.getpid()]


def receive_traveller(traveller: Traveller) -> tuple[list[int], int]:
    return traveller.trail, os.getpid()


def send_traveller() -> Traveller:
    return Traveller()


class RaisesWhenLoaded:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return raise_value_error, ("a fault while loading",)


class ExitsWhenLoaded:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return sys_exit, (3,)


class KillsWhenLoaded:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return die, (signal.SIGKILL,)


class RaisesWhenDumped:
    def __reduce__(self) -> NoReturn:
        raise_value_error("a fault while dumping")


class ExitsWhenDumped:
    def __reduce__(self) -> NoReturn:
        sys_exit(3)


class KillsWhenDumped:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        die(signal.SIGKILL)
        return identity, (None,)


def make(cls: type[object]) -> object:
    return cls()


_initialized: Any = None


def initialize(value: object = "by default") -> None:
    global _initialized  # what an initializer is for
    _initialized = value


def initialized() -> Any:
    return _initialized


def acquire_initialized() -> Any:
    return _initialized.acquire(timeout=PATIENCE)


def send_beside_initialized(value: int, other: Connection) -> None:
    """Send the value through the connection that the initializer had, and through another."""
    _initialized.send(value)
    other.send(-value)


inherited: list[object] = []


def closed_with_what_is_inherited() -> list[int]:
    """Which descriptors of this process are closed when it drops what it has inherited."""
    # Some have numbers of descriptors that are private to the parent.
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    inherited.clear()
    closed: list[int] = []
    for number in files:
        try:
            os.close(number)
        except OSError:
            closed.append(number)
    return closed


class Counted:
    """A text, and how often this process has pickled it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.times = 0

    def __reduce__(self) -> tuple[object, ...]:
        self.times += 1
        return Counted, (self.text,)


def initialize_sized(counted: Counted, beside: bytes) -> None:
    initialize(f"{counted.text}, {len(beside)}")


def sleep_briefly() -> str:
    """For programs whose own timing is the point: long against a timeout of 0 or 10 ms."""
    time.sleep(0.1)
    return "slept"


def sleep_briefly_for(value: object) -> str:  # called once a value by map
    return sleep_briefly()


def sum_of_initialized(value: object) -> Any:  # called once a value by map
    return _initialized.sum()


def initialized_for(value: object) -> Any:  # called once a value by map
    return _initialized


def fail_behind(gate: str) -> NoReturn:
    """An initializer that fails when the test says so."""
    pass_gate(gate)
    raise_value_error("in the initializer")


def submit_in_turn(js: Jobserver, values: Iterable[int]) -> list[int]:
    """Nest through the handle."""
    return [js(identity, value).result() for value in values]


def submit_behind(js: Jobserver, outer: str, inner: str, gate: str) -> Optional[str]:
    """Hold a slot, and a second one through nested work that the gate holds up."""
    touch(outer)
    return js(touch_and_pass_gate, inner, gate, "inner").result()


def collect(executor: JobserverExecutor, values: Iterable[int], means: str) -> list[int]:
    """Submit the values and wait for them by one of the `MEANS`, without a timeout."""
    if means == "map":
        return list(executor.map(identity, values))
    futures = [executor.submit(identity, value) for value in values]
    if means == "wait":
        concurrent.futures.wait(futures)
    elif means == "as_completed":
        return sorted(future.result() for future in concurrent.futures.as_completed(futures))
    elif means == "shutdown":
        executor.shutdown()
    return [future.result() for future in futures]


def fan_out(js: Jobserver, count: int, means: str) -> list[int]:
    """Nest through an executor made here, in the worker, on the slots of the whole tree."""
    with JobserverExecutor(js) as executor:
        return collect(executor, range(count), means)


def leave_behind(js: Jobserver, path: str) -> str:
    """Return while an executor that nobody shut down has work pending."""
    executor = JobserverExecutor(js)
    executor.submit(append, path, "first ")
    executor.submit(append, path, "second")
    return "left"


def own_fan_out(count: int, means: str) -> list[int]:
    """Nest through an executor with slots of its own."""
    with JobserverExecutor(1) as executor:
        return collect(executor, range(count), means)


def descend(js: Jobserver, depth: int) -> int:
    """An executor on every level, each waiting for the one below: the depth it came to."""
    if depth == 0:
        return 0
    with JobserverExecutor(js) as executor:
        return 1 + max(executor.map(descend, [js] * 2, [depth - 1] * 2))
