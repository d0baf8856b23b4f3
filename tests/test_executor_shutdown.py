"""How a JobserverExecutor ends: shut down, left, or forgotten."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import threading
import weakref
from concurrent.futures import Future as StandardFuture
from pathlib import Path
from typing import Callable

import pytest

from jobserver import Jobserver, JobserverExecutor
from tests import executor_work as work
from tests.conftest import _descendants, _descriptors
from tests.executor_help import await_true, context_of, executor_for, sharing_executor
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    die,
    identity,
    pass_gate,
    raise_value_error,
    touch,
    touch_and_pass_gate,
)


def test_shutdown_waits_for_what_runs_and_for_what_is_pending(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        futures = [executor.submit(pass_gate, gate.path, number) for number in range(3)]
        gate.open()
        executor.shutdown()
        assert [future.done() for future in futures] == [True] * 3
        assert [future.result() for future in futures] == [0, 1, 2]


def test_shutdown_without_waiting_returns_at_once(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        futures = [executor.submit(pass_gate, gate.path, number) for number in range(3)]
        executor.shutdown(wait=False)
        assert not any(future.done() for future in futures)
        gate.open()
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]


def test_shutdown_without_waiting_then_with(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        futures = [executor.submit(pass_gate, gate.path, number) for number in range(3)]
        executor.shutdown(False)
        gate.open()
        executor.shutdown(True)
        assert all(future.done() for future in futures)


def test_cancel_futures_cancels_only_what_is_pending(method: str, tmp_path: Path) -> None:
    mark, never = str(tmp_path / "mark"), tmp_path / "never"
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        running = executor.submit(touch_and_pass_gate, mark, gate.path, "ran")
        pending = [executor.submit(touch, str(never)) for _ in range(5)]
        await_file(mark)
        executor.shutdown(wait=False, cancel_futures=True)
        _, not_done = concurrent.futures.wait(pending, PATIENCE)
        assert not not_done
        assert all(future.cancelled() for future in pending)
        assert running.running()
        gate.open()
        executor.shutdown()
        assert running.result() == "ran"
    assert not never.exists()


def test_cancel_futures_in_a_later_call(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        running = executor.submit(touch_and_pass_gate, mark, gate.path, "ran")
        pending = executor.submit(identity, None)
        await_file(mark)
        executor.shutdown(wait=False)
        assert not pending.cancelled()
        executor.shutdown(wait=False, cancel_futures=True)
        gate.open()
        executor.shutdown()
        assert running.result() == "ran"
        assert pending.cancelled()


def test_cancelled_just_before_shutdown(method: str) -> None:
    with executor_for(method, 1) as executor:
        executor.submit(identity, None).result(PATIENCE)
        executor.submit(identity, None).cancel()
        executor.shutdown()


def test_shutdown_is_idempotent(method: str) -> None:
    with executor_for(method, 1) as executor:
        future = executor.submit(add, 1, 2)
        for wait in (True, False, True):
            executor.shutdown(wait)
        assert future.result() == 3


def test_it_ends_after_work_that_cannot_be_sent(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        executor.submit(pass_gate, gate.path)
        last = executor.submit(identity, threading.Lock())
        thread = threading.Thread(target=executor.shutdown, daemon=True)
        thread.start()
        await_true(lambda: "shutdown" in repr(executor), "the shutdown by the thread")
        gate.open()
        assert isinstance(last.exception(PATIENCE), TypeError)
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_an_executor_never_used_is_shut_down(method: str) -> None:
    executor = JobserverExecutor(2, context_of(method))
    executor.shutdown()
    executor.shutdown(cancel_futures=True)


def test_shutdown_from_several_threads(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        future = executor.submit(pass_gate, gate.path, "value")
        done_at_return: list[bool] = []

        def shut_down() -> None:
            executor.shutdown()
            done_at_return.append(future.done())

        threads = [threading.Thread(target=shut_down) for _ in range(3)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(PATIENCE)
        assert done_at_return == [True] * 3


@pytest.mark.parametrize("wait", [False, True])
def test_shutdown_from_a_callback(method: str, tmp_path: Path, wait: bool) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        first = executor.submit(pass_gate, gate.path, "first")
        second = executor.submit(identity, "second")
        # A callback runs on the executor's own thread, which cannot wait for itself to end.
        first.add_done_callback(lambda future: executor.shutdown(wait))
        gate.open()
        assert second.result(PATIENCE) == "second"
        await_true(lambda: "shutdown" in repr(executor), "the shutdown by the callback")


def test_submit_after_shutdown(method: str) -> None:
    with executor_for(method, 1) as executor:
        executor.shutdown()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(identity, None)


def test_leaving_the_block_shuts_down(method: str) -> None:
    with JobserverExecutor(1, context_of(method)) as executor:
        assert isinstance(executor, JobserverExecutor)
        future = executor.submit(add, 1, 2)
    assert future.done()
    with pytest.raises(RuntimeError):
        executor.submit(identity, None)


def test_an_exception_passes_through_the_block(method: str) -> None:
    futures: list[StandardFuture[int]] = []

    def leave() -> None:
        with JobserverExecutor(1, context_of(method)) as executor:
            futures.append(executor.submit(add, 1, 2))
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert futures[0].done()


def test_work_submitted_by_callbacks_while_it_shuts_down_is_refused(method: str) -> None:
    refused: list[BaseException] = []

    def submit_more(future: StandardFuture[int]) -> None:
        try:
            executor.submit(identity, None)
        except RuntimeError as error:
            refused.append(error)

    with executor_for(method, 1) as executor:
        future = executor.submit(add, 1, 2)
        executor.shutdown(wait=False)
        future.add_done_callback(submit_more)
        assert future.result(PATIENCE) == 3
    assert len(refused) == 1


def quiet_again(processes: set[int], descriptors: dict[str, str], threads: int) -> None:
    await_true(lambda: threading.active_count() <= threads, "the end of the thread")
    await_true(lambda: not _descendants() - processes, "the end of the processes")
    await_true(lambda: set(_descriptors()) <= set(descriptors), "the closing of descriptors")


def test_a_forgotten_executor_leaves_nothing_while_its_futures_are_kept(method: str) -> None:
    before = _descendants(), _descriptors(), threading.active_count()
    executor = JobserverExecutor(1, context_of(method))
    futures = [executor.submit(identity, number) for number in range(4)]
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2, 3]
    quiet_again(*before)
    assert [future.result() for future in futures] == [0, 1, 2, 3]


@pytest.mark.parametrize("fn", [raise_value_error, die, identity])
def test_a_kept_future_keeps_nothing_else(method: str, fn: Callable[..., object]) -> None:
    before = _descendants(), _descriptors(), threading.active_count()
    js = Jobserver(context_of(method), 1)
    executor = JobserverExecutor(js)
    arguments = {raise_value_error: ("text",), die: (), identity: (1,)}[fn]
    future = executor.submit(fn, *arguments)
    concurrent.futures.wait([future], PATIENCE)
    executor.shutdown()
    del js, executor
    gc.collect()
    # The slots' pipe goes with the last handle, though the Future and its exception are here.
    quiet_again(*before)
    assert future.done()


def test_a_forgotten_executor_finishes_what_is_held_up(method: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with Gate(tmp_path) as gate:
        executor = JobserverExecutor(1, context_of(method))
        futures = [executor.submit(touch_and_pass_gate, mark, gate.path, n) for n in range(3)]
        await_file(mark)
        del executor
        gc.collect()
        gate.open()
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]


def test_a_forgotten_executor_finishes_a_map(method: str) -> None:
    executor = JobserverExecutor(2, context_of(method))
    results = executor.map(abs, range(-3, 3))
    del executor
    gc.collect()
    assert list(results) == [3, 2, 1, 0, 1, 2]


def test_an_idle_forgotten_executor_leaves_nothing(method: str) -> None:
    before = _descendants(), _descriptors(), threading.active_count()
    executor = JobserverExecutor(1, context_of(method))
    future = executor.submit(add, 1, 2)
    assert future.result(PATIENCE) == 3
    del executor
    gc.collect()
    quiet_again(*before)
    assert future.result() == 3


def test_forgotten_futures_finish_all_the_same(method: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    executor = JobserverExecutor(1, context_of(method))
    for number in range(3):
        executor.submit(work.append, str(log), str(number))
    del executor
    gc.collect()
    await_true(lambda: log.exists() and log.read_text() == "012", "the forgotten work")


def test_a_given_jobserver_stays_open(method: str) -> None:
    with Jobserver(context_of(method), 1) as js:
        with sharing_executor(js) as executor:
            assert executor.submit(add, 1, 2).result(PATIENCE) == 3
        with sharing_executor(js) as executor:
            assert executor.submit(add, 3, 4).result(PATIENCE) == 7
        assert js.submit(add, args=(5, 6)).result(PATIENCE) == 11


def test_repr_tells_the_state(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        start = "JobserverExecutor({}, pending={}, jobserver=Jobserver('" + method + "'"
        assert repr(executor).startswith(start.format("active", 0))
        assert repr(executor).endswith("))")
        mark = str(tmp_path / "mark")
        executor.submit(touch_and_pass_gate, mark, gate.path)
        pending = [executor.submit(identity, None) for _ in range(2)]
        await_file(mark)
        assert repr(executor).startswith("JobserverExecutor(active, pending=")
        executor.shutdown(wait=False)
        assert repr(executor).startswith("JobserverExecutor(shutdown, pending=")
        gate.open()
        concurrent.futures.wait(pending, PATIENCE)
        executor.shutdown()
        assert repr(executor).startswith(start.format("shutdown", 0))


def test_nothing_above_debug_is_logged(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="jobserver"):
        with JobserverExecutor(1, context_of(method)) as executor:
            futures: list[StandardFuture[object]] = [
                executor.submit(add, 1, 2),
                executor.submit(raise_value_error, "no"),
                executor.submit(die),
            ]
            list(executor.map(identity, range(3)))
            concurrent.futures.wait(futures, PATIENCE)
    assert any(record.name.split(".")[0] == "jobserver" for record in caplog.records)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_a_child_of_the_program_can_neither_use_nor_disturb_it(tmp_path: Path) -> None:
    with executor_for("fork", 1) as executor, Gate(tmp_path) as gate:
        mark = str(tmp_path / "mark")
        running = executor.submit(touch_and_pass_gate, mark, gate.path, "running")
        pending = executor.submit(identity, "pending")
        await_file(mark)
        child = os.fork()
        if child == 0:
            # Everything here ends in _exit: pytest must not go on in two processes.
            code = 1
            try:
                try:
                    executor.submit(identity, None)
                except RuntimeError:
                    code = 0
                executor.shutdown(wait=False, cancel_futures=True)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not running.done()
        gate.open()
        assert running.result(PATIENCE) == "running"
        assert pending.result(PATIENCE) == "pending"


@pytest.mark.parametrize("face", ["owning", "sharing", "sharing reused workers"])
def test_what_has_a_slot_when_it_is_submitted_begins(
    method: str, face: str, tmp_path: Path
) -> None:
    """So a shutdown that cancels, at once, leaves it, as ProcessPoolExecutor does."""
    context = context_of(method)
    peer = concurrent.futures.ProcessPoolExecutor(2, context)
    log = str(tmp_path / "log")
    with Jobserver(context, 2) as js:
        executor = {
            "owning": lambda: JobserverExecutor(2, context),
            "sharing": lambda: JobserverExecutor(js),
            "sharing reused workers": lambda: JobserverExecutor(js.replace_workers()),
        }[face]()
        done = []
        for pool in (peer, executor):
            futures = [pool.submit(work.append, log, f"{number}\n") for number in range(50)]
            pool.shutdown(cancel_futures=True)
            done.append([n for n, future in enumerate(futures) if not future.cancelled()])
            assert sorted(map(int, Path(log).read_text().split())) == done[-1]
            Path(log).unlink()
    expected, ours = done
    # Its thread starts one of them after the other, ours has both at once.
    assert expected[:1] == [0]
    assert ours[:2] == [0, 1]


def test_the_first_chunk_of_a_map_begins_when_it_is_submitted(method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    executor = JobserverExecutor(2, context_of(method))
    executor.map(work.append, [log] * 100, [f"{n}\n" for n in range(100)], chunksize="auto")
    executor.shutdown(cancel_futures=True)
    assert Path(log).read_text().startswith("0\n")
