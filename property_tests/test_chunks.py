"""The sizes of chunks with `chunksize="auto"`: bounds, whatever was measured."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

SECONDS = st.one_of(st.just(0.0), st.floats(1e-9, 1e3))
LAUNCHES = st.one_of(st.none(), SECONDS)
ENOUGH = 0.004  # seconds of work in a chunk
LAUNCHES_WORTH = 9


@pytest.fixture(scope="session")
def growth_of(subject: ModuleType) -> Any:
    return importlib.import_module(f"{subject.__name__}.chunks").Growth


@given(
    slots=st.integers(1, 9),
    calls=st.integers(0, 2000),
    data=st.data(),
)
def test_chunks_cover_all_calls_once_and_in_order(
    growth_of: Any, slots: int, calls: int, data: st.DataObject
) -> None:
    """With up to as many chunks under way as there are slots, measured in any order."""
    growth = growth_of(slots)
    underway: list[int] = []
    covered: list[int] = []
    before = largest = 0
    while len(covered) < calls or underway:
        if len(covered) < calls and len(underway) < slots:
            left = calls - len(covered)
            size = growth.size(left)
            assert 1 <= size <= left
            # It grows carefully, and leaves enough for every slot when it grows.
            assert size <= max(1, 16 * largest)
            assert size <= max(before, 1, left // (4 * slots))
            covered += range(len(covered), len(covered) + size)
            underway.append(size)
            before = size
        else:
            measured = underway.pop(data.draw(st.integers(0, len(underway) - 1)))
            growth.note(measured, data.draw(LAUNCHES), data.draw(SECONDS))
            largest = max(largest, measured)
    assert covered == list(range(calls))


@given(
    slots=st.integers(1, 9),
    measures=st.lists(st.tuples(LAUNCHES, SECONDS), max_size=20),
)
def test_where_nobody_knows_how_many_calls_are_left(
    growth_of: Any, slots: int, measures: list[tuple[Optional[float], float]]
) -> None:
    growth = growth_of(slots)
    largest = 0
    for launch, work in measures:
        size = growth.size(None)
        assert 1 <= size <= max(1, 16 * largest)
        largest = max(largest, size)
        growth.note(size, launch, work)


def sizes(growth: Any, launch: float, of_a_call: float, work: float) -> list[int]:
    """Those of chunks that take so many seconds: to launch, that and so much a call, and to do."""
    found = []
    for _ in range(30):
        found.append(growth.size(None))
        growth.note(found[-1], launch + of_a_call * found[-1], work * found[-1])
    return found


@given(launch=st.floats(1e-6, 0.1), work=st.floats(1e-7, 1.0))
def test_chunks_last_a_few_milliseconds_or_some_launches(
    growth_of: Any, launch: float, work: float
) -> None:
    found = sizes(growth_of(2), launch, 0.0, work)
    assert found[0] == 1
    aim = max(ENOUGH, LAUNCHES_WORTH * launch)
    assert found[-1] == pytest.approx(max(1, int(aim / work)), abs=1, rel=0.01)


@given(
    launch=st.floats(1e-6, 0.1),
    work=st.floats(1e-7, 1.0),
    delays=st.lists(st.floats(0.0, 1.0), max_size=6),
)
@example(launch=0.001, work=2e-6, delays=[0.0, 0.007])
@example(launch=0.03, work=2e-6, delays=[0.0, 0.034])
def test_launches_that_a_busy_machine_delayed_are_forgotten(
    growth_of: Any, launch: float, work: float, delays: list[float]
) -> None:
    growth = growth_of(2)
    for delay in delays:
        size = growth.size(None)
        growth.note(size, launch + delay, work * size)
    aim = max(ENOUGH, LAUNCHES_WORTH * launch)
    found = sizes(growth, launch, 0.0, work)
    assert found[-1] == pytest.approx(max(1, int(aim / work)), abs=1, rel=0.01)


@given(work=st.floats(0.004, 10.0))
def test_long_calls_stay_single(growth_of: Any, work: float) -> None:
    assert set(sizes(growth_of(2), 0.0001, 0.0, work)) == {1}


@given(launch=st.floats(1e-6, 1e-4), of_a_call=st.floats(0.01, 1.0))
def test_large_arguments_do_not_travel_together(
    growth_of: Any, launch: float, of_a_call: float
) -> None:
    found = sizes(growth_of(2), launch, of_a_call, 1e-6)
    assert max(found) <= 2
    assert found[-1] == 1


def test_chunks_shrink_when_calls_take_longer(growth_of: Any) -> None:
    growth = growth_of(2)
    assert sizes(growth, 0.0001, 0.0, 1e-6)[-1] > 1000
    assert sizes(growth, 0.0001, 0.0, 0.01)[-1] == 1


def test_a_clock_that_does_not_move(growth_of: Any) -> None:
    growth = growth_of(1)
    for expected in (1, 16, 256):
        assert growth.size(None) == expected
        growth.note(expected, 0.0, 0.0)
