"""What is dropped in a cycle is finalized anywhere: amid a step, and while locks are held."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobserver import Jobserver, JobserverExecutor
from jobserver.channel import ResultChannel
from tests.processes import await_state, check_slots, pid_of, run_program
from tests.work import PATIENCE, Gate, identity, pass_gate

THINGS = ("iterator", "handle", "executor")


def in_a_cycle(thing: object) -> None:
    """Leave it to the garbage collector."""
    cycle = [thing]
    cycle.append(cycle)


def drop(name: str, js: Jobserver) -> None:
    """Leave something to the garbage collector that has to be let go of."""
    if name == "iterator":
        in_a_cycle(js.map(identity, [("value",)]))
    elif name == "handle":
        in_a_cycle(js)
    else:
        executor = JobserverExecutor(js)
        assert executor.submit(identity, "value").result(PATIENCE) == "value"
        in_a_cycle(executor)


@contextmanager
def collected_on_demand() -> Generator[None, None, None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.filterwarnings("ignore:Finalizing:ResourceWarning")
@pytest.mark.parametrize("name", THINGS)
def test_amid_a_step(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = ResultChannel.receive

    def collect_amid(channel: ResultChannel) -> Any:
        received = receive(channel)
        monkeypatch.undo()
        gc.collect()
        return received

    with collected_on_demand():
        js = Jobserver(method, 3)
        drop(name, js)
        future = js.submit(identity, args=("value",))
        kept = None if name == "handle" else js
        del js
        # So that whoever looks again finds more than was received.
        await_state(pid_of(future), "Z")
        monkeypatch.setattr(ResultChannel, "receive", collect_amid)
        assert future.result(PATIENCE) == "value"
        if kept is not None:
            check_slots(kept, 3, tmp_path / "slots")


def collect_while_opening(name: str, directory: str) -> None:
    """One thread opens a file; another, amid a step, waits until it has."""
    receiving = threading.Event()
    receive, open_file = ResultChannel.receive, os.open
    patch = pytest.MonkeyPatch()

    def tell(channel: ResultChannel) -> Any:
        receiving.set()
        return receive(channel)

    gc.disable()
    with Gate(Path(directory)) as gate:

        def collect_amid(path: str, *args: Any) -> int:
            patch.setattr(os, "open", open_file)
            gate.open()
            assert receiving.wait(PATIENCE)
            gc.collect()
            return open_file(path, *args)

        js = Jobserver("fork", 3)
        drop(name, js)
        future = js.submit(pass_gate, args=(gate.path, "value"))
        del js
        patch.setattr(ResultChannel, "receive", tell)
        waiter = threading.Thread(target=future.wait)
        waiter.start()
        with Jobserver("fork", 1) as other:
            patch.setattr(os, "open", collect_amid)
            assert other.submit(identity, args=("other",)).result(PATIENCE) == "other"
        waiter.join(PATIENCE)
        assert future.result(0) == "value"
        # What could not be done at once has been done since.
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(PATIENCE)
                assert not thread.is_alive()


@pytest.mark.parametrize("name", THINGS)
def test_while_files_are_opened(name: str, tmp_path: Path) -> None:
    run_program(collect_while_opening, name, str(tmp_path))
