"""What is a number for NumPy, decimal or fractions is one for us."""

from __future__ import annotations

import select
from decimal import Decimal
from fractions import Fraction
from typing import cast

import pytest

from jobserver import CallbackRaised, Jobserver, JobserverExecutor
from tests.work import PATIENCE, add


class Count:
    """As NumPy has integers: no int, but an index."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __lt__(self, other: int) -> bool:
        return self.value < other


class Seconds:
    """As NumPy has small floats: no float, but what one can be made of."""

    def __float__(self) -> float:
        return PATIENCE


def count(value: int) -> int:
    return cast("int", Count(value))


@pytest.mark.parametrize("seconds", [Seconds(), Decimal("9.5"), Fraction(19, 2), Count(9)])
def test_seconds_are_what_a_float_can_be_made_of(seconds: object) -> None:
    timeout = cast("float", seconds)
    with Jobserver("fork", 1) as js:
        future = js.submit(add, args=(1, 2), timeout=timeout)
        assert future.done(timeout)
        assert future.wait(timeout)
        assert future.result(timeout) == 3
        js.drain(timeout)
        assert list(js.map(add, [(1, 2)], timeout=timeout)) == [3]
        assert js.run(["true"], timeout=timeout).returncode == 0
        js.replace_workers(idle=timeout)
        answers = [Decimal(0), Fraction(0), None]
        gated = js.replace_sleep(lambda: cast("float", answers.pop(0)))
        assert gated(add, 1, 2).result(PATIENCE) == 3


@pytest.mark.parametrize(
    "seconds", [float("nan"), float("inf"), 10**400, -1, Decimal("sNaN"), Decimal("-Infinity")]
)
def test_seconds_without_end_are_refused(seconds: float) -> None:
    with Jobserver("fork", 1) as js:
        with pytest.raises(ValueError, match="timeout must be finite and >= 0"):
            js.submit(add, timeout=seconds)
        with pytest.raises(ValueError, match="replace_sleep must return None or a finite number"):
            js.replace_sleep(lambda: seconds)(add, 1, 2)


@pytest.mark.parametrize("seconds", [True, "1", b"1", 1j, [1]])
def test_seconds_that_are_no_number_are_refused(seconds: float) -> None:
    with Jobserver("fork", 1) as js, pytest.raises(TypeError, match="timeout must be"):
        js.submit(add, timeout=seconds)


def test_counts_are_what_has_an_index() -> None:
    with Jobserver("fork", count(2)) as js:
        assert js.slots == 2
        assert js.submit(add, args=(1, 2), consume=count(0)).result(PATIENCE) == 3
        calls = [(1, 2), (3, 4)]
        results = js.map(add, calls, chunksize=count(2), buffersize=count(1))
        assert list(results) == [3, 7]
        js.replace_workers(max_tasks=count(1))
    with JobserverExecutor(count(2), "fork") as executor:
        results = executor.map(add, [1, 3], [2, 4], chunksize=count(2), buffersize=count(1))
        assert list(results) == [3, 7]
    with JobserverExecutor(max_workers=count(1), max_tasks_per_child=count(1)) as executor:
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


@pytest.mark.parametrize("by_name", [False, True])
def test_more_workers_than_a_pipe_can_hold_are_as_many_as_it_can(by_name: bool) -> None:
    many = select.PIPE_BUF + 1
    executor = JobserverExecutor(max_workers=many) if by_name else JobserverExecutor(many)
    with executor:
        assert f"slots={select.PIPE_BUF}" in repr(executor)


def test_a_bool_is_told_by_its_type() -> None:
    with pytest.raises(TypeError, match="slots must be an int or None, not True of type bool"):
        Jobserver(slots=True)


@pytest.mark.parametrize("seqno", ["0", None, 1.0, True])
def test_the_number_of_a_callback_is_an_int(seqno: int) -> None:
    with pytest.raises(TypeError, match="seqno must be an int"):
        CallbackRaised(seqno)


def test_a_map_over_nothing_yields_nothing() -> None:
    with Jobserver("fork", 1) as js:
        assert list(js.map(add)) == []
