"""Whatever ends the thread of a JobserverExecutor, no Future stays unresolved."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from jobserver import Jobserver, JobserverExecutor
from jobserver.dispatch import Dispatch
from jobserver.engine import Engine
from jobserver.run import Run
from tests import executor_work as work
from tests.executor_help import await_true, context_of
from tests.processes import check_slots
from tests.work import PATIENCE, Gate, add, await_file, identity, touch_and_pass_gate

# Steps of the thread, in each of which it may meet what nobody expected.
STEPS = {
    "while it waits": (Engine, "wait"),
    "while it moves a run along": (Run, "advance"),
    "while it launches": (Dispatch, "_launch"),
    "while it takes pending work": (Dispatch, "_take_oldest"),
    "while it finishes a Future": (Dispatch, "_settle"),
}

FACES: dict[str, Callable[[Jobserver], JobserverExecutor]] = {
    "owning": lambda js: JobserverExecutor(js.slots, js.context),
    "sharing": JobserverExecutor,
    "sharing reused workers": lambda js: JobserverExecutor(js.replace_workers()),
}


OTHERS = ("owning", "sharing reused workers")


class Planted(Exception):
    """What nobody expects."""


@pytest.fixture(params=list(FACES.values()), ids=list(FACES))
def make(request: pytest.FixtureRequest) -> Callable[[Jobserver], JobserverExecutor]:
    made: Callable[[Jobserver], JobserverExecutor] = request.param
    return made


@pytest.fixture
def slots(method: str, tmp_path: Path) -> Iterator[Jobserver]:
    """A Jobserver whose two slots are free at the end of the test."""
    with Jobserver(context_of(method), 2) as js:
        yield js
        check_slots(js, 2, tmp_path / "slots")


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> threading.Event:
    """Have a step raise, once, in an executor's thread, as soon as the event is set."""
    armed = threading.Event()
    original = getattr(owner, name)

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> object:
        if threading.current_thread().name == "JobserverExecutor" and armed.is_set():
            armed.clear()
            raise Planted(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, step)
    return armed


def await_rest(thread: threading.Thread) -> None:
    """Wait until a thread sleeps, and stays asleep."""
    looks: list[list[str]] = []

    def rests() -> bool:
        fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().split()
        looks.append([fields[2], fields[13], fields[14]])  # state, user and system time
        return len(looks) >= 20 and looks[-1][0] == "S" and looks[-20:] == [looks[-1]] * 20

    await_true(rests, "the thread waits")


def check_broken(executor: JobserverExecutor, futures: list[Any], kind: type[object]) -> None:
    """All its Futures, and whatever is submitted, tell of the same cause."""
    for future in futures:
        error = future.exception(PATIENCE)
        assert type(error) is BrokenProcessPool
        assert isinstance(error.__cause__, kind)
        assert kind.__name__ in str(error)
    await_true(lambda: "broken" in repr(executor), "it says that it is broken")
    with pytest.raises(BrokenProcessPool, match=kind.__name__) as refused:
        executor.submit(identity, 1)
    assert isinstance(refused.value.__cause__, kind)
    executor.shutdown()
    assert "broken" in repr(executor)


@pytest.mark.parametrize(
    ("face", "step"),
    [*(("sharing", step) for step in STEPS), *((face, "while it waits") for face in OTHERS)],
)
def test_a_fault_breaks_the_executor(
    face: str,
    step: str,
    slots: Jobserver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    armed = plant(monkeypatch, *STEPS[step])
    executor = FACES[face](slots)
    with Gate(tmp_path) as gate:
        held = tmp_path / "held"
        futures: list[Any] = [executor.submit(work.hold_and_note_pid, str(held), gate.path)]
        await_true(lambda: held.exists() and held.read_text(), "the first work runs")
        futures.append(executor.submit(touch_and_pass_gate, str(tmp_path / "also"), gate.path))
        futures += [executor.submit(identity, number) for number in range(3)]
        await_file(tmp_path / "also")
        armed.set()
        # Some run and some are pending; one ends, so that the thread has all kinds of things to do.
        with contextlib.suppress(BrokenProcessPool):  # the thread may have met the fault by now
            futures.append(executor.submit(identity, 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(held.read_text()), signal.SIGKILL)
        # The end of the first was perhaps told before.
        assert isinstance(futures[0].exception(PATIENCE), BrokenProcessPool)
        check_broken(executor, futures[1:], Planted)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError])
def test_an_exception_thrown_into_the_thread_breaks_the_executor(
    kind: type[BaseException], slots: Jobserver, tmp_path: Path
) -> None:
    """As programs do that end threads from outside."""
    executor = JobserverExecutor(slots)
    with Gate(tmp_path) as gate:
        held = str(tmp_path / "held")
        futures = [executor.submit(touch_and_pass_gate, held, gate.path)]
        await_file(held)
        (thread,) = [t for t in threading.enumerate() if t.name == "JobserverExecutor"]
        # Elsewhere than in its wait, such an exception can be that of a Future's own.
        await_rest(thread)
        ident = ctypes.c_ulong(thread.ident or 0)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(kind)) == 1
        # It is raised when the thread wakes up.
        futures.append(executor.submit(touch_and_pass_gate, held, gate.path))
        check_broken(executor, futures, kind)


def test_a_callback_of_a_broken_executor_sees_it(
    slots: Jobserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = plant(monkeypatch, Run, "advance")
    executor = JobserverExecutor(slots)
    seen: list[str] = []

    def submit_again(_: object) -> None:
        try:
            executor.submit(abs, 1)
        except BrokenProcessPool as error:
            seen.append(str(error))

    with Gate(tmp_path) as gate:
        futures: list[concurrent.futures.Future[Any]]
        futures = [executor.submit(touch_and_pass_gate, str(tmp_path / "held"), gate.path)]
        futures += [executor.submit(identity, number) for number in range(4)]
        for future in futures:
            future.add_done_callback(submit_again)
        armed.set()
        gate.open()
        for future in futures:
            future.exception(PATIENCE)
    executor.shutdown()
    assert 1 <= len(seen) <= 5
    assert all("Planted" in text for text in seen)


def test_a_cancelled_future_stays_cancelled(
    slots: Jobserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = plant(monkeypatch, Run, "advance")
    executor = JobserverExecutor(slots)
    with Gate(tmp_path) as gate:
        marks = [str(tmp_path / str(number)) for number in range(2)]
        running = [executor.submit(touch_and_pass_gate, mark, gate.path) for mark in marks]
        for mark in marks:
            await_file(mark)
        pending = executor.submit(identity, 1)
        assert pending.cancel()
        armed.set()
        gate.open()
        assert type(running[0].exception(PATIENCE)) is BrokenProcessPool
    executor.shutdown()
    assert pending.cancelled()


class NoMethod:
    """An attribute that is not there, whatever the base class has."""

    def __get__(self, instance: object, owner: object) -> object:
        raise AttributeError("this context does without it")


def bare_context(method: str) -> Any:
    """A context like that of loky, whose processes lack what is optional."""
    plain: Any = context_of(method)
    popen = type("Popen", (_popen_of(method),), {"close": NoMethod()})
    # Found by name where it is unpickled: as the class that it is like.
    process = type(
        "BareProcess",
        (plain.Process,),
        {"_Popen": staticmethod(popen), "__reduce__": _reduce_as(plain.Process)},
    )
    return type("BareContext", (type(plain),), {"Process": process})()


def _popen_of(method: str) -> Any:
    import multiprocessing.popen_fork
    import multiprocessing.popen_forkserver
    import multiprocessing.popen_spawn_posix

    module = f"popen_{'spawn_posix' if method == 'spawn' else method}"
    return getattr(multiprocessing, module).Popen


def _reduce_as(kind: type) -> Callable[[Any], tuple[object, ...]]:
    return lambda process: (object.__new__, (kind,), vars(process))


@pytest.mark.parametrize("reuse", [False, True])
def test_a_context_without_optional_methods_works_for_a_jobserver(method: str, reuse: bool) -> None:
    with Jobserver(bare_context(method), 2) as js:
        handle = js.replace_workers() if reuse else js
        assert [*handle.map(add, [(number, 1) for number in range(4)])] == [1, 2, 3, 4]
        with pytest.raises(Exception, match="status 3"):
            handle.submit(os._exit, args=(3,)).result(PATIENCE)
        assert handle.submit(add, args=(1, 2)).result(PATIENCE) == 3
        assert "tracked=0" in repr(js)


def test_a_context_without_optional_methods_works_for_an_executor(
    method: str, make: Callable[[Jobserver], JobserverExecutor]
) -> None:
    with Jobserver(bare_context(method), 2) as js, make(js) as executor:
        assert [*executor.map(work.pid_for, range(4), timeout=PATIENCE)]
        assert isinstance(executor.submit(os._exit, 3).exception(PATIENCE), BrokenProcessPool)
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
