"""A worker that ends without a result, and results that cannot make the journey."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import time
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import Future, Jobserver, LostResult
from tests import mischief
from tests.processes import await_state, check_slots, pid_of, state_of
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    blob,
    die,
    identity,
    os_exit,
    pass_gate,
    sys_exit,
)

SOON = PATIENCE / 3


def shown(error: BaseException) -> str:
    """All that Python prints of the exception, causes included."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGALRM])
def test_killed_by_a_signal(method: str, tmp_path: Path, signum: int) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(die, args=(signum,))
        pid = pid_of(future)
        for _ in range(3):
            with pytest.raises(LostResult) as caught:
                future.result(PATIENCE)
            assert caught.value.pid == pid
            assert caught.value.exitcode == -signum
            assert f"worker {pid} was killed by {signal.Signals(signum).name}" in str(caught.value)
            assert ("out of memory" in str(caught.value)) == (signum == signal.SIGKILL)
        check_slots(js, 1, tmp_path / "slots")


def test_killed_by_a_signal_without_a_name(method: str) -> None:
    signum = signal.SIGRTMIN + 3
    with Jobserver(method, 1) as js:
        future = js.submit(die, args=(signum,))
        with pytest.raises(LostResult, match=str(int(signum))) as caught:
            future.result(PATIENCE)
        assert caught.value.exitcode == -signum


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_left_by_os_exit(method: str, tmp_path: Path, status: int) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(os_exit, args=(status,))
        pid = pid_of(future)
        with pytest.raises(LostResult) as caught:
            future.result(PATIENCE)
        assert caught.value.pid == pid
        assert caught.value.exitcode == status
        assert f"worker {pid}" in str(caught.value)
        assert str(status) in str(caught.value).replace(str(pid), "")
        check_slots(js, 1, tmp_path / "slots")


def test_become_another_program(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.exec_program, args=("/bin/sh", "-c", "exit 7"))
        pid = pid_of(future)
        with pytest.raises(LostResult) as caught:
            future.result(PATIENCE)
        assert (caught.value.pid, caught.value.exitcode) == (pid, 7)
        check_slots(js, 1, tmp_path / "slots")


def test_become_a_program_that_runs_on(method: str, tmp_path: Path) -> None:
    """The result is lost at once, but the worker is not over before its process is."""
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(mischief.exec_program, args=mischief.hold_program(gate.path))
        start = time.monotonic()
        assert future.wait(1) is False
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        assert future.wait(0.2) is False
        assert time.monotonic() - start < SOON
        assert future.wait(PATIENCE, signal=signal.SIGKILL) is True
        with pytest.raises(LostResult) as caught:
            future.result()
        assert caught.value.exitcode == -signal.SIGKILL


def test_a_worker_that_closed_its_channel_and_runs_on(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        mark = tmp_path / "mark"
        future = js.submit(mischief.close_all_and_hold, args=(str(mark), gate.path))
        await_file(mark)
        start = time.monotonic()
        assert future.wait(0.3) is False
        js.reclaim_resources()
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        assert time.monotonic() - start < SOON
        gate.open()
        with pytest.raises(LostResult):
            future.result(PATIENCE)
        check_slots(js, 2, tmp_path / "slots")


def test_a_worker_that_lingers_keeps_its_value(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(mischief.linger, args=(gate.path, "value"))
        start = time.monotonic()
        future.wait(0.5)
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        assert time.monotonic() - start < SOON
        gate.open()
        assert future.result(PATIENCE) == "value"
        check_slots(js, 2, tmp_path / "slots")


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt"])
def test_ended_by_what_ends_a_process(method: str, tmp_path: Path, name: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.raise_base, args=(name,))
        pid = pid_of(future)
        for _ in range(2):
            with pytest.raises(LostResult) as caught:
                future.result(PATIENCE)
            assert caught.value.pid == pid
            assert caught.value.__cause__ is not None
            assert f"{name}: base of it" in shown(caught.value.__cause__)
            assert "in raise_base" in shown(caught.value)
            again = pickle.loads(pickle.dumps(caught.value))
            assert str(again) == str(caught.value)
            assert str(again) == f"worker {pid} was ended by {name}('base of it')"
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("status", [None, 0, 3, "words"])
def test_ended_by_sys_exit(method: str, status: object) -> None:
    with Jobserver(method, 1) as js:
        with pytest.raises(LostResult) as caught:
            js.submit(sys_exit, args=(status,)).result(PATIENCE)
        assert "SystemExit" in shown(caught.value)


def test_a_loss_is_of_that_future_alone(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 4) as js:
        before = js.submit(pass_gate, args=(gate.path, "before"))
        lost: list[Future[Any]] = [js.submit(die), js.submit(os_exit, args=(3,))]
        after = js.submit(pass_gate, args=(gate.path, "after"))
        for future in lost:
            with pytest.raises(LostResult):
                future.result(PATIENCE)
        later = js.submit(pass_gate, args=(gate.path, "later"), timeout=PATIENCE)
        assert not before.done()
        assert not after.done()
        gate.open()
        survivors = (before, after, later)
        assert [future.result(PATIENCE) for future in survivors] == ["before", "after", "later"]
        check_slots(js, 4, tmp_path / "slots")


def test_a_loss_within_the_work_is_an_exception_like_others(method: str, tmp_path: Path) -> None:
    """The worker of the nested work was lost; the one that waited for it ended as it should."""
    mark = tmp_path / "pid"
    with Jobserver(method, 2) as js:
        future = js.submit(mischief.nested_die, args=(js, str(mark)))
        with pytest.raises(LostResult) as caught:
            future.result(PATIENCE)
        assert caught.value.exitcode == -signal.SIGKILL
        assert caught.value.pid != int(mark.read_text())
        assert "in nested_die" in shown(caught.value)


def test_a_loss_is_told_while_nested_work_runs_on(method: str, tmp_path: Path) -> None:
    """A worker that was forked by the lost one holds nothing of its channel."""
    mark = tmp_path / "mark"
    with Jobserver(method, 3) as js:
        with Gate(tmp_path) as gate:
            future = js.submit(mischief.die_before_nested, args=(js, str(mark), gate.path))
            with pytest.raises(LostResult) as caught:
                future.result(PATIENCE)
            assert caught.value.exitcode == -signal.SIGKILL
            nested = int(mark.read_text())
            assert state_of(nested) != "Z"
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        await_state(nested, "Z")


def test_a_loss_survives_pickling(method: str) -> None:
    with Jobserver(method, 1) as js:
        with pytest.raises(LostResult) as caught:
            js.submit(os_exit, args=(3,)).result(PATIENCE)
        loss = caught.value
        for other in (pickle.loads(pickle.dumps(loss)), copy.copy(loss), copy.deepcopy(loss)):
            assert type(other) is LostResult
            assert (other.pid, other.exitcode, str(other)) == (loss.pid, 3, str(loss))


def test_a_worker_that_somebody_else_reaped() -> None:
    """Its end is known, but not how it ended."""
    with Jobserver("fork", 2) as js:
        lost = js.submit(die)
        pid = pid_of(lost)
        os.waitpid(pid, 0)
        with pytest.raises(LostResult) as caught:
            lost.result(PATIENCE)
        assert caught.value.pid == pid
        assert caught.value.exitcode is None
        assert str(pid) in str(caught.value)
        kept = js.submit(identity, args=("value",))
        os.waitpid(pid_of(kept), 0)
        assert kept.result(PATIENCE) == "value"


def test_a_program_that_ignores_its_children(method: str) -> None:
    """With SIGCHLD ignored the kernel reaps: results arrive, and losses are told as losses."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Jobserver(method, 2) as js:
            assert js.submit(identity, args=("value",)).result(PATIENCE) == "value"
            with pytest.raises(LostResult):
                js.submit(die).result(PATIENCE)
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("make", "named"),
    [(mischief.make_closure, "Closure"), (mischief.make_deep, "list")],
)
def test_a_result_that_cannot_be_pickled(
    method: str, tmp_path: Path, make: Callable[[], object], named: str
) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(make)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not picklable") as caught:
                future.result(PATIENCE)
            assert named in str(caught.value)
            assert "Traceback (most recent call last)" in shown(caught.value)
        check_slots(js, 1, tmp_path / "slots")


def test_an_exception_that_cannot_be_pickled(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.raise_locked, args=("the lock",))
        with pytest.raises(RuntimeError, match="not picklable") as caught:
            future.result(PATIENCE)
        assert "LockedError" in str(caught.value)
        # Where and what it was is kept.
        assert "in raise_locked" in shown(caught.value)
        assert "LockedError: the lock" in shown(caught.value)
        check_slots(js, 1, tmp_path / "slots")


def test_a_result_that_cannot_be_rebuilt(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.make_unbuildable)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not reconstructable") as caught:
                future.result(PATIENCE)
            assert repr(ValueError("no way back")) in str(caught.value)
        check_slots(js, 1, tmp_path / "slots")


def test_an_exception_that_cannot_be_rebuilt(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.raise_fussy)
        with pytest.raises(RuntimeError, match="not reconstructable") as caught:
            future.result(PATIENCE)
        assert "TypeError(" in str(caught.value)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("signum", [0, signal.SIGKILL])
def test_a_program_left_behind_holds_nothing(method: str, tmp_path: Path, signum: int) -> None:
    """A grandchild has given the channel up when it became another program."""
    mark = tmp_path / "mark"
    with Jobserver(method, 1) as js:
        with Gate(tmp_path) as gate:
            future = js.submit(mischief.leave_program, args=(str(mark), gate.path, signum))
            assert future.wait(PATIENCE) is True
            left = int(mark.read_text())
            assert state_of(left) != "Z"
            if signum:
                with pytest.raises(LostResult) as caught:
                    future.result()
                assert caught.value.exitcode == -signum
            else:
                assert future.result() == "left"
            check_slots(js, 1, tmp_path / "slots")
        await_state(left, "Z")


def test_a_grandchild_that_holds_the_channel_keeps_it_open(method: str, tmp_path: Path) -> None:
    """The channel is the contract: the result may still come from whoever holds it."""
    mark = tmp_path / "mark"
    with Jobserver(method, 2) as js:
        with Gate(tmp_path) as gate:
            args = (str(mark), gate.path, int(signal.SIGKILL))
            future = js.submit(mischief.leave_grandchild, args=args)
            await_file(mark)
            left = int(mark.read_text())
            await_state(pid_of(future), "Z")
            start = time.monotonic()
            assert future.wait(0.5) is False
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
            assert time.monotonic() - start < SOON
        with pytest.raises(LostResult) as caught:
            future.result(PATIENCE)
        assert caught.value.exitcode == -signal.SIGKILL
        await_state(left, "Z")
        check_slots(js, 2, tmp_path / "slots")


def test_a_grandchild_does_not_hold_a_result_back(method: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Jobserver(method, 1) as js:
        with Gate(tmp_path) as gate:
            future = js.submit(mischief.leave_grandchild, args=(str(mark), gate.path, 0))
            assert future.result(PATIENCE) == "left"
            left = int(mark.read_text())
            assert state_of(left) != "Z"
            check_slots(js, 1, tmp_path / "slots")
        await_state(left, "Z")


def test_a_large_exception_arrives(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.raise_detailed, args=(1, "x" * 10_000_000))
        with pytest.raises(mischief.DetailedError) as caught:
            future.result(PATIENCE)
        assert len(caught.value.hint) == 10_000_000


def test_a_loss_while_others_deliver_much(method: str) -> None:
    with Jobserver(method, 3) as js:
        futures = [js.submit(blob, args=(8_000_000,)) for _ in range(2)]
        with pytest.raises(LostResult):
            js.submit(die).result(PATIENCE)
        assert [len(future.result(PATIENCE)) for future in futures] == [8_000_000] * 2
