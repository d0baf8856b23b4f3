"""`submit` and the call: what they check, what they pass on, and what a failure leaves behind."""

from __future__ import annotations

import functools
import math
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections import UserDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, NoReturn

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver, JobserverExecutor
from tests import errands, scarcity
from tests.processes import await_state, check_slots, run_program
from tests.work import PATIENCE, Gate, add, await_file, echo, getpid, identity, pass_gate, touch


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@contextmanager
def full_tree(tmp_path: Path) -> Generator[Jobserver, None, None]:
    """A Jobserver none of whose slots is free: what it refuses, it refuses before it needs one."""
    js = Jobserver("fork", 1)
    with Gate(tmp_path, "full") as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        before = descriptors()
        yield js
        assert descriptors() == before
        gate.open()
        assert future.wait(PATIENCE)
    check_slots(js, 1, tmp_path / "check")


def names(error: BaseException, value: object) -> bool:
    return repr(value) in str(error) or type(value).__name__ in str(error)


# Checked before a slot is taken


@pytest.mark.parametrize("fn", [None, 5, "add", b"add", (), [add], object()])
def test_fn_must_be_callable(tmp_path: Path, fn: Any) -> None:
    with full_tree(tmp_path) as js:
        for consume in (0, 1):
            with pytest.raises(TypeError, match="fn") as caught:
                js.submit(fn, consume=consume, timeout=0)
            assert names(caught.value, fn)
        with pytest.raises(TypeError, match="fn"):
            js(fn)


@pytest.mark.parametrize("args", [None, 5, 1.5, object(), add])
def test_args_must_be_iterable(tmp_path: Path, args: Any) -> None:
    with full_tree(tmp_path) as js:
        for consume in (0, 1):
            with pytest.raises(TypeError, match=r"\bargs\b") as caught:
                js.submit(add, args=args, consume=consume, timeout=0)
            assert names(caught.value, args)


@pytest.mark.parametrize("kwargs", [None, 5, "ab", [("a", 1)], (), {"a"}, object()])
def test_kwargs_must_be_a_mapping(tmp_path: Path, kwargs: Any) -> None:
    with full_tree(tmp_path) as js:
        for consume in (0, 1):
            with pytest.raises(TypeError, match=r"\bkwargs\b") as caught:
                js.submit(echo, kwargs=kwargs, consume=consume, timeout=0)
            assert names(caught.value, kwargs)


@pytest.mark.parametrize("timeout", [True, False, "1", b"1", "", (), [1], object(), 1j])
def test_timeout_must_be_a_number(tmp_path: Path, timeout: Any) -> None:
    with full_tree(tmp_path) as js:
        for consume in (0, 1):
            with pytest.raises(TypeError, match="timeout") as caught:
                js.submit(add, args=(1, 2), consume=consume, timeout=timeout)
            assert names(caught.value, timeout)


@pytest.mark.parametrize("timeout", [-1, -0.001, math.inf, -math.inf, math.nan])
def test_timeout_must_be_finite_and_not_negative(tmp_path: Path, timeout: float) -> None:
    with full_tree(tmp_path) as js:
        for consume in (0, 1):
            with pytest.raises(ValueError, match="timeout") as caught:
                js.submit(add, args=(1, 2), consume=consume, timeout=timeout)
            assert names(caught.value, timeout)


def test_a_timeout_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    with full_tree(tmp_path) as js:
        with pytest.raises(ValueError, match="timeout"):
            js.submit(add, args=(1, 2), timeout=10**400)


def test_a_timeout_beyond_the_clock_is_some_sort_of_long(tmp_path: Path) -> None:
    """A finite number, if one that no system call takes: the work is not refused for it."""
    with full_tree(tmp_path) as js:
        for timeout in (1e10, 1e300, 10**18):
            future = js.submit(add, args=(1, 2), consume=0, timeout=timeout)
            assert future.wait(timeout)
            assert future.result(timeout) == 3


@pytest.mark.parametrize(
    "consume",
    [2, -1, 0.5, 10**30, True, False, 1.0, 0.0, "1", b"1", None, (), [1], object()],
)
def test_consume_must_be_0_or_1(tmp_path: Path, consume: Any) -> None:
    with full_tree(tmp_path) as js:
        with pytest.raises(ValueError, match="consume") as caught:
            js.submit(add, args=(1, 2), consume=consume, timeout=0)
        assert names(caught.value, consume)


def test_all_but_fn_are_keywords(tmp_path: Path) -> None:
    with full_tree(tmp_path) as js:
        with pytest.raises(TypeError):
            js.submit(add, (1, 2))  # type: ignore[misc]
        with pytest.raises(TypeError):
            js.submit()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            js()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            js.submit(add, priority=1)  # type: ignore[call-arg]


def test_an_error_of_the_args_iterator_passes(tmp_path: Path) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("from the arguments")

    with full_tree(tmp_path) as js:
        with pytest.raises(LookupError, match="from the arguments"):
            js.submit(add, args=broken(), timeout=0)


def test_a_refused_gate_is_not_asked() -> None:
    asked: list[int] = []
    js = Jobserver("fork", 1).replace_sleep(lambda: asked.append(1))
    with pytest.raises(ValueError, match="consume"):
        js.submit(add, args=(1, 2), consume=2)
    with pytest.raises(TypeError, match="timeout"):
        js.submit(add, args=(1, 2), timeout="1")  # type: ignore[arg-type]
    assert not asked


# Arguments arrive


def generator(items: list[int]) -> Iterator[int]:
    yield from items


class Opaque(Mapping[str, object]):
    """A mapping that cannot be pickled, nor copied."""

    def __init__(self, **content: object) -> None:
        self._content = content
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> object:
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@pytest.mark.parametrize(
    "make", [Opaque, UserDict, dict, lambda **kwargs: MappingProxyType(kwargs)]
)
def test_kwargs_of_any_mapping_class(method: str, make: Callable[..., Any]) -> None:
    js = Jobserver(method, 1)
    future = js.submit(echo, kwargs=make(a=1, b=[2]))
    assert future.result(PATIENCE) == ((), {"a": 1, "b": [2]})


@pytest.mark.parametrize("kind", [tuple, list, iter, dict.fromkeys, generator])
def test_args_of_any_iterable(method: str, kind: Callable[[list[int]], Any]) -> None:
    js = Jobserver(method, 1)
    assert js.submit(echo, args=kind([1, 2])).result(PATIENCE) == ((1, 2), {})


def test_no_arguments_by_default(method: str) -> None:
    js = Jobserver(method, 1)
    assert js.submit(echo).result(PATIENCE) == ((), {})
    assert js.submit(echo, args=(), kwargs={}).result(PATIENCE) == ((), {})
    assert js(echo).result(PATIENCE) == ((), {})


NAMES = (
    "fn",
    "self",
    "args",
    "kwargs",
    "timeout",
    "consume",
    "js",
    "jobserver",
    "context",
    "slots",
    "env",
    "preexec",
    "work",
    "name",
    "target",
    "cls",
)


def test_keyword_names_reach_the_function(method: str) -> None:
    js = Jobserver(method, 1)
    kwargs: dict[str, object] = dict.fromkeys(NAMES, 1)
    assert js.submit(echo, kwargs=kwargs).result(PATIENCE) == ((), kwargs)
    assert js(echo, **kwargs).result(PATIENCE) == ((), kwargs)
    assert js(echo, 1, 2, **kwargs).result(PATIENCE) == ((1, 2), kwargs)


def test_the_call_is_submit_with_its_defaults(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    future: Future[int] = js(add, 1, b=2)
    assert type(future) is Future
    assert future.result(PATIENCE) == 3
    with Gate(tmp_path) as gate:
        held = js(pass_gate, gate.path)
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)  # the call has taken a slot
        gate.open()
        assert js(add, 1, 2).result(PATIENCE) == 3  # and waits for one
        assert held.done()


@pytest.mark.parametrize("executor", [False, True])
def test_shared_memory_that_the_work_made_outlives_its_worker(method: str, executor: bool) -> None:
    """As with multiprocessing: all processes use the resource tracker that runs already.

    One of the worker's own would remove the memory once the worker is gone, and end.
    """
    with Jobserver(method, 1) as js, JobserverExecutor(js) as pool:
        share = pool.submit if executor else js
        name, started = share(errands.share, b"content").result(PATIENCE)
    for pid in started:
        await_state(pid, "Z")
    memory = SharedMemory(name)
    try:
        assert memory.buf is not None
        assert bytes(memory.buf[:7]) == b"content"
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("executor", [False, True])
def test_descriptors_of_any_number(method: str, tmp_path: Path, executor: bool) -> None:
    """select(2) knows none above 1023."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1200
    taken = [os.dup(0) for _ in range(1100)]
    try:
        with Jobserver(method, 2) as js:
            if executor:
                with JobserverExecutor(js) as pool:
                    assert pool.submit(add, 1, 2).result(PATIENCE) == 3
            else:
                assert js(add, 1, 2).result(PATIENCE) == 3
                with Gate(tmp_path) as gate:
                    lingering = js(pass_gate, gate.path)
                    assert lingering.wait(PATIENCE, signal=signal.SIGTERM)
    finally:
        for fd in taken:
            os.close(fd)


def test_work_runs_in_another_process(method: str) -> None:
    js = Jobserver(method, 2)
    pids = [js(getpid).result(PATIENCE) for _ in range(2)]
    assert len({os.getpid(), *pids}) == 3


@pytest.mark.parametrize(
    ("fn", "args", "result"),
    [
        (len, ("abc",), 3),
        ("a-b".split, ("-",), ["a", "b"]),
        (functools.partial(add, 1), (2,), 3),
        (errands.Thing.plus, (errands.Thing(1), 2), 3),
        (errands.Thing(1).plus, (2,), 3),
        (errands.Thing.made, (5,), 5),
        (int, ("7",), 7),
    ],
    ids=["builtin", "bound builtin", "partial", "function", "bound", "classmethod", "class"],
)
def test_any_callable_that_can_be_pickled(
    method: str, fn: Callable[..., object], args: tuple[object, ...], result: object
) -> None:
    js = Jobserver(method, 1)
    assert js(fn, *args).result(PATIENCE) == result


# What cannot be pickled


def test_lambdas_and_closures_and_the_rest_under_fork() -> None:
    js = Jobserver("fork", 1)
    lock = threading.Lock()
    mark = object()
    assert js(lambda: 5).result(PATIENCE) == 5
    assert js(lambda key: {key: lock.locked()}, key="k").result(PATIENCE) == {"k": False}
    assert js(lock.locked).result(PATIENCE) is False
    assert js(lambda given: given is mark, mark).result(PATIENCE) is True
    assert js(next, iter([7, 8])).result(PATIENCE) == 7


unpicklable: dict[str, Callable[[Jobserver], object]] = {
    "fn": lambda js: js.submit(lambda: None, timeout=0),
    "args": lambda js: js.submit(echo, args=(threading.Lock(),), timeout=0),
    "deep in args": lambda js: js.submit(echo, args=([{"a": (lambda: None,)}],), timeout=0),
    "kwargs": lambda js: js.submit(echo, kwargs={"a": threading.Lock()}, timeout=0),
    "consume=0": lambda js: js.submit(lambda: None, consume=0, timeout=0),
    "call": lambda js: js(echo, lambda: None),
    "raises LookupError": lambda js: js(echo, RaisesOnPickling(LookupError("why"))),
    "raises RecursionError": lambda js: js(echo, nested_list(100_000)),
    "raises TypeError": lambda js: js(echo, RaisesOnPickling(TypeError("why"))),
}


class RaisesOnPickling:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


def nested_list(depth: int) -> list[object]:
    nested: list[object] = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("submit", list(unpicklable.values()), ids=list(unpicklable))
def test_what_cannot_be_pickled_is_refused(
    start: str, submit: Callable[[Jobserver], object], tmp_path: Path
) -> None:
    js = Jobserver(start, 1)
    assert js(add, 1, 2).result(PATIENCE) == 3
    before = descriptors()
    for _ in range(3):
        with pytest.raises(TypeError, match="not picklable") as caught:
            submit(js)
        assert start in str(caught.value)
        assert isinstance(caught.value.__cause__, Exception)
        del caught
        assert descriptors() == before
        assert repr(js).startswith(f"Jobserver('{start}', tracked=0")
    check_slots(js, 1, tmp_path / "check")


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_passes_from_pickling(
    start: str, error: type[BaseException], tmp_path: Path
) -> None:
    js = Jobserver(start, 1)
    assert js(add, 1, 2).result(PATIENCE) == 3
    before = descriptors()
    with pytest.raises(error):
        js(echo, RaisesOnPickling(error()))
    assert descriptors() == before
    check_slots(js, 1, tmp_path / "check")


def test_a_future_is_no_argument() -> None:
    js = Jobserver("spawn", 2)
    future = js(add, 1, 2)
    with pytest.raises(TypeError, match="not picklable"):
        js(identity, future)
    assert future.result(PATIENCE) == 3


# Callbacks that fail meanwhile


def fail(text: str) -> NoReturn:
    raise LookupError(text)


def test_callback_raised_from_submit_has_submitted_nothing(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    pid, mark = tmp_path / "pid", tmp_path / "mark"
    earlier = js.submit(errands.write_pid, args=(str(pid),))
    assert earlier.when_done(fail, "first") == 0
    assert earlier.when_done(fail, "second") == 1
    await_file(pid)
    await_state(int(pid.read_text()), "Z")
    # The one slot is behind `earlier`, whose callbacks run when it is found to be done.
    for seqno, text in enumerate(("first", "second")):
        with pytest.raises(CallbackRaised) as caught:
            js.submit(touch, args=(str(mark),), timeout=PATIENCE)
        assert caught.value.seqno == seqno
        assert repr(caught.value.__cause__) == repr(LookupError(text))
    assert repr(js).startswith(f"Jobserver('{method}', tracked=0")
    check_slots(js, 1, tmp_path / "check")
    assert not mark.exists()
    assert js.submit(touch, args=(str(mark),)).result(PATIENCE) is None
    assert mark.exists()
    assert earlier.done()


def test_a_callback_that_submits_takes_the_slot_first(method: str, tmp_path: Path) -> None:
    """The slot is back before the callbacks run, so that a callback can use it."""
    js = Jobserver(method, 1)
    inner: list[Future[int]] = []
    pid = tmp_path / "pid"
    earlier = js.submit(errands.write_pid, args=(str(pid),))
    earlier.when_done(lambda: inner.append(js.submit(add, args=(1, 1), timeout=0)))
    await_file(pid)
    await_state(int(pid.read_text()), "Z")
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    assert [future.result(PATIENCE) for future in inner] == [2]


def test_a_callbacks_keyboard_interrupt_passes_raw_and_nothing_was_submitted(
    tmp_path: Path,
) -> None:
    def interrupt() -> NoReturn:
        raise KeyboardInterrupt("from the callback")

    js = Jobserver("fork", 1)
    pid, mark = tmp_path / "pid", tmp_path / "mark"
    earlier = js.submit(errands.write_pid, args=(str(pid),))
    earlier.when_done(interrupt)
    await_file(pid)
    await_state(int(pid.read_text()), "Z")
    with pytest.raises(KeyboardInterrupt, match="from the callback"):
        js.submit(touch, args=(str(mark),), timeout=PATIENCE)
    check_slots(js, 1, tmp_path / "check")
    assert not mark.exists()
    assert earlier.done()


# Failures before the work is running


@pytest.mark.skipif(sys.version_info < (3, 15), reason="os.fork raises no warning before 3.15")
@pytest.mark.filterwarnings("error:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_warning_of_a_fork_that_is_an_error_is_raised_before_the_fork(tmp_path: Path) -> None:
    """The thread is the one that bounds hangs. A process that is left fails the fixture."""
    js = Jobserver("fork", 1)
    before = descriptors()
    with pytest.raises(DeprecationWarning, match="multi-threaded"):
        js.submit(touch, args=(str(tmp_path / "mark"),))
    with JobserverExecutor(js) as executor, pytest.raises(DeprecationWarning):
        executor.submit(touch, str(tmp_path / "mark"))
    assert descriptors() == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_slots(js, 1, tmp_path / "check")
    assert not (tmp_path / "mark").exists()


def test_a_fork_that_fails_gives_the_slot_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    js = Jobserver("fork", 1)
    assert js(add, 1, 2).result(PATIENCE) == 3
    before = descriptors()

    def refused() -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refused)
        for consume in (0, 1, 1):
            with pytest.raises(BlockingIOError):
                js.submit(add, args=(1, 2), consume=consume, timeout=0)
            assert descriptors() == before
            assert repr(js).startswith("Jobserver('fork', tracked=0")
    check_slots(js, 1, tmp_path / "check")


@pytest.mark.parametrize("slots", [1, 2])
def test_too_few_descriptors_for_a_submission(method: str, slots: int) -> None:
    run_program(scarcity.submissions, method, slots)


def test_too_few_descriptors_for_a_jobserver(method: str) -> None:
    run_program(scarcity.constructions, method)


def test_descriptors_used_up_by_running_work(method: str) -> None:
    run_program(scarcity.many_at_once, method, 16)


@pytest.mark.parametrize("timeout", ["1", "nan"])
def test_numbers_of_other_types_are_not_guessed_at(tmp_path: Path, timeout: Any) -> None:
    with full_tree(tmp_path) as js:
        began = time.monotonic()
        with pytest.raises(TypeError, match="timeout"):
            js.submit(add, args=(1, 2), timeout=timeout)
        assert time.monotonic() - began < PATIENCE
