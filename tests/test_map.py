"""`Jobserver.map`: what it takes, in which order it answers, and when it gives up."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import time
import weakref
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, NoReturn, Optional

import pytest

from jobserver import Blocked, CallbackRaised, Jobserver, LostResult
from tests import errands
from tests.processes import await_state, check_slots
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    blob,
    echo,
    getpid,
    identity,
    pass_gate,
    raise_value_error,
    touch,
    touch_and_pass_gate,
)

# Longer than an answer takes on a busy machine, and shorter than a wait that went wrong.
SOON = PATIENCE / 3


class Counted:
    """An iterator over `(0,), (1,), ...` that knows how many were taken."""

    def __init__(self, end: int = 10**9) -> None:
        self.taken = 0
        self.end = end

    def __iter__(self) -> Iterator[tuple[int]]:
        return self

    def __next__(self) -> tuple[int]:
        if self.taken == self.end:
            raise StopIteration
        self.taken += 1
        return (self.taken - 1,)


# Results


def test_map_gives_results_in_order(method: str) -> None:
    js = Jobserver(method, 2)
    assert list(js.map(add, [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)])) == [3, 7, 11, 15, 19]


def test_map_gives_results_in_the_order_of_the_inputs_not_of_their_ends(
    method: str, tmp_path: Path
) -> None:
    js = Jobserver(method, 2)
    path = str(tmp_path / "last")
    with js:
        results = js.map(errands.wait_for_file_then, [(path, 0), (path, 1)])
        touch(path)
        assert list(results) == [0, 1]
    with Jobserver(method, 3) as js:
        marks = [str(tmp_path / name) for name in ("a", "b")]
        # The first ends when the second has ended, and that when the third has begun.
        calls: list[Any] = [(marks[0], 0, None), (marks[1], 1, marks[0]), (None, 2, marks[1])]
        assert list(js.map(errands.relay, calls)) == [0, 1, 2]


def test_map_gives_an_iterator(method: str) -> None:
    results = Jobserver(method, 1).map(identity, [(1,), (2,)])
    assert iter(results) is results
    assert next(results) == 1
    assert next(results) == 2
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(results)


@pytest.mark.parametrize("buffersize", [None, 1, 5])
@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_map_of_nothing(chunksize: Any, buffersize: Any) -> None:
    js = Jobserver("fork", 1)
    sizes = {"chunksize": chunksize, "buffersize": buffersize}
    assert list(js.map(add, [], **sizes)) == []
    assert list(js.map(add, kwargses=[], **sizes)) == []
    assert list(js.map(add, (), (), **sizes)) == []
    assert list(js.map(add, iter(()), iter(()), **sizes)) == []


@pytest.mark.parametrize("buffersize", [None, 1, 2, 100])
@pytest.mark.parametrize("chunksize", [1, 3, 100, "auto"])
@pytest.mark.parametrize("slots", [1, 3])
def test_map_with_every_chunk_and_buffer(slots: int, chunksize: Any, buffersize: Any) -> None:
    js = Jobserver("fork", slots)
    for number in (1, 3, 7):
        argses = [(n, 1) for n in range(number)]
        for source in (argses, iter(argses)):
            results = js.map(add, source, chunksize=chunksize, buffersize=buffersize)
            assert list(results) == list(range(1, number + 1))


def test_map_runs_more_than_one_at_once(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    marks = [str(tmp_path / name) for name in ("a", "b")]
    # Each waits for the other to have begun.
    calls = [(marks[0], marks[1]), (marks[1], marks[0])]
    assert list(js.map(errands.meet, calls, timeout=PATIENCE)) == [None, None]


def test_map_runs_no_more_than_there_are_slots(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    with Gate(tmp_path) as gate:
        marks = [tmp_path / str(number) for number in range(5)]
        results = js.map(touch_and_pass_gate, [(str(mark), gate.path) for mark in marks])
        await_file(marks[0])
        await_file(marks[1])
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0.1)
        assert [mark.exists() for mark in marks] == [True, True, False, False, False]
        gate.open()
        assert list(results) == [None] * 5


def test_map_with_a_large_result_behind_the_next(method: str) -> None:
    js = Jobserver(method, 2)
    sizes = [1, 4 << 20, 0, 4 << 20]
    assert [len(result) for result in js.map(blob, [(size,) for size in sizes])] == sizes


def test_map_in_nested_work(method: str) -> None:
    js = Jobserver(method, 2)
    assert js.submit(errands.map_add, args=(js, 4)).result(PATIENCE) == [1, 2, 3, 4]


def test_map_of_a_closure_under_fork() -> None:
    offset = 10
    js = Jobserver("fork", 2)
    assert list(js.map(lambda n: n + offset, [(1,), (2,)], chunksize=2)) == [11, 12]
    assert list(js.map(lambda n: n + offset, [(1,), (2,)])) == [11, 12]


# Inputs


def test_map_takes_argses_of_any_iterables(method: str) -> None:
    js = Jobserver(method, 2)
    argses: list[Any] = [
        (1, 2),
        [3, 4],
        iter((5, 6)),
        range(7, 9),
        {9: "nine"}.keys(),
        list("ab"),
        (),
    ]
    assert [args for args, _ in js.map(echo, argses)] == [
        (1, 2),
        (3, 4),
        (5, 6),
        (7, 8),
        (9,),
        ("a", "b"),
        (),
    ]


def test_map_takes_kwargses_of_any_mappings(method: str) -> None:
    js = Jobserver(method, 2)
    kwargses: list[Any] = [{"a": 1}, MappingProxyType({"b": 2}), UserDict(c=3), {}]
    assert list(js.map(echo, kwargses=kwargses)) == [
        ((), {"a": 1}),
        ((), {"b": 2}),
        ((), {"c": 3}),
        ((), {}),
    ]


@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_map_takes_both(method: str, chunksize: Any) -> None:
    js = Jobserver(method, 2)
    results = js.map(echo, [(1,), (2,), (3,)], [{"a": 1}, {}, {"b": 2}], chunksize=chunksize)
    assert list(results) == [((1,), {"a": 1}), ((2,), {}), ((3,), {"b": 2})]


def test_map_takes_keyword_names_like_its_own(method: str) -> None:
    names = ("fn", "self", "args", "kwargs", "argses", "kwargses", "timeout", "chunksize")
    kwargs = dict.fromkeys(names, 1)
    for chunksize in (1, 2):
        results = Jobserver(method, 1).map(echo, kwargses=[kwargs], chunksize=chunksize)
        assert list(results) == [((), kwargs)]


def test_map_collects_its_inputs_at_the_call() -> None:
    js = Jobserver("fork", 1)
    counted, more = Counted(5), ({"base": 10} for _ in range(5))
    results = js.map(errands.plus_base, counted, more)
    assert counted.taken == 5
    assert next(more, None) is None
    assert list(results) == [10, 11, 12, 13, 14]


def test_map_takes_the_inputs_as_they_were_at_the_call() -> None:
    args = [1, 2]
    kwargs: dict[str, object] = {"a": 1}
    argses, kwargses = [args] * 3, [kwargs] * 3
    results = Jobserver("fork", 1).map(echo, argses, kwargses)
    args.append(3)
    kwargs["b"] = 2
    argses.clear()
    kwargses.clear()
    assert list(results) == [((1, 2), {"a": 1})] * 3


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [1, 2])
def test_map_reads_lazily_with_buffersize(chunksize: int, buffersize: int, tmp_path: Path) -> None:
    js = Jobserver("fork", 4)
    counted = Counted()
    results = js.map(identity, counted, chunksize=chunksize, buffersize=buffersize)
    ahead = chunksize * (buffersize + 1)  # what is outstanding, and a chunk about to be
    assert counted.taken <= ahead
    for number in range(12):
        assert next(results) == number
        assert counted.taken <= number + 1 + ahead
    del results
    gc.collect()
    assert counted.taken <= 12 + ahead
    check_slots(js, 4, tmp_path / "check")  # what was ahead has ended


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_bounds_outstanding_submissions_with_buffersize(chunksize: int, tmp_path: Path) -> None:
    js = Jobserver("fork", 5)
    with Gate(tmp_path) as gate:
        marks = [tmp_path / str(number) for number in range(10)]
        calls = [(str(mark), gate.path) for mark in marks]
        results = js.map(touch_and_pass_gate, calls, chunksize=chunksize, buffersize=2)
        # The rest of the slots is free for others, for as long as nothing is taken from the map.
        extra = [js.submit(pass_gate, args=(gate.path,), timeout=0) for _ in range(3)]
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)
        await_file(marks[0])
        await_file(marks[chunksize])
        begun = [number for number, mark in enumerate(marks) if mark.exists()]
        assert begun == [0, chunksize]
        gate.open()
        for future in extra:
            assert future.wait(PATIENCE)
        assert list(results) == [None] * 10


def test_map_over_endless_inputs(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    for chunksize in (1, 2):
        endless = ((number, 1) for number in itertools.count())
        results = js.map(add, endless, chunksize=chunksize, buffersize=2)
        assert list(itertools.islice(results, 5)) == [1, 2, 3, 4, 5]
        del results
    check_slots(js, 2, tmp_path / "check")


def test_map_puts_a_chunk_into_one_submission(method: str) -> None:
    js = Jobserver(method, 2)
    pids = [pid for _, pid in js.map(errands.with_pid, [(n,) for n in range(7)], chunksize=3)]
    assert len(set(pids)) == 3
    assert pids == [pids[0]] * 3 + [pids[3]] * 3 + [pids[6]]
    assert os.getpid() not in pids


def test_map_asks_the_gate_for_every_submission() -> None:
    asked: list[int] = []
    js = Jobserver("fork", 7).replace_sleep(lambda: asked.append(1))
    assert len(list(js.map(identity, [(n,) for n in range(7)], chunksize=3))) == 7
    assert len(asked) == 3


# Inputs that will not do


@pytest.mark.parametrize("fn", [None, 5, "add", ()])
def test_map_of_what_is_not_callable(fn: Any) -> None:
    with pytest.raises(TypeError, match="fn") as caught:
        Jobserver("fork", 1).map(fn, [(1, 2)])
    assert repr(fn) in str(caught.value) or type(fn).__name__ in str(caught.value)


@pytest.mark.parametrize("buffersize", [None, 1])
@pytest.mark.parametrize(
    "whole", [{"a": 1}, MappingProxyType({"a": 1}), UserDict(a=1), {}, 5, 1.5, object()]
)
def test_map_of_a_mapping_or_of_nothing_iterable_passed_whole(whole: Any, buffersize: Any) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(TypeError, match=r"\bargses\b"):
        js.map(echo, whole, buffersize=buffersize)
    with pytest.raises(TypeError, match="kwargses"):
        js.map(echo, kwargses=whole, buffersize=buffersize)
    with pytest.raises(TypeError, match="kwargses"):
        js.map(echo, [(1,)], whole, buffersize=buffersize)


@pytest.mark.parametrize("bad", [5, None, 1.5, object(), {"a": 1}, MappingProxyType({})])
def test_map_names_the_index_of_wrong_args(bad: Any, tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(TypeError, match=r"argses\[1\]") as caught:
        js.map(touch, [(tmp_path / "touched",), bad, (tmp_path / "touched",)])
    assert "kwargses" not in str(caught.value)
    assert type(bad).__name__ in str(caught.value) or repr(bad) in str(caught.value)
    assert not (tmp_path / "touched").exists()  # a map that raises has submitted nothing


@pytest.mark.parametrize("bad", [5, None, "ab", [("a", 1)], (), object(), {"a"}])
def test_map_names_the_index_of_wrong_kwargs(bad: Any, tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    fine = {"path": tmp_path / "touched"}
    with pytest.raises(TypeError, match=r"kwargses\[1\]") as caught:
        js.map(touch, kwargses=[fine, bad, fine])
    assert type(bad).__name__ in str(caught.value) or repr(bad) in str(caught.value)
    with pytest.raises(TypeError, match=r"kwargses\[0\]"):
        js.map(touch, [(1,)], [bad])
    assert not (tmp_path / "touched").exists()


def test_map_with_buffersize_reaches_a_wrong_input_in_its_turn() -> None:
    js = Jobserver("fork", 1)
    results = js.map(identity, iter([(1,), (2,), 5, (4,)]), buffersize=1)  # type: ignore[arg-type]
    assert next(results) == 1
    assert next(results) == 2
    with pytest.raises(TypeError, match=r"argses\[2\]"):
        next(results)
    results = js.map(identity, kwargses=iter([{"value": 1}, 5]), buffersize=1)  # type: ignore[arg-type]
    assert next(results) == 1
    with pytest.raises(TypeError, match=r"kwargses\[1\]"):
        next(results)


@pytest.mark.parametrize(("some", "more"), [(2, 3), (3, 2), (0, 1), (1, 0)])
def test_map_of_unequal_lengths(some: int, more: int, tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    path = tmp_path / "touched"
    argses = [(path,)] * some
    kwargses: list[dict[str, object]] = [{}] * more
    for buffersize in (None, 1):
        with pytest.raises(ValueError, match=rf"(?s){some}.*{more}"):
            js.map(touch, argses, kwargses, buffersize=buffersize)
    # Collected at the call, the lengths of iterators are known there, too.
    with pytest.raises(ValueError, match=rf"(?s){some}.*{more}"):
        js.map(touch, iter(argses), kwargses)
    with pytest.raises(ValueError, match=rf"(?s){some}.*{more}"):
        js.map(touch, argses, iter(kwargses))
    assert not path.exists()


@pytest.mark.parametrize(("some", "more"), [(2, 3), (3, 2)])
def test_map_with_buffersize_reaches_the_end_of_the_shorter(some: int, more: int) -> None:
    js = Jobserver("fork", 1)
    kwargses: list[dict[str, object]] = [{}] * more
    results = js.map(identity, iter([(n,) for n in range(some)]), iter(kwargses), buffersize=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="argses and kwargses"):
        next(results)


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_map_refuses_sizes_below_one(name: str, value: int) -> None:
    js = Jobserver("fork", 1)
    counted = Counted(3)
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        js.map(identity, counted, **{name: value})  # type: ignore[arg-type]
    assert counted.taken == 0


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
@pytest.mark.parametrize("value", [b"1", True, 1.5, (), object()])
def test_map_refuses_sizes_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        Jobserver("fork", 1).map(identity, [(1,)], **{name: value})


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (True, TypeError),
        ("1", TypeError),
        (b"1", TypeError),
        ((), TypeError),
        (-1, ValueError),
        (float("inf"), ValueError),
        (float("nan"), ValueError),
    ],
)
def test_map_refuses_a_timeout_at_the_call(timeout: Any, error: type[Exception]) -> None:
    counted = Counted(3)
    with pytest.raises(error, match="timeout"):
        Jobserver("fork", 1).map(identity, counted, timeout=timeout)
    assert counted.taken == 0


def test_map_passes_the_error_of_an_input_at_the_call() -> None:
    def inputs() -> Iterator[tuple[int]]:
        yield (1,)
        raise LookupError("from the inputs")

    js = Jobserver("fork", 1)
    with pytest.raises(LookupError, match="from the inputs"):
        js.map(identity, inputs())
    results = js.map(identity, inputs(), buffersize=1)
    assert next(results) == 1
    with pytest.raises(LookupError, match="from the inputs"):
        next(results)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_of_what_cannot_be_pickled(start: str, chunksize: int, tmp_path: Path) -> None:
    js = Jobserver(start, 1)
    with pytest.raises(TypeError, match="not picklable") as caught:
        list(js.map(lambda n: n, [(1,), (2,)], chunksize=chunksize))
    assert start in str(caught.value)
    check_slots(js, 1, tmp_path / "check")


# Exceptions


@pytest.mark.parametrize("chunksize", [1, 2, 3, 10])
@pytest.mark.parametrize("bad", [0, 1, 2, 4])
def test_map_raises_an_exception_at_its_own_position(bad: int, chunksize: int) -> None:
    js = Jobserver("fork", 2)
    results = js.map(errands.fail_at, [(n, bad) for n in range(5)], chunksize=chunksize)
    assert list(itertools.islice(results, bad)) == list(range(bad))
    with pytest.raises(ValueError, match=f"at {bad}") as caught:
        next(results)
    assert "in fail_at" in str(caught.value.__cause__)
    assert list(results) == list(range(bad + 1, 5))


def test_map_raises_a_loss_at_its_own_position(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    results = js.map(errands.die_at, [(n, 2) for n in range(4)])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(LostResult, match="SIGKILL"):
        next(results)
    del results
    check_slots(js, 2, tmp_path / "check")


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_yields_an_exception_that_was_returned(method: str, chunksize: int) -> None:
    results = Jobserver(method, 1).map(identity, [(ValueError("a"),), (2,)], chunksize=chunksize)
    first: object = next(results)
    assert isinstance(first, ValueError)
    assert next(results) == 2


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_what_cannot_be_pickled_at_its_own_position(method: str, chunksize: int) -> None:
    js = Jobserver(method, 1)
    results = js.map(errands.lambda_if, [(False,), (True,)], chunksize=chunksize)
    assert next(results) is None
    with pytest.raises(RuntimeError, match="not picklable"):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_callback_that_fails_meanwhile_costs_the_map_nothing(
    chunksize: int, tmp_path: Path
) -> None:
    """CallbackRaised may come from any step of the map; the results are all there after it."""

    def fail() -> NoReturn:
        raise LookupError("from the callback")

    js = Jobserver("fork", 1)
    mark = str(tmp_path / "pid")
    future = js.submit(errands.write_pid, args=(mark,))
    future.when_done(fail)
    await_file(mark)
    await_state(int(Path(mark).read_text()), "Z")
    causes: list[object] = []
    results = None
    collected: list[int] = []
    while len(collected) < 4:
        try:
            if results is None:
                results = js.map(identity, [(n,) for n in range(4)], chunksize=chunksize)
            collected.append(next(results))
        except CallbackRaised as error:
            causes.append(error.__cause__)
    try:
        future.wait()
    except CallbackRaised as error:
        causes.append(error.__cause__)
    assert collected == [0, 1, 2, 3]
    assert [repr(cause) for cause in causes] == [repr(LookupError("from the callback"))]


# Chunks that grow


MANY = 400  # calls, of which some chunk has several: most of those before take next to no time


@pytest.fixture(params=["fresh", "reused"])
def workers(request: pytest.FixtureRequest) -> bool:
    """Whether workers are reused."""
    return bool(request.param == "reused")


def for_many(method: str, reused: bool) -> Jobserver:
    js = Jobserver(method, 2)
    return js.replace_workers() if reused else js


@pytest.mark.parametrize("buffersize", [None, 3])
def test_chunks_grow_and_change_nothing_about_the_results(
    method: str, workers: bool, buffersize: Any
) -> None:
    with for_many(method, workers) as js:
        argses = [(number,) for number in range(MANY)]
        asked: list[int] = []
        gated = js.replace_sleep(lambda: asked.append(1))
        results = gated.map(
            identity, iter(argses), chunksize="auto", buffersize=buffersize, timeout=PATIENCE
        )
        assert list(results) == list(range(MANY))
        assert len(asked) < MANY


def test_many_calls_with_keywords(method: str) -> None:
    with for_many(method, True) as js:
        argses = [(number,) for number in range(MANY)]
        kwargses: list[dict[str, object]] = [{"n": n} if n % 3 else {} for n in range(MANY)]
        results = js.map(echo, argses, kwargses, chunksize="auto")
        assert list(results) == [(args, kwargs) for args, kwargs in zip(argses, kwargses)]


def test_an_exception_within_a_chunk_that_grew_surfaces_at_its_position(
    method: str, workers: bool
) -> None:
    with for_many(method, workers) as js:
        bad = MANY - 20
        results = js.map(errands.fail_at, [(n, bad) for n in range(MANY)], chunksize="auto")
        assert list(itertools.islice(results, bad)) == list(range(bad))
        with pytest.raises(ValueError, match=f"at {bad}") as caught:
            next(results)
        assert "in fail_at" in str(caught.value.__cause__)
        assert list(results) == list(range(bad + 1, MANY))


@pytest.mark.parametrize("chunksize", [4, "auto"])
def test_results_of_any_kind_travel_in_one_chunk(method: str, chunksize: Any) -> None:
    """Those that are plain, that are not, and that cannot travel at all, each in its place."""
    with for_many(method, True) as js:
        kinds = ["plain", "error", "object", "lambda", "unfit"] * 40
        results = js.map(errands.result_of_kind, [(kind,) for kind in kinds], chunksize=chunksize)
        for kind in kinds:
            if kind == "plain":
                assert next(results) == ["plain", {"of": (1, "kind")}]
            elif kind == "object":
                assert isinstance(next(results), errands.Thing)
            elif kind == "error":
                with pytest.raises(LookupError, match="as told"):
                    next(results)
            elif kind == "lambda":
                with pytest.raises(RuntimeError, match="not picklable"):
                    next(results)
            else:
                with pytest.raises(RuntimeError, match="not reconstructable"):
                    next(results)
        assert next(results, None) is None


def drain(results: Iterator[Any]) -> list[Any]:
    """All that a map gives: values, and what it raises in their places."""
    got: list[Any] = []
    while True:
        try:
            got.append(next(results))
        except StopIteration:
            return got
        except BaseException as error:
            got.append(error)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_work_that_raises_stop_iteration_ends_nothing(
    method: str, workers: bool, chunksize: Any
) -> None:
    with for_many(method, workers) as js:
        calls = 100 if workers else 4
        bad = {1, calls - 1}
        argses = [(number in bad,) for number in range(calls)]
        got = drain(js.map(errands.stop_iteration_if, argses, chunksize=chunksize))
        assert [number for number, value in enumerate(got) if value is not None] == sorted(bad)
        for number in bad:
            assert isinstance(got[number], RuntimeError)
            cause = got[number].__cause__
            assert isinstance(cause, StopIteration)
            assert cause.value == "from the work"
            assert "in stop_iteration_if" in str(cause.__cause__)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_other_ends_of_iterators_are_raised_as_they_are(method: str, chunksize: int) -> None:
    with Jobserver(method, 2).replace_workers() as js:
        argses = [(StopAsyncIteration, number == 1) for number in range(4)]
        got = drain(js.map(errands.raise_if, argses, chunksize=chunksize))
        assert [type(value) for value in got] == [bool, StopAsyncIteration, bool, bool]


def test_a_gate_that_raises_stop_iteration_ends_no_map() -> None:
    asked: list[int] = []

    def gate() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise StopIteration

    with Jobserver("fork", 1) as js:
        got = drain(js.replace_sleep(gate).map(identity, [(0,), (1,), (2,)]))
        assert [got[0], got[2]] == [0, 2]
        assert isinstance(got[1], RuntimeError)
        assert isinstance(got[1].__cause__, StopIteration)


class Unreadable:
    """Arguments of a call that raise when they are read."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __iter__(self) -> Iterator[int]:
        raise self.error


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit])
def test_an_input_that_raises_what_ends_an_iterator_is_told_in_its_turn(
    error: type[BaseException], both: bool
) -> None:
    argses: list[Any] = [(0,), (1,), Unreadable(error), (3,)]
    with Jobserver("fork", 1) as js:
        kwargses: Any = [{}] * 4 if both else None
        got = drain(js.map(identity, argses, kwargses, buffersize=3))
        assert got[:2] == [0, 1]
        assert len(got) == 3
        if error is StopIteration:
            assert isinstance(got[2], RuntimeError)
            assert isinstance(got[2].__cause__, StopIteration)
        else:
            assert isinstance(got[2], error)


def test_a_chunk_that_grew_is_lost_with_its_worker(method: str) -> None:
    with for_many(method, True) as js:
        bad = MANY // 2
        results = js.map(errands.die_at, [(n, bad) for n in range(MANY)], chunksize="auto")
        got: list[Optional[int]] = []
        for _ in range(MANY):
            try:
                got.append(next(results))
            except LostResult:
                got.append(None)
        assert got[bad] is None
        assert got == [None if value is None else number for number, value in enumerate(got)]
        assert len(got) - got.count(None) >= bad // 2
        assert next(results, None) is None


def test_a_map_whose_chunks_grow_is_blocked_past_the_deadline(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        results = js.map(pass_gate, [(gate.path, 0)] * 9, timeout=0.3, chunksize="auto")
        with pytest.raises(Blocked):
            list(results)
        gate.open()
    check_eventually_free(js)


@pytest.mark.parametrize("word", ["Auto", "", "1", "automatic"])
def test_map_refuses_words_that_are_not_auto(word: Any) -> None:
    counted = Counted(3)
    with pytest.raises(ValueError, match=rf'chunksize.*"auto", not \'{word}\''):
        Jobserver("fork", 1).map(identity, counted, chunksize=word)
    assert counted.taken == 0


# References


@pytest.mark.parametrize("chunksize", [1, 2, 5, "auto"])
@pytest.mark.parametrize("buffersize", [None, 2])
def test_map_keeps_no_reference_to_what_it_has_yielded(chunksize: Any, buffersize: Any) -> None:
    js = Jobserver("fork", 2)
    argses = [(number,) for number in range(5)]
    results = js.map(errands.Thing, argses, chunksize=chunksize, buffersize=buffersize)
    for number in range(5):
        thing = next(results)
        assert thing.number == number
        gone = weakref.ref(thing)
        del thing
        assert gone() is None
    assert next(results, None) is None


# The deadline


def test_map_raises_blocked_past_the_deadline(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        began = time.monotonic()
        results = js.map(pass_gate, [(gate.path, 0), (gate.path, 1)], timeout=0.3)
        with pytest.raises(Blocked):
            next(results)
        assert 0.3 <= time.monotonic() - began < SOON
        with pytest.raises(Blocked):
            next(results)
        gate.open()
    check_eventually_free(js)


def test_map_raises_blocked_when_no_slot_comes_free(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        held = js.submit(pass_gate, args=(gate.path,))
        for timeout in (0, 0.2):
            began = time.monotonic()
            results = js.map(add, [(1, 2)], timeout=timeout)
            with pytest.raises(Blocked):
                next(results)
            assert timeout <= time.monotonic() - began < SOON
        gate.open()
        assert held.wait(PATIENCE)


def test_the_deadline_of_map_counts_from_the_call(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    with Gate(tmp_path) as gate:
        results = js.map(pass_gate, [(gate.path, 0)], timeout=0.3)
        time.sleep(0.4)
        began = time.monotonic()
        with pytest.raises(Blocked):
            next(results)
        assert time.monotonic() - began < 0.25
        gate.open()
    check_eventually_free(js)


def test_the_deadline_of_map_is_one_for_all_results(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    with Gate(tmp_path) as gate:
        inputs = [(0, "")] * 3 + [(1, gate.path)]
        began = time.monotonic()
        results = js.map(errands.linger_or_pass, inputs, timeout=1)
        assert [next(results), next(results), next(results)] == [0, 0, 0]
        with pytest.raises(Blocked):
            next(results)
        assert 1 <= time.monotonic() - began < SOON
        gate.open()
    check_eventually_free(js)


def test_map_in_time_is_not_blocked(method: str) -> None:
    results = Jobserver(method, 2).map(add, [(1, 2), (3, 4)], timeout=PATIENCE)
    assert list(results) == [3, 7]


def test_a_waiting_map_burns_no_cpu(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    with Gate(tmp_path) as gate:
        results = js.map(pass_gate, [(gate.path, 0), (gate.path, 1)], timeout=2)
        burnt = time.process_time()
        with pytest.raises(Blocked):
            next(results)
        burnt = time.process_time() - burnt
        assert burnt < 0.04, f"{burnt} s of processor time in 2 s of waiting"
        gate.open()
    check_eventually_free(js)


def check_eventually_free(js: Jobserver) -> None:
    """The slot of what the map left running comes back when it has finished."""
    assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3


# Abandoned


def test_an_abandoned_map_cancels_nothing(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    marks = [tmp_path / str(number) for number in range(2)]
    with Gate(tmp_path) as gate:
        results = js.map(errands.pass_gate_then_touch, [(gate.path, str(mark)) for mark in marks])
        del results
        gc.collect()
        gate.open()
        for mark in marks:
            await_file(mark)
    check_slots(js, 2, tmp_path / "check")


def test_a_map_abandoned_half_way_gives_back_the_slots_of_finished_work(
    method: str, tmp_path: Path
) -> None:
    js = Jobserver(method, 3)
    marks = [tmp_path / str(number) for number in range(3)]
    results = js.map(errands.write_pid, [(str(mark),) for mark in marks])
    next(results)
    for mark in marks:
        await_file(mark)
        await_state(int(mark.read_text()), "Z")
    del results
    gc.collect()
    if method == "forkserver":  # whose own notice of a worker's end may come a moment later
        check_slots(js, 3, tmp_path / "check")
    else:
        with Gate(tmp_path) as gate:
            futures = [js.submit(pass_gate, args=(gate.path,), timeout=0) for _ in range(3)]
            gate.open()
            for future in futures:
                assert future.wait(PATIENCE)


def test_a_map_abandoned_gives_slots_to_other_processes_too(tmp_path: Path) -> None:
    """They come back with the iterator, not only with this process's next call."""
    js = Jobserver("fork", 2)
    with Gate(tmp_path) as gate:
        mark = tmp_path / "pid"
        child_mark = tmp_path / "child"
        child = js.submit(errands.wait_then_try, args=(js, gate.path, str(child_mark)))
        await_file(child_mark)
        results = js.map(errands.write_pid, [(str(mark),)])
        await_file(mark)
        await_state(int(mark.read_text()), "Z")
        del results
        gc.collect()
        gate.open()
        await_state_of_result(child_mark)
        assert child.result(PATIENCE) != "Blocked"


def await_state_of_result(mark: Path) -> None:
    await_file(str(mark) + ".tried")


def test_a_map_never_started_to_be_read_leaves_nothing(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    js.map(getpid, [(), ()])
    gc.collect()
    check_slots(js, 2, tmp_path / "check")


def test_a_map_outlives_its_handle_variable(method: str) -> None:
    results = Jobserver(method, 1).map(add, [(1, 2), (3, 4), (5, 6)])
    gc.collect()
    assert list(results) == [3, 7, 11]


def refuse() -> NoReturn:
    raise LookupError("by the gate")


def refuse_with_cause_and_context() -> NoReturn:
    cause: Optional[LookupError] = None
    try:
        refuse()
    except LookupError as error:
        cause = error
    try:
        refuse()
    except LookupError:
        raise ValueError("by the gate") from cause


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("gate", [refuse, refuse_with_cause_and_context])
def test_an_iterator_with_an_unread_error_is_freed_when_it_is_abandoned(
    method: str, gate: Callable[[], NoReturn]
) -> None:
    with Jobserver(method, 1) as js:
        results = js.replace_sleep(gate).map(identity, [(0,), (1,)])
        reference = weakref.ref(results)
        del results
        assert reference() is None


def refuse_because_of_itself() -> NoReturn:
    error = LookupError("by the gate")
    raise error from error


def test_an_error_that_is_its_own_cause_is_raised() -> None:
    with Jobserver("fork", 1) as js:
        results = js.replace_sleep(refuse_because_of_itself).map(identity, [(0,)])
        with pytest.raises(LookupError, match="by the gate"):
            next(results)


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("chunksize", [1, 2])
def test_an_iterator_that_has_raised_is_freed_when_it_is_abandoned(
    method: str, chunksize: int
) -> None:
    with Jobserver(method, 1) as js:
        results = js.map(raise_value_error, [("as told",)] * chunksize, chunksize=chunksize)
        reference = weakref.ref(results)
        with contextlib.suppress(ValueError):
            next(results)
        del results
        assert reference() is None
