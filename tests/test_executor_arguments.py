"""JobserverExecutor takes what ProcessPoolExecutor takes, and refuses it in the same words."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import sys
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

import pytest

from jobserver import Jobserver, JobserverExecutor, pickles
from jobserver.parcels import Collector, Initializer
from tests import arrays
from tests import executor_work as work
from tests.executor_help import await_true, closing_executor, context_of, executor_for
from tests.work import PATIENCE, Gate, add, getpid, identity, raise_value_error, sys_exit

needs_peer = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="ProcessPoolExecutor has no max_tasks_per_child there"
)


def refusal(make: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which and why is the return value
        make(*args, **kwargs)
    return caught.type, str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"initializer": 3},
        {"initializer": "print"},
        {"max_workers": 0, "initializer": 3},
        {"mp_context": context_of("spawn"), "max_workers": -3},
        {"unknown": 1},
    ],
)
def test_the_same_refusals(kwargs: dict[str, Any]) -> None:
    kind, text = refusal(JobserverExecutor, **kwargs)
    peer_kind, peer_text = refusal(ProcessPoolExecutor, **kwargs)
    assert kind is peer_kind
    if "unknown" not in kwargs:  # the interpreter's own words, which name the class or not
        assert text == peer_text


@needs_peer
@pytest.mark.parametrize("value", [0, -1, "2", 1.5])
def test_the_same_refusals_of_max_tasks_per_child(value: Any) -> None:
    kwargs = {"max_tasks_per_child": value, "mp_context": context_of("spawn")}
    assert refusal(JobserverExecutor, **kwargs) == refusal(ProcessPoolExecutor, **kwargs)


@needs_peer
def test_the_same_refusal_of_max_tasks_per_child_under_fork() -> None:
    kwargs = {"max_tasks_per_child": 1, "mp_context": context_of("fork")}
    assert refusal(JobserverExecutor, **kwargs) == refusal(ProcessPoolExecutor, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"max_tasks_per_child": "2"}, (TypeError, "max_tasks_per_child must be an integer")),
        ({"max_tasks_per_child": 0}, (ValueError, "max_tasks_per_child must be >= 1")),
        (
            {"max_tasks_per_child": 1, "mp_context": context_of("fork")},
            (
                ValueError,
                (
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start "
                    "method; supply a different mp_context."
                ),
            ),
        ),
    ],
)
def test_the_words_are_the_same_on_every_version(
    kwargs: dict[str, Any], expected: tuple[type, str]
) -> None:
    assert refusal(JobserverExecutor, **kwargs) == expected


@pytest.mark.parametrize("max_workers", ["3", [3], {}])
def test_max_workers_of_a_wrong_type(max_workers: Any) -> None:
    kind, _ = refusal(JobserverExecutor, max_workers=max_workers)
    assert kind is refusal(ProcessPoolExecutor, max_workers=max_workers)[0] is TypeError


@pytest.mark.parametrize("first", ["3", 1.5, [3], object()])
def test_the_first_argument_is_a_jobserver_or_a_number(first: Any) -> None:
    kind, text = refusal(JobserverExecutor, first)
    assert kind is TypeError
    assert repr(first) in text or type(first).__name__ in text


@pytest.mark.parametrize("first", [0, -1])
def test_a_number_in_the_first_place_is_max_workers(first: int) -> None:
    assert refusal(JobserverExecutor, first) == refusal(ProcessPoolExecutor, first)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"max_workers": 2}, "max_workers"),
        ({"mp_context": context_of("spawn")}, "mp_context"),
        ({"max_workers": 2, "mp_context": context_of("spawn")}, "m"),
    ],
)
def test_a_jobserver_settles_workers_and_context(kwargs: dict[str, Any], name: str) -> None:
    with Jobserver("fork", 1) as js:
        kind, text = refusal(JobserverExecutor, js, **kwargs)
        assert issubclass(kind, (TypeError, ValueError))
        assert name in text
        assert "jobserver" in text.lower()
        assert refusal(JobserverExecutor, jobserver=js, **kwargs) == (kind, text)
        # A refusal costs nothing: the slots are all there.
        assert js(identity, 3).result(PATIENCE) == 3


def test_max_workers_twice_is_refused() -> None:
    kind, text = refusal(JobserverExecutor, 2, max_workers=3)
    assert issubclass(kind, (TypeError, ValueError))
    assert "max_workers" in text


def test_the_positions_are_those_of_process_pool_executor(method: str) -> None:
    executor = JobserverExecutor(1, context_of(method), work.initialize, ("by position",))
    with closing_executor(executor):
        assert repr(executor).startswith(
            f"JobserverExecutor(active, pending=0, jobserver=Jobserver('{method}'"
        )
        assert executor.submit(work.initialized).result(PATIENCE) == "by position"


def test_the_names_are_those_of_process_pool_executor(method: str) -> None:
    executor = JobserverExecutor(
        max_workers=1,
        mp_context=context_of(method),
        initializer=work.initialize,
        initargs=("by name",),
        max_tasks_per_child=None,
    )
    with closing_executor(executor):
        assert executor.submit(work.initialized).result(PATIENCE) == "by name"


def test_max_tasks_per_child_is_by_name_only() -> None:
    args: Any = (1, context_of("spawn"), work.initialize, (), 1)
    with pytest.raises(TypeError):
        JobserverExecutor(*args)


def test_none_everywhere_is_the_default() -> None:
    nothing: Any = None
    with JobserverExecutor(nothing, nothing, nothing) as executor:
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3


def test_max_workers_can_be_looked_at(method: str) -> None:
    with executor_for(method, 3) as executor:
        assert executor._max_workers == 3
    with JobserverExecutor(max_workers=2) as executor:
        assert executor._max_workers == 2
    with Jobserver(method, 4) as js, JobserverExecutor(js) as executor:
        assert executor._max_workers == 4
    with JobserverExecutor() as executor:
        assert 1 <= executor._max_workers <= len(os.sched_getaffinity(0))


def test_max_tasks_per_child_alone_means_spawn() -> None:
    with JobserverExecutor(1, max_tasks_per_child=2) as executor:
        assert "Jobserver('spawn'" in repr(executor)
        pids = Counter(executor.submit(getpid).result(PATIENCE) for _ in range(4))
    assert max(pids.values()) <= 2


def test_max_tasks_per_child_bounds_them(method: str) -> None:
    if method == "fork":
        pytest.skip("refused under fork, as by ProcessPoolExecutor")
    with executor_for(method, 1, max_tasks_per_child=1) as executor:
        futures = [executor.submit(getpid) for _ in range(3)]
        executor.shutdown()
    assert len({future.result() for future in futures}) == 3


@pytest.mark.parametrize(("of_the_handle", "own"), [(None, 2), (2, 3), (3, 2)])
def test_the_lower_bound_holds(of_the_handle: Optional[int], own: int) -> None:
    with Jobserver("spawn", 1) as js:
        handle = js.replace_workers(of_the_handle)
        with closing_executor(JobserverExecutor(handle, max_tasks_per_child=own)) as executor:
            pids = [executor.submit(getpid).result(PATIENCE) for _ in range(3)]
    assert pids[0] == pids[1] != pids[2]


def test_a_bound_does_not_reuse_the_workers_of_a_handle_that_does_not() -> None:
    with Jobserver("spawn", 1) as js:
        with closing_executor(JobserverExecutor(js, max_tasks_per_child=3)) as executor:
            assert len({executor.submit(getpid).result(PATIENCE) for _ in range(2)}) == 2


def test_the_initializer_runs_in_every_worker_before_its_work(method: str) -> None:
    with executor_for(method, 2, initializer=work.initialize) as executor:
        assert list(executor.map(work.initialized_for, range(4))) == ["by default"] * 4
    assert work.initialized() is None


def test_the_initializer_with_a_given_jobserver(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        executor = JobserverExecutor(js, initializer=work.initialize, initargs=("given",))
        with closing_executor(executor):
            assert executor.submit(work.initialized).result(PATIENCE) == "given"
        # It belongs to the executor, not to the Jobserver.
        assert js(work.initialized).result(PATIENCE) is None


def test_under_fork_the_initializer_may_be_a_closure() -> None:
    text = "from a closure"
    with executor_for("fork", 1, initializer=lambda: work.initialize(text)) as executor:
        assert executor.submit(work.initialized).result(PATIENCE) == text


def test_under_fork_that_of_a_second_executor_may_be_a_closure_as_well() -> None:
    text = "from a closure"
    with executor_for("fork", 1) as first:
        assert first.submit(add, 1, 2).result(PATIENCE) == 3
        with executor_for("fork", 1, initializer=lambda: work.initialize(text)) as second:
            assert second.submit(work.initialized).result(PATIENCE) == text
            assert first.submit(work.initialized).result(PATIENCE) is None
        assert first.submit(add, 3, 4).result(PATIENCE) == 7


def test_under_fork_those_of_a_second_executor_may_have_a_lock() -> None:
    initargs = (context_of("fork").Lock(),)
    with executor_for("fork", 1) as first:
        assert first.submit(add, 1, 2).result(PATIENCE) == 3
        with executor_for("fork", 1, initializer=work.initialize, initargs=initargs) as second:
            assert second.submit(work.acquire_initialized).result(PATIENCE)
            assert not initargs[0].acquire(block=False)


@pytest.mark.parametrize("size", [0, 100_000, 3_000_000])
@pytest.mark.parametrize("reuse", [True, False], ids=["reused", "fresh"])
def test_initargs_are_pickled_once_however_many_calls_there_are(
    method: str, size: int, reuse: bool
) -> None:
    counted = work.Counted("once")
    initargs = (counted, bytearray(size))
    with Jobserver(context_of(method), 2) as js:
        handle = js.replace_workers(max_tasks=None) if reuse else js
        executor = JobserverExecutor(handle, initializer=work.initialize_sized, initargs=initargs)
        with closing_executor(executor):
            texts = list(executor.map(work.initialized_for, range(6)))
    assert texts == [f"once, {size}"] * 6
    assert counted.times <= 1  # under fork it may have come in memory


def test_initargs_may_be_large_arrays(method: str) -> None:
    pytest.importorskip("numpy")
    array = arrays.ones()
    with executor_for(method, 2, initializer=work.initialize, initargs=(array,)) as executor:
        sums = list(executor.map(work.sum_of_initialized, range(6)))
    assert sums == [array.sum()] * 6


@pytest.mark.parametrize("reuse", [True, False], ids=["reused", "fresh"])
def test_initargs_with_descriptors_arrive_in_every_worker(method: str, reuse: bool) -> None:
    context = context_of(method)
    reader, writer = context.Pipe(duplex=False)
    other_reader, other_writer = context.Pipe(duplex=False)
    with reader, writer, other_reader, other_writer:
        with executor_for(method, 1) as earlier, Jobserver(context, 1) as js:
            # Under fork its forker is used, which does not have the pipes.
            earlier.submit(identity, None).result(PATIENCE)
            handle = js.replace_workers(max_tasks=2) if reuse else js
            executor = JobserverExecutor(handle, initializer=work.initialize, initargs=(writer,))
            with closing_executor(executor):
                for value in range(5):
                    sent = executor.submit(work.send_beside_initialized, value, other_writer)
                    sent.result(PATIENCE)
        assert [reader.recv() for _ in range(5)] == [0, 1, 2, 3, 4]
        assert [other_reader.recv() for _ in range(5)] == [0, -1, -2, -3, -4]
        # Nor does the executor keep them, once it is shut down.
        writer.close()
        assert reader.poll(PATIENCE)
        with pytest.raises(EOFError):
            reader.recv()


def test_a_forked_worker_that_drops_an_initializer_closes_nothing_of_its_own() -> None:
    reader, writer = context_of("fork").Pipe(duplex=False)
    with reader, writer, Jobserver(context_of("fork"), 1) as js:
        initializer = Initializer(work.initialize, (reader, writer, bytes(100_000)), None)
        with Collector():
            pickles.Pickled().dump(initializer)  # it has descriptors from now on
        work.inherited.append(initializer)
        del initializer
        assert js(work.closed_with_what_is_inherited).result(PATIENCE) == []
        work.inherited.clear()


def test_initargs_that_cannot_be_pickled_fail_the_work(method: str) -> None:
    if method == "fork":
        pytest.skip("under fork they are inherited")
    initargs = (lambda: None,)
    with executor_for(method, 1, initializer=work.initialize, initargs=initargs) as executor:
        error = executor.submit(identity, 1).exception(PATIENCE)
    # The pickling error itself; ProcessPoolExecutor raises it from `submit`.
    assert isinstance(error, (AttributeError, pickle.PicklingError))
    hint = getattr(error, "__notes__", [str(error.__cause__)])[-1]
    assert "not picklable" in hint


def broken_by(make: Callable[[], Executor]) -> list[type]:
    """What comes of three submissions and of a fourth once it is broken."""
    executor = make()
    outcomes: list[type] = []
    for _ in range(3):
        try:
            future = executor.submit(identity, None)
        except BrokenProcessPool as error:
            outcomes.append(type(error))
        else:
            error_on_it = future.exception(PATIENCE)
            assert isinstance(error_on_it, BrokenProcessPool)
            outcomes.append(BrokenProcessPool)
    kind, _ = refusal(executor.submit, identity, None)
    outcomes.append(kind)
    executor.shutdown()
    return outcomes


@pytest.mark.parametrize(
    ("fail", "initargs"),
    [
        (raise_value_error, ("in the initializer",)),
        (sys_exit, (3,)),
        (work.raise_keyboard_interrupt, ()),
    ],
)
def test_a_failing_initializer_breaks_it_as_it_breaks_the_peer(
    method: str, fail: Callable[..., NoReturn], initargs: tuple[object, ...]
) -> None:
    def make(cls: Callable[..., Executor]) -> Executor:
        return cls(1, context_of(method), fail, initargs)

    assert (
        broken_by(lambda: make(JobserverExecutor))
        == broken_by(lambda: make(ProcessPoolExecutor))
        == [BrokenProcessPool] * 4
    )


def test_a_broken_executor_fails_all_that_is_pending(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        initargs = (gate.path,)
        with executor_for(method, 1, initializer=work.fail_behind, initargs=initargs) as executor:
            futures = [executor.submit(identity, number) for number in range(4)]
            gate.open()
            for future in futures:
                assert isinstance(future.exception(PATIENCE), BrokenProcessPool)
            await_true(lambda: "broken" in repr(executor), "the repr of a broken executor")
            assert repr(executor).startswith("JobserverExecutor(broken, pending=0, jobserver=")
            with pytest.raises(BrokenProcessPool):
                executor.submit(identity, None)
            with pytest.raises(BrokenProcessPool):
                executor.map(identity, [1])
            executor.shutdown()
            # ProcessPoolExecutor, too, goes on saying that it is broken.
            with pytest.raises(BrokenProcessPool):
                executor.submit(identity, None)


def test_a_broken_executor_leaves_a_given_jobserver_alone(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        executor = JobserverExecutor(js, initializer=raise_value_error, initargs=("no",))
        with closing_executor(executor):
            assert isinstance(executor.submit(identity, 1).exception(PATIENCE), BrokenProcessPool)
        assert js(identity, 1).result(PATIENCE) == 1


def test_a_cancelled_future_stays_cancelled_when_it_breaks(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        initargs = (gate.path,)
        with executor_for(method, 1, initializer=work.fail_behind, initargs=initargs) as executor:
            futures = [executor.submit(identity, number) for number in range(3)]
            assert futures[2].cancel()
            gate.open()
            concurrent.futures.wait(futures, PATIENCE)
            assert futures[2].cancelled()
            assert isinstance(futures[1].exception(PATIENCE), BrokenProcessPool)
