"""What the tests of Jobserver have workers do. Imports no pytest, so that workers start fast."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Callable, NoReturn, Optional, Union

from jobserver import Blocked, Future, Jobserver
from tests.work import (
    PATIENCE,
    add,
    await_file,
    getpid,
    pass_gate,
    raise_value_error,
    streamed_blob,
    touch,
    touch_and_pass_gate,
)


def write_pid(path: str) -> int:
    """Leave this process's id in the file, whole at once, and return it."""
    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    return os.getpid()


def share(content: bytes) -> tuple[str, list[int]]:
    """The name of new shared memory, for the caller to unlink, and what processes it took."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=len(content))
    assert memory.buf is not None
    memory.buf[: len(content)] = content
    memory.close()
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return memory.name, [int(word) for word in children.split()]


def note_pid(path: str) -> None:
    write_pid(path)


def linger(seconds: float) -> None:
    time.sleep(seconds)


def begin_then_make(mark: str, size: int) -> bytes:
    """Say that the work has begun, then return more than a pipe holds."""
    touch(mark)
    return streamed_blob(size)


def leave_grandchild(gate: str, mark: str) -> None:
    """End without a result while a forked process keeps every descriptor until the gate opens."""
    if os.fork() == 0:
        try:
            touch(mark)
            pass_gate(gate)
        finally:
            os._exit(0)
    os._exit(3)


def answer_but_stay(gate: str) -> str:
    """Return at once from a process that then cannot end before the gate opens."""
    threading.Thread(target=pass_gate, args=(gate,)).start()
    return "answered"


def append(path: str, text: str) -> None:
    """Add a line to the file; whole, whoever else does so."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def environment(*names: str) -> list[Optional[str]]:
    return [os.environ.get(name) for name in names]


class EnvironmentOnArrival:
    """Becomes, when it is unpickled, the value of an environment variable then and there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return os.getenv, (self.name, "unset")


def append_environment(path: str, name: str) -> None:
    append(path, os.environ.get(name, "unset"))


class Diary:
    """A context manager that writes down when it is entered and left, and what it sees."""

    def __init__(self, path: str, swallow: bool = False) -> None:
        self.path = path
        self.swallow = swallow

    def __enter__(self) -> Diary:
        append(self.path, "enter")
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> bool:
        append(self.path, "exit" if kind is None else f"exit {kind.__name__}")
        return self.swallow


def keep_diary(path: str, swallow: bool = False) -> Diary:
    append(path, "preexec")
    return Diary(path, swallow)


class FailsToEnter(Diary):
    def __enter__(self) -> NoReturn:
        raise LookupError("on entering")


class FailsToLeave(Diary):
    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> NoReturn:
        raise LookupError("on leaving")


@contextlib.contextmanager
def diary_of_a_generator(path: str) -> Generator[None, None, None]:
    append(path, "enter")
    try:
        yield
    finally:
        append(path, "exit")


def raise_lookup_error(*_: object) -> NoReturn:
    raise LookupError("from preexec")


def exit_with(code: int) -> NoReturn:
    sys.exit(code)


def not_a_context_manager() -> int:
    return 17


def process_name() -> str:
    return multiprocessing.current_process().name


class Thing:
    """A result that can be weakly referenced, with methods that can be submitted."""

    def __init__(self, number: int) -> None:
        self.number = number

    def plus(self, number: int) -> int:
        return self.number + number

    @classmethod
    def made(cls, number: int) -> int:
        return cls(number).number


def wait_for_file_then(path: str, value: int) -> int:
    await_file(path)
    return value


def relay(awaited: Optional[str], value: int, announced: Optional[str]) -> int:
    if awaited is not None:
        await_file(awaited)
    if announced is not None:
        touch(announced)
    return value


def meet(mine: str, other: str) -> None:
    touch(mine)
    await_file(other)


def pass_gate_then_touch(gate: str, mark: str) -> None:
    pass_gate(gate)
    touch(mark)


def linger_or_pass(value: int, gate: str) -> int:
    if gate:
        pass_gate(gate)
    else:
        time.sleep(0.1)
    return value


def with_pid(number: int) -> tuple[int, int]:
    return number, os.getpid()


def plus_base(number: int, base: int) -> int:
    return number + base


def lambda_if(wanted: bool) -> Optional[Callable[[], None]]:
    return (lambda: None) if wanted else None


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"at {number}")
    return number


def die_at(number: int, bad: int) -> int:
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


# Nesting: each takes the handle that the worker was given.


def representation(js: object) -> str:
    return repr(js)


def submit_add(js: Jobserver, a: int, b: int) -> int:
    return js.submit(add, args=(a, b), timeout=PATIENCE).result(PATIENCE)


def submit_add_in(holder: dict[str, list[Jobserver]], a: int, b: int) -> int:
    return submit_add(holder["js"][0], a, b)


def submit_environment(js: Jobserver, *names: str) -> list[Optional[str]]:
    return js.submit(environment, args=names, timeout=PATIENCE).result(PATIENCE)


def descend(js: Jobserver, depth: int, consume: int = 1) -> list[int]:
    """The ids of a chain of `depth` processes, each the child of a slot-holding one.

    The innermost submission takes `consume` slots, all others one. None waits long for a slot.
    """
    if depth == 1:
        return [os.getpid()]
    last = depth == 2
    future = js.submit(
        descend, args=(js, depth - 1, consume), timeout=0, consume=consume if last else 1
    )
    return [os.getpid(), *future.result(PATIENCE)]


def count_and_hold(js: Jobserver, gate: str, limit: int) -> int:
    """How many submissions this process gets to run at once; then let them go."""
    futures: list[Future[object]] = []
    try:
        while len(futures) < limit:
            futures.append(js.submit(pass_gate, args=(gate,), timeout=0))
    except Blocked:
        pass
    held = len(futures)
    # The test's own descriptor of the FIFO keeps the bytes; one each is enough here.
    fd = os.open(gate, os.O_WRONLY)
    os.write(fd, b"." * held)
    os.close(fd)
    for future in futures:
        assert future.wait(PATIENCE)
    return held


def wait_then_try(js: Jobserver, gate: str, mark: str) -> Union[int, str]:
    touch(mark)
    pass_gate(gate)
    tried = try_submit(js, 0)
    touch(mark + ".tried")
    return tried


def map_add(js: Jobserver, number: int) -> list[int]:
    return list(js.map(add, [(n, 1) for n in range(number)]))


def reclaim(js: Jobserver) -> str:
    js.reclaim_resources()
    return repr(js)


def close_handle(js: Jobserver) -> str:
    """Close the worker's handle, use it, and say what came of that."""
    with js:
        assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    try:
        js.submit(add, args=(1, 2), timeout=PATIENCE)
    except RuntimeError as error:
        return str(error)
    return "still open"


def try_submit(js: Jobserver, timeout: float) -> Union[int, str]:
    """Submit from a tree that may be full: the new worker's id, or "Blocked"."""
    try:
        return js.submit(getpid, timeout=timeout).result(PATIENCE)
    except Blocked:
        return "Blocked"


def run_all(functions: list[Callable[[], object]]) -> list[BaseException]:
    """Run each in a thread of its own, to the end; what they raised."""
    raised: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # the test reports it from its own thread
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    if any(thread.is_alive() for thread in threads):
        raised.append(AssertionError("a thread did not end"))
    return raised


def give_back(js: object) -> object:
    return js


def pass_gate_then_fail(gate: str, text: str) -> NoReturn:
    pass_gate(gate)
    raise ValueError(text)


def submit_at_once(js: Jobserver) -> int:
    return js.submit(add, args=(1, 2), timeout=0).result(PATIENCE)


def submit_and_forget(js: Jobserver) -> None:
    assert submit_add(js, 1, 2) == 3


def submit_and_forget_a_callback(js: Jobserver) -> int:
    js.submit(getpid).when_done(raise_lookup_error)
    return os.getpid()


def submit_touch(js: Jobserver, mark: str) -> None:
    js.submit(touch, args=(mark,), timeout=PATIENCE).result(PATIENCE)


def submit_touch_and_pass_gate(js: Jobserver, mark: str, gate: str) -> None:
    js.submit(touch_and_pass_gate, args=(mark, gate), timeout=PATIENCE).result(PATIENCE)


def submit_linger(js: Jobserver, seconds: float) -> None:
    js.submit(linger, args=(seconds,), timeout=PATIENCE).result(PATIENCE)


def submit_failure(js: Jobserver, text: str) -> None:
    js.submit(raise_value_error, args=(text,), timeout=PATIENCE).result(PATIENCE)


def pass_gate_then_submit(js: Jobserver, gate: str) -> int:
    pass_gate(gate)
    return submit_add(js, 1, 2)


def nested_process_name(js: Jobserver) -> str:
    return js.submit(process_name, timeout=PATIENCE).result(PATIENCE)


def fill_one_try_other(one: Jobserver, other: Jobserver) -> Union[int, str]:
    """Use the last slot through one handle, and ask the other for one more."""
    held = one.submit(linger, args=(0.5,), timeout=PATIENCE)
    tried = try_submit(other, 0)
    assert held.wait(PATIENCE)
    return tried


def submit_from_threads(js: Jobserver, number: int) -> list[int]:
    results: list[int] = []
    functions: list[Callable[[], object]] = [
        functools.partial(lambda n: results.append(submit_add(js, n, 0)), n) for n in range(number)
    ]
    for error in run_all(functions):
        raise error
    return sorted(results)


class Nested:
    """Holds a handle, as objects of a user may."""

    def __init__(self, js: Jobserver) -> None:
        self.js = js

    def submit_add(self, a: int, b: int) -> int:
        return submit_add(self.js, a, b)


def result_of_kind(kind: str) -> object:
    if kind == "plain":
        return ["plain", {"of": (1, "kind")}]
    if kind == "error":
        raise LookupError("as told")
    if kind == "object":
        return Thing(1)
    if kind == "lambda":
        return lambda: kind
    return Unfit()


class Unfit:
    """Cannot be rebuilt by whom it is sent to."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def stop_iteration_if(wanted: bool) -> None:
    if wanted:
        raise StopIteration("from the work")


def raise_if(error: type[BaseException], wanted: bool) -> bool:
    if wanted:
        raise error("from the work")
    return wanted
