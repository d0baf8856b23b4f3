"""Handles: their copies, their pickles, and how the last one ends."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NoReturn

import pytest

from jobserver import Blocked, Future, Jobserver, LostResult
from jobserver.kernel import OfdKernel
from jobserver.server import share
from tests import errands
from tests.processes import await_state, check_slots, pid_of
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    die,
    identity,
    pass_gate,
    raise_value_error,
    touch_and_pass_gate,
)

NAME = "JOBSERVER_TEST"


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def warm_up(method: str) -> None:
    """Have multiprocessing open whatever it keeps for its own."""
    js = Jobserver(method, 1)
    assert js(add, 1, 2).result(PATIENCE) == 3


def fail(text: str) -> NoReturn:
    raise LookupError(text)


@contextmanager
def running(
    js: Jobserver, directory: Path, name: str = "hold"
) -> Generator[Future[None], None, None]:
    """Work that has begun and goes on until the block ends; what it must then return is None."""
    mark = str(directory / f"{name}-mark")
    with Gate(directory, name) as gate:
        future: Future[None] = js.submit(touch_and_pass_gate, args=(mark, gate.path))
        await_file(mark)
        yield future
        gate.open()
        assert future.wait(PATIENCE)
    assert future.result() is None


@contextmanager
def forked(function: Callable[[], object]) -> Generator[None, None, None]:
    """Run the function in a forked copy of this program, which must end well."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    try:
        yield
    finally:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
        status = process.exitcode
        process.close()
    assert status == 0, "the forked child failed: see the output"


@contextmanager
def recorded() -> Generator[list[warnings.WarningMessage], None, None]:
    """Every warning of the block, but for what 3.12 and later say to a fork beside any thread.

    The thread is the watchdog of these tests, which runs no Python.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        yield caught


# Copies

Copy = Callable[[Jobserver], Jobserver]

copies = pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, lambda js: copy.deepcopy({"js": [js]})["js"][0]],
    ids=["copy", "deepcopy", "deepcopy within"],
)


@copies
def test_a_copy_is_a_sibling_on_the_same_slots(method: str, make: Copy, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    sibling = make(js)
    assert type(sibling) is Jobserver
    assert sibling is not js
    assert sibling.context is js.context
    for one, other in ((js, sibling), (sibling, js)):
        with running(one, tmp_path, f"hold-{one is js}"), pytest.raises(Blocked):
            other.submit(add, args=(1, 2), timeout=0)
    assert sibling(add, 1, 2).result(PATIENCE) == 3


@copies
def test_a_copy_has_the_settings(make: Copy, tmp_path: Path) -> None:
    asked: list[int] = []
    path = tmp_path / "diary"
    js = Jobserver("fork", 1).revise_env({NAME: "1"})
    js = js.replace_preexec(errands.append, str(path), "preexec")
    js = js.replace_sleep(lambda: asked.append(1))
    sibling = make(js)
    assert sibling(errands.environment, NAME).result(PATIENCE) == ["1"]
    assert path.read_text() == "preexec\n"
    assert asked == [1]


@copies
def test_a_copy_outlives_the_original(make: Copy, tmp_path: Path) -> None:
    js = Jobserver("fork", 2)
    sibling = make(js)
    del js
    gc.collect()
    check_slots(sibling, 2, tmp_path / "check")


def test_a_copy_of_a_closed_handle_is_closed() -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    for make in (copy.copy, copy.deepcopy):
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            make(js).submit(add, args=(1, 2))


# Pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_handle_is_pickled_only_while_a_process_is_launched(protocol: int) -> None:
    js = Jobserver("fork", 1)
    before = descriptors()
    with pytest.raises((RuntimeError, TypeError)):
        pickle.dumps(js, protocol)
    with pytest.raises((RuntimeError, TypeError)):
        pickle.dumps({"js": [js]}, protocol)
    assert descriptors() == before
    assert js(add, 1, 2).result(PATIENCE) == 3


def test_a_handle_is_no_result(method: str) -> None:
    js = Jobserver(method, 2)
    with pytest.raises(RuntimeError, match=r"not picklable") as caught:
        js(errands.give_back, js).result(PATIENCE)
    assert "Jobserver" in str(caught.value)


def check_refused(state: Any, error: type[Exception], why: str) -> None:
    blank: Any = Jobserver.__new__(Jobserver)
    with pytest.raises(error, match=why):
        blank.__setstate__(state)


@pytest.mark.parametrize("state", [None, 0, 1.5, "state", b"it", object(), [], {}, set(), {"a": 1}])
def test_a_state_that_is_no_tuple_is_refused(state: Any) -> None:
    check_refused(state, TypeError, "the state of a Jobserver is a tuple, not ")


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 6, 7])
def test_a_state_of_other_than_two_parts_is_refused(count: int) -> None:
    check_refused((None,) * count, ValueError, f"has 2 parts, not {count}: ")


def test_a_state_of_other_parts_is_refused() -> None:
    before = descriptors()
    js = Jobserver("fork", 1)
    resources, settings = share(js)
    for state in (1, 2), (None, {"slots": 1}), (resources, None), (None, settings):
        check_refused(state, TypeError, "malformed state of a Jobserver: ")
    del js, resources, state
    gc.collect()
    assert descriptors() == before


def test_a_closed_handle_is_no_argument() -> None:
    closed = Jobserver("spawn", 1)
    with closed:
        pass
    with pytest.raises(TypeError, match="Jobserver is closed"):
        Jobserver("spawn", 1).submit(errands.give_back, args=(closed,))


# Closing


def test_entering_gives_the_handle() -> None:
    js = Jobserver("fork", 1)
    with js as entered:
        assert entered is js
        assert js(add, 1, 2).result(PATIENCE) == 3


def test_the_last_exit_closes() -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))


def test_entries_are_counted_over_all_siblings() -> None:
    js = Jobserver("fork", 1)
    siblings = [js, copy.copy(js), copy.deepcopy(js), js.revise_env({NAME: "1"}), js]
    for sibling in siblings:
        sibling.__enter__()
    for sibling in siblings[1:]:
        sibling.__exit__(None, None, None)
        for each in siblings:
            assert each(add, 1, 2).result(PATIENCE) == 3
    js.__exit__(None, None, None)
    for sibling in siblings:
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            sibling.submit(add, args=(1, 2))


USES: dict[str, Callable[[Jobserver], object]] = {
    "submit": lambda js: js.submit(add, args=(1, 2)),
    "submit consume=0": lambda js: js.submit(add, args=(1, 2), consume=0),
    "submit timeout=0": lambda js: js.submit(add, args=(1, 2), timeout=0),
    "call": lambda js: js(add, 1, 2),
    "map": lambda js: list(js.map(add, [(1, 2)])),
    "map of nothing": lambda js: list(js.map(add, [])),
    "map buffersize": lambda js: list(js.map(add, [(1, 2)], buffersize=1)),
    "reclaim_resources": lambda js: js.reclaim_resources(),
    "enter": lambda js: js.__enter__(),
    "revise_env": lambda js: js.revise_env({}),
    "replace_preexec": lambda js: js.replace_preexec(int),
    "replace_sleep": lambda js: js.replace_sleep(lambda: None),
}

uses = pytest.mark.parametrize("use", list(USES.values()), ids=list(USES))


@uses
def test_a_closed_handle_cannot_be_used(use: Callable[[Jobserver], object]) -> None:
    js = Jobserver("fork", 2)
    sibling = copy.copy(js)
    with js:
        pass
    for handle in (js, sibling, js):
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            use(handle)


@uses
def test_a_closed_handle_cannot_be_used_in_a_forked_child(
    use: Callable[[Jobserver], object],
) -> None:
    js = Jobserver("fork", 2)
    with js:
        pass

    def child() -> None:
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            use(js)

    with forked(child):
        pass


def test_an_argument_check_comes_even_before_the_handle_is_found_closed() -> None:
    """Either error is true; none of them is a hang or a success."""
    js = Jobserver("fork", 1)
    with js:
        pass
    with pytest.raises((TypeError, RuntimeError)):
        js.submit(5)  # type: ignore[arg-type]


def test_closing_twice_is_fine() -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    for handle in (js, copy.copy(js)):
        handle.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))


def test_a_closed_handle_cannot_be_entered_again() -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"), js:
        pytest.fail("entered")


def test_a_closed_handle_still_has_a_repr_and_a_context() -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    assert repr(js).startswith("Jobserver('fork', tracked=0")
    assert js.context.get_start_method() == "fork"


def test_an_exception_in_the_block_passes_and_the_handle_closes() -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(LookupError, match="from the block"), js:
        fail("from the block")
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))


def test_the_last_exit_frees_every_descriptor(method: str) -> None:
    warm_up(method)
    before = descriptors()
    js = Jobserver(method, 2)
    with js:
        assert [js(add, 1, n).result(PATIENCE) for n in range(2)] == [1, 2]
        finished: Future[object] = js(errands.process_name)
        await_state(pid_of(finished), "Z")
    # `finished` is reclaimed by the exit unless its worker's end was not known yet.
    assert finished.result(PATIENCE) == "Jobserver-worker"
    assert descriptors() == before


def test_the_last_exit_reclaims_what_has_finished(tmp_path: Path) -> None:
    mark = str(tmp_path / "pid")
    ran: list[str] = []
    js = Jobserver("fork", 2)
    with js:
        with js:
            future = js.submit(errands.write_pid, args=(mark,))
            future.when_done(ran.append, "callback")
            await_file(mark)
            await_state(int(Path(mark).read_text()), "Z")
            assert ran == []
    assert ran == ["callback"]
    assert repr(future).startswith("Future(done, callbacks=0")
    assert repr(js).startswith("Jobserver('fork', tracked=0")


def test_callbacks_that_fail_at_the_last_exit_are_warnings(tmp_path: Path) -> None:
    mark = str(tmp_path / "pid")
    ran: list[str] = []
    js = Jobserver("fork", 1)
    with recorded() as caught:
        with js:
            future = js.submit(errands.write_pid, args=(mark,))
            future.when_done(fail, "first")
            future.when_done(ran.append, "between")
            future.when_done(fail, "second")
            future.when_done(ran.append, "last")
            await_file(mark)
            await_state(int(Path(mark).read_text()), "Z")
    assert ran == ["between", "last"]
    assert [warning.category for warning in caught] == [RuntimeWarning, RuntimeWarning]
    for warning, text in zip(caught, ("first", "second")):
        assert "suppressed CallbackRaised" in str(warning.message)
        assert repr(LookupError(text)) in str(warning.message)
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))
    assert future.done()


def test_the_warning_is_attributed_to_the_users_line(tmp_path: Path) -> None:
    mark = str(tmp_path / "pid")
    js = Jobserver("fork", 1)
    with recorded() as caught:
        with js:
            future = js.submit(errands.write_pid, args=(mark,))
            future.when_done(fail, "why")
            await_file(mark)
            await_state(int(Path(mark).read_text()), "Z")
    assert [warning.filename for warning in caught] == [__file__]


def test_warnings_as_errors_still_close(tmp_path: Path) -> None:
    """Under `-W error` the exit raises; nothing stays open for that."""
    mark = str(tmp_path / "pid")
    ran: list[str] = []
    js = Jobserver("fork", 1)
    js.__enter__()
    future = js.submit(errands.write_pid, args=(mark,))
    future.when_done(fail, "why")
    future.when_done(ran.append, "other")
    await_file(mark)
    await_state(int(Path(mark).read_text()), "Z")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="suppressed CallbackRaised"):
            js.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))
    assert future.done()
    assert ran == ["other"]


def test_an_exit_that_is_not_the_last_warns_of_nothing(tmp_path: Path) -> None:
    ran: list[str] = []
    js = Jobserver("fork", 1)
    with js:
        with js, running(js, tmp_path) as future:
            future.when_done(ran.append, "callback")
        assert ran == ["callback"]
        assert js(add, 1, 2).result(PATIENCE) == 3


def test_running_futures_outlive_the_exit(method: str, tmp_path: Path) -> None:
    ran: list[str] = []
    with Gate(tmp_path) as gate:
        with Jobserver(method, 2) as js:
            kept = js.submit(pass_gate, args=(gate.path, "kept"))
            failing = js.submit(errands.pass_gate_then_fail, args=(gate.path, "why"))
            kept.when_done(ran.append, "callback")
        assert not kept.done()
        assert not kept.wait(0.05)
        with pytest.raises(Blocked):
            kept.result(0)
        assert kept.when_done(ran.append, "registered after the exit") == 1
        assert repr(kept).startswith("Future(running, callbacks=2")
        gate.open()
        assert kept.result(PATIENCE) == "kept"
        assert kept.result(0) == "kept"
        with pytest.raises(ValueError, match="why"):
            failing.result(PATIENCE)
    assert ran == ["callback", "registered after the exit"]


class Slow:
    """Takes its time to be pickled: a submission is under way meanwhile."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)
        return int, ()


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("consume", [0, 1])
def test_a_submission_under_way_outlives_the_exit(context: str, consume: int) -> None:
    slow = Slow()
    results: list[object] = []
    js = Jobserver(context, 1)

    def submit() -> None:
        future = js.submit(identity, args=(slow,), consume=consume, timeout=0)
        results.append(future.result(PATIENCE))

    thread = threading.Thread(target=submit)
    with js:
        thread.start()
        assert slow.reached.wait(PATIENCE)
    others = [os.pipe() for _ in range(8)]  # they take the numbers of what is closed too early
    slow.go_on.set()
    thread.join(PATIENCE)
    for read, write in others:
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)
    assert results == [0]


def test_running_futures_can_be_cancelled_after_the_exit(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        with Jobserver(method, 1) as js:
            mark = str(tmp_path / "mark")
            future = js.submit(touch_and_pass_gate, args=(mark, gate.path))
            await_file(mark)
        assert future.wait(PATIENCE, signal=15)
        with pytest.raises(LostResult):
            future.result()


def test_the_exit_does_not_wait_for_running_work(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    with Gate(tmp_path) as gate:
        with js:
            future = js.submit(pass_gate, args=(gate.path, "value"))
        assert not future.done()
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_a_forked_child_that_leaves_the_block_closes_nothing_of_its_parent(
    tmp_path: Path,
) -> None:
    with Jobserver("fork", 2) as js, running(js, tmp_path):
        with forked(lambda: js.__exit__(None, None, None)):
            pass
        assert js(add, 1, 2).result(PATIENCE) == 3
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))


# repr


def test_repr_names_the_start_method_and_the_number_of_futures(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)
    pattern = r"Jobserver\('{}', tracked={}[,)]"
    assert re.match(pattern.format(method, 0), repr(js))
    with running(js, tmp_path, "one"):
        assert re.match(pattern.format(method, 1), repr(js))
        assert re.match(pattern.format(method, 1), repr(copy.copy(js)))
        with running(js, tmp_path, "two"):
            assert re.match(pattern.format(method, 2), repr(js))
        assert re.match(pattern.format(method, 1), repr(js))
    assert re.match(pattern.format(method, 0), repr(js))
    assert str(js) == repr(js)


def test_repr_while_another_thread_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    js = Jobserver("fork", 1)
    closer = threading.Thread(target=js.__exit__, args=(None, None, None))
    recovered = OfdKernel.recovered

    def close_and_look(kernel: OfdKernel) -> int:
        monkeypatch.undo()
        closer.start()
        closer.join(0.2)  # long enough for it to close, were it not held up
        return recovered(kernel)

    js.__enter__()
    monkeypatch.setattr(OfdKernel, "recovered", close_and_look)
    assert repr(js).startswith("Jobserver('fork', tracked=0, slots=")
    closer.join(PATIENCE)
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.submit(add, args=(1, 2))


def test_repr_shows_no_secret_of_the_environment() -> None:
    assert "hunter2" not in repr(Jobserver("fork", 1).revise_env({"PASSWORD": "hunter2"}))


# Dropped handles


def finalizing(number: int) -> str:
    return rf"Finalizing .* with {number} running Future"


@pytest.mark.parametrize("number", [1, 2])
def test_a_handle_dropped_with_running_futures_warns(number: int, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        js = Jobserver("fork", 3)
        futures = [js.submit(pass_gate, args=(gate.path, n)) for n in range(number)]
        assert js(add, 1, 2).result(PATIENCE) == 3
        with recorded() as caught:
            del js
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning]
        text = str(caught[0].message)
        assert re.search(rf"Finalizing .* with {number} running Futures", text)
        assert caught[0].source is not None
        assert "Jobserver" in text
        gate.open()
        # What was promised to the Futures holds all the same.
        assert [future.result(PATIENCE) for future in futures] == list(range(number))


def test_a_dropped_handle_is_let_go_of_though_its_warning_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: raised.append(str(told.exc_value)))
    with Gate(tmp_path) as gate, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        js = Jobserver("fork", 1)
        future = js.submit(pass_gate, args=(gate.path, "value"))
        del js
        gc.collect()
        gate.open()
        assert future.result(PATIENCE) == "value"
    assert [bool(re.search(finalizing(1), text)) for text in raised] == [True]
    del future
    gc.collect()
    assert descriptors() == before


def test_a_sibling_dropped_while_others_remain_is_silent(tmp_path: Path) -> None:
    js = Jobserver("fork", 2)
    with Gate(tmp_path) as gate, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        future = js.revise_env({NAME: "1"}).submit(pass_gate, args=(gate.path, "value"))
        sibling = copy.copy(js)
        del js
        gc.collect()
        gate.open()
        assert future.result(PATIENCE) == "value"
        assert sibling(add, 1, 2).result(PATIENCE) == 3


def test_a_handle_dropped_idle_is_silent_and_frees_every_descriptor(method: str) -> None:
    warm_up(method)
    before = descriptors()
    with recorded() as caught:
        js = Jobserver(method, 2)
        assert js(add, 1, 2).result(PATIENCE) == 3
        with pytest.raises(ValueError, match="why"):
            js(raise_value_error, "why").result(PATIENCE)
        with pytest.raises(LostResult):
            js(die).result(PATIENCE)
        assert descriptors() != before
        del js
        gc.collect()
    assert not [str(warning.message) for warning in caught]
    assert descriptors() == before


def test_a_handle_never_used_is_dropped_in_silence(method: str) -> None:
    before = descriptors()
    with recorded() as caught:
        js = Jobserver(method, 2)
        sibling = copy.copy(js).revise_env({NAME: "1"})
        del js, sibling
        gc.collect()
    assert not [str(warning.message) for warning in caught]
    assert descriptors() == before


def test_a_handle_dropped_closed_with_running_futures_is_silent(tmp_path: Path) -> None:
    """Leaving the block said that the Futures are known to outlive it."""
    with Gate(tmp_path) as gate, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with Jobserver("fork", 1) as js:
            future = js.submit(pass_gate, args=(gate.path, "value"))
        del js
        gc.collect()
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_a_finished_future_does_not_keep_the_descriptors_of_a_dropped_handle() -> None:
    before = descriptors()
    js = Jobserver("fork", 1)
    future = js(add, 1, 2)
    assert future.result(PATIENCE) == 3
    del js
    gc.collect()
    kept = descriptors()
    assert future.result(0) == 3
    del future
    gc.collect()
    assert descriptors() == before
    assert kept == before


def test_a_handle_in_a_cycle_is_collected() -> None:
    before = descriptors()
    js = Jobserver("fork", 1)
    future = js(add, 1, 2)
    future.when_done(future.done)
    box: list[object] = [js, future]
    box.append(box)
    future.when_done(box.count, js)
    assert future.result(PATIENCE) == 3
    gone = weakref.ref(future)
    del js, future, box
    gc.collect()
    assert gone() is None
    assert descriptors() == before


def test_a_handle_equals_itself_only() -> None:
    js = Jobserver("fork", 1)
    assert js != copy.copy(js)
    assert len({js, copy.copy(js), copy.deepcopy(js)}) == 3
