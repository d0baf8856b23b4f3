"""JobserverExecutor.map: the built-in map over processes, as the standard library has it."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver import Jobserver
from tests import executor_work as work
from tests.executor_help import executor_for, sharing_executor
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    identity,
    pass_gate,
    raise_value_error,
    touch_and_pass_gate,
)


def test_results_are_in_order(method: str) -> None:
    with executor_for(method) as executor:
        assert list(executor.map(pow, range(6), range(6))) == [n**n for n in range(6)]


def test_an_early_result_waits_for_its_turn(method: str, tmp_path: Path) -> None:
    marks = [str(tmp_path / name) for name in ("held", "quick")]
    with (
        executor_for(method, 2) as executor,
        Gate(tmp_path) as gate,
        Gate(tmp_path, "open") as free,
    ):
        results = executor.map(
            touch_and_pass_gate, marks, [gate.path, free.path], ["first", "next"]
        )
        free.open()
        await_file(marks[1])
        gate.open()
        assert list(results) == ["first", "next"]


def test_the_shortest_iterable_ends_it(method: str) -> None:
    with executor_for(method) as executor:
        assert list(executor.map(add, [1, 2, 3], [10, 20])) == [11, 22]
        assert list(executor.map(add, [], [1])) == []
        assert list(executor.map(add)) == []


def test_without_buffersize_everything_is_submitted_at_the_call(
    method: str, tmp_path: Path
) -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    log = tmp_path / "log"
    with executor_for(method, 1) as executor:
        results = executor.map(work.append, [str(log)] * 5, map(str, inputs()))
        assert taken == [0, 1, 2, 3, 4]
        executor.shutdown()
        assert log.read_text() == "01234"
        assert list(results) == [None] * 5


def test_an_exception_surfaces_at_its_position_and_ends_it(method: str) -> None:
    with executor_for(method) as executor:
        results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(results) == (0, 1)
        assert next(results) == (0, 1)
        with pytest.raises(ZeroDivisionError) as caught:
            next(results)
        assert "Traceback" in str(caught.value.__cause__)
        with pytest.raises(StopIteration):
            next(results)


def test_past_the_timeout_it_raises_timeout_error(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        results = executor.map(pass_gate, [gate.path], timeout=0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)


def test_the_timeout_counts_from_the_call(tmp_path: Path) -> None:
    with executor_for("fork", 1) as executor, Gate(tmp_path) as gate:
        results = executor.map(pass_gate, [gate.path], timeout=1.5)
        time.sleep(1.5)  # a deadline has no event
        asked = time.monotonic()
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        assert time.monotonic() - asked < 1.4


def test_a_result_that_is_there_is_given_after_the_deadline(method: str) -> None:
    with executor_for(method, 1) as executor:
        results = executor.map(identity, [1], timeout=0)
        executor.shutdown()
        assert list(results) == [1]


def test_an_iterator_that_ends_early_cancels_what_is_pending(method: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    marks = [str(tmp_path / f"mark{number}") for number in range(3)]
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        results = executor.map(touch_and_pass_gate, marks, [gate.path] * 3, timeout=0.05)
        await_file(marks[0])
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.open()
        executor.submit(work.append, str(log), "went on").result(PATIENCE)
    assert log.read_text() == "went on"
    assert not Path(marks[1]).exists()
    assert not Path(marks[2]).exists()


@pytest.mark.parametrize("chunksize", [1, 2, 3, 7, 8, 50])
def test_chunks_change_nothing_about_the_results(method: str, chunksize: int) -> None:
    with executor_for(method) as executor:
        results = executor.map(pow, range(7), range(7), chunksize=chunksize)
        assert list(results) == [n**n for n in range(7)]


def test_a_chunk_is_one_piece_of_work(method: str) -> None:
    with executor_for(method, 1) as executor:
        pids = list(executor.map(work.pid_for, range(7), chunksize=3))
    assert len(set(pids[:3])) == 1
    assert len(set(pids[3:6])) == 1


def test_an_exception_in_a_chunk_surfaces(method: str) -> None:
    with executor_for(method, 1) as executor:
        with pytest.raises(ZeroDivisionError) as caught:
            list(executor.map(divmod, [1, 1, 1], [1, 0, 1], chunksize=2))
        assert "Traceback" in str(caught.value.__cause__)


@pytest.mark.parametrize("chunksize", [1, "auto"])
@pytest.mark.parametrize("buffersize", [1, 2, 4, 9])
def test_buffersize_bounds_what_is_read_ahead(method: str, buffersize: int, chunksize: Any) -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    with executor_for(method) as executor:
        results = executor.map(identity, inputs(), chunksize=chunksize, buffersize=buffersize)
        assert len(taken) == buffersize
        for number in range(3):
            assert next(results) == number
            if chunksize == 1:
                assert len(taken) <= buffersize + number + 1
        assert len(taken) >= 3
        # The iterable is endless: leaving early must be possible.
        del results


@pytest.mark.parametrize("buffersize", [1, 3, 10])
def test_buffersize_changes_nothing_about_the_results(method: str, buffersize: int) -> None:
    with executor_for(method) as executor:
        results = executor.map(add, range(5), range(5), buffersize=buffersize)
        assert list(results) == [0, 2, 4, 6, 8]
        assert list(executor.map(identity, [], buffersize=buffersize)) == []


def test_buffersize_counts_chunks(method: str) -> None:
    numbers = iter(range(100))
    with executor_for(method) as executor:
        results = executor.map(identity, numbers, chunksize=3, buffersize=2)
        assert next(numbers) == 6
        assert next(results) == 0
        del results


MANY = 400  # calls, of which some chunk has several: most of those before take next to no time


@pytest.mark.parametrize("buffersize", [None, 3])
def test_chunks_that_grow_change_nothing_about_the_results(method: str, buffersize: Any) -> None:
    with executor_for(method) as executor:
        results = executor.map(
            add, iter(range(MANY)), range(1000), chunksize="auto", buffersize=buffersize
        )
        assert list(results) == [2 * number for number in range(MANY)]
        assert list(executor.map(identity, [], chunksize="auto", buffersize=buffersize)) == []
        assert list(executor.map(add, chunksize="auto", buffersize=buffersize)) == []


def test_chunks_grow(method: str) -> None:
    with sharing_executor(Jobserver(method, 2)) as executor:  # with a fresh worker for each chunk
        pids = list(executor.map(work.pid_for, range(MANY), chunksize="auto"))
    assert len(set(pids)) < MANY
    assert len([pid for pid, _ in itertools.groupby(pids)]) == len(set(pids))


def test_all_chunks_that_grow_run_though_nobody_asks(method: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with executor_for(method, 1) as executor:
        results = executor.map(work.append, [str(log)] * 60, ["x"] * 60, chunksize="auto")
        later = executor.submit(work.append, str(log), "later")
        executor.shutdown()
        assert later.done()
        assert log.read_text() == "x" * 60 + "later"
        assert list(results) == [None] * 60


def test_an_exception_in_a_chunk_that_grew_surfaces_at_its_position(method: str) -> None:
    with executor_for(method) as executor:
        divisors = [1] * (MANY - 30) + [0] + [1] * 29
        results = executor.map(divmod, range(MANY), divisors, chunksize="auto")
        for number in range(MANY - 30):
            assert next(results) == (number, 0)
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_cancelling_futures_at_shutdown_ends_chunks_that_grow(method: str, tmp_path: Path) -> None:
    marks = [str(tmp_path / f"mark{number}") for number in range(4)]
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        results = executor.map(touch_and_pass_gate, marks, [gate.path] * 4, chunksize="auto")
        await_file(marks[0])
        executor.shutdown(wait=False, cancel_futures=True)
        gate.open()
        assert next(results) is None
        with pytest.raises(concurrent.futures.CancelledError):
            next(results)
        executor.shutdown()
    assert not Path(marks[1]).exists()


def test_an_iterator_over_chunks_that_grow_cancels_what_is_pending(
    method: str, tmp_path: Path
) -> None:
    marks = [str(tmp_path / f"mark{number}") for number in range(4)]
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        results = executor.map(
            touch_and_pass_gate, marks, [gate.path] * 4, timeout=0.05, chunksize="auto"
        )
        await_file(marks[0])
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.open()
    assert not Path(marks[1]).exists()


@pytest.mark.parametrize("word", ["Auto", "", "1"])
def test_a_chunksize_that_is_a_word_is_auto(word: Any) -> None:
    with executor_for("fork", 1) as executor:
        with pytest.raises(ValueError, match=rf'chunksize.*"auto", not \'{word}\''):
            executor.map(identity, [1], chunksize=word)


@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunksize_is_checked_at_the_call(chunksize: int) -> None:
    with executor_for("fork", 1) as executor:
        with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
            executor.map(identity, [1], chunksize=chunksize)


@pytest.mark.parametrize("buffersize", [0, -1])
def test_buffersize_is_checked_at_the_call(buffersize: int) -> None:
    with executor_for("fork", 1) as executor:
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            executor.map(identity, [1], buffersize=buffersize)


@pytest.mark.parametrize("buffersize", ["2", 2.0])
def test_buffersize_has_a_type(buffersize: Any) -> None:
    with executor_for("fork", 1) as executor:
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            executor.map(identity, [1], buffersize=buffersize)


def test_an_input_that_raises_raises_at_the_call(method: str) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise_value_error("in the iterable")

    with executor_for(method, 1) as executor:
        with pytest.raises(ValueError, match="in the iterable"):
            executor.map(identity, inputs())


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_the_iterator_keeps_nothing_that_it_has_yielded(method: str, chunksize: Any) -> None:
    with executor_for(method) as executor:
        for each in executor.map(work.make, [work.Traveller] * 4, chunksize=chunksize):
            reference = weakref.ref(each)
            del each
            gc.collect()
            assert reference() is None


def test_map_after_shutdown(method: str) -> None:
    with executor_for(method, 1) as executor:
        executor.shutdown()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.map(identity, [1])
