"""Errors say what happened, and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver, JobserverExecutor
from tests.work import PATIENCE, Gate, add, pass_gate


def boom() -> None:
    raise ValueError("boom")


def use(executor: JobserverExecutor) -> int:
    return executor.submit(add, 1, 2).result(PATIENCE)


def test_blocked_says_what_it_waited_for_and_how_long(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 2) as js:
        first = js(pass_gate, gate.path)
        pid = repr(first).partition("pid=")[2].rstrip(")")
        with pytest.raises(Blocked, match=rf"^no result in 0\.01 s from worker {pid}$"):
            first.result(0.01)
        with pytest.raises(Blocked, match=r"^not all was done in 0\.\d+ s: 1 Future not done$"):
            js.drain(0.01)
        second = js(pass_gate, gate.path)
        with pytest.raises(Blocked, match=r"^no slot came free in 0\.\d+ s: 2 of 2 are in use$"):
            js.submit(add, timeout=0.01)
        with pytest.raises(Blocked, match=r"^no slot came free in 0\.\d+ s: 2 of 2 are in use$"):
            js.run(["true"], timeout=0.01)
        with pytest.raises(Blocked, match=r"^not all was done in 0 s: 2 Futures not done$"):
            js.drain(0)
        with pytest.raises(Blocked, match=r"submitted: the 0 s of this map are over$"):
            next(js.map(add, [(1, 2)], timeout=0))
        gate.open()
        assert first.wait(PATIENCE)
        assert second.wait(PATIENCE)
        with pytest.raises(Blocked, match=r"replace_sleep did not admit the work in 0\.\d+ s$"):
            js.replace_sleep(lambda: 60).submit(add, timeout=0.01)


def test_a_map_that_waits_for_a_result_says_how_long(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        results = js.map(pass_gate, [(gate.path,)], timeout=0.01)
        with pytest.raises(Blocked, match=r"no next result came: the 0\.01 s of this map are over"):
            next(results)
        gate.open()
        js.drain(PATIENCE)


@pytest.mark.parametrize("text", ["a.txt", b"a.txt"])
def test_a_text_in_the_place_of_arguments_is_told_of(text: Any) -> None:
    with Jobserver("fork", 1) as js:
        with pytest.raises(TypeError, match=r"argses\[0\].*write \(b?'a.txt',\)"):
            js.map(len, [text])
        with pytest.raises(TypeError, match=r"args must.*write \(b?'a.txt',\)"):
            js.submit(len, args=text)
        with pytest.raises(TypeError, match=r"argses\[1\].*write \(5,\)"):
            js.map(abs, [(1,), 5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("args", "kwargs", "calls"),
    [
        ((2, 3), {}, ["js.submit(pow, args=(2, 3))", "js(pow, 2, 3)"]),
        ((2,), {}, ["js.submit(pow, args=(2,))", "js(pow, 2)"]),
        ((2,), {"mod": 5}, ["js.submit(pow, args=(2,), kwargs={'mod': 5})", "js(pow, 2, mod=5)"]),
        ((), {"exp": 5}, ["js.submit(pow, kwargs={'exp': 5})", "js(pow, exp=5)"]),
    ],
)
def test_a_submission_in_the_executors_way_shows_the_right_call(
    args: Any, kwargs: Any, calls: list[str]
) -> None:
    with Jobserver("fork", 1) as js:
        with pytest.raises(TypeError) as caught:
            js.submit(pow, *args, **kwargs)
        for call in calls:
            assert call in str(caught.value)
        assert js.submit(fn=pow, args=(2, 3)).result(PATIENCE) == 8
    names = list(inspect.signature(Jobserver.submit).parameters)
    assert names == ["self", "fn", "args", "kwargs", "consume", "timeout"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'fn'"):
        js.submit()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cancel", r"wait\(signal="),
        ("exception", r"result\(\)"),
        ("add_done_callback", "when_done"),
        ("running", "done"),
    ],
)
def test_what_a_future_of_the_standard_library_has_is_told_of(name: str, hint: str) -> None:
    with Jobserver("fork", 1) as js:
        future: Future[int] = js(add, 1, 2)
        assert future.wait(PATIENCE)
        assert not hasattr(future, name)
        assert name not in dir(future)
        with pytest.raises(AttributeError, match=f"'Future'.*no attribute '{name}': .*{hint}"):
            getattr(future, name)
        with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
            getattr(future, "nothing")  # noqa: B009 - type checkers know


@pytest.mark.parametrize(
    ("name", "hint"),
    [("shutdown", r"drain\(\)"), ("as_completed", "when_done"), ("starmap", r"map\(fn, argses\)")],
)
def test_what_an_executor_or_a_pool_has_is_told_of(name: str, hint: str) -> None:
    with Jobserver("fork", 1) as js:
        assert not hasattr(js, name)
        with pytest.raises(AttributeError, match=f"'Jobserver'.*no attribute '{name}': .*{hint}"):
            getattr(js, name)
        assert repr(copy.copy(js)) == repr(js) == repr(copy.deepcopy(js))


def test_a_raising_callback_is_named_by_a_note() -> None:
    with Jobserver("fork", 1) as js:
        future = js(add, 1, 2)
        pid = repr(future).partition("pid=")[2].rstrip(")")
        future.when_done(print, end="")
        future.when_done(boom)
        with pytest.raises(CallbackRaised) as caught:
            future.wait(PATIENCE)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        (note,) = getattr(error, "__notes__")  # noqa: B009 - it is there from Python 3.11 on
        assert note.startswith("raised by callback 1, <function boom at 0x")
        assert note.endswith(f", of the Future of worker {pid}")
    if sys.version_info >= (3, 11):
        assert note in "".join(traceback.format_exception(caught.value))


def test_an_executor_as_an_argument_is_told_of(method: str) -> None:
    with JobserverExecutor(1, method) as executor:
        # The second begins when the first has, so under fork the executor is in use.
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
        with pytest.raises(TypeError, match="pass the Jobserver"):
            executor.submit(use, executor).result(PATIENCE)
        with pytest.raises(TypeError, match="pass the Jobserver"):
            copy.copy(executor)
        with Jobserver(method, 1) as js, pytest.raises((TypeError, RuntimeError)) as caught:
            js.submit(use, args=(executor,)).result(PATIENCE)
        assert "pass the Jobserver" in str(caught.value)
