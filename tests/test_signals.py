"""`wait(signal=...)`: how running work is cancelled, stopped and continued."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobserver import Future, Jobserver, LostResult
from tests.mischief import clean_up_on
from tests.processes import await_state, check_slots, pid_of, state_of
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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_cancels(method: str, tmp_path: Path, signum: int) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        mark = tmp_path / "mark"
        future = js.submit(touch_and_pass_gate, args=(str(mark), gate.path))
        other = js.submit(pass_gate, args=(gate.path, "other"))
        await_file(mark)
        pid = pid_of(future)
        assert future.wait(PATIENCE, signal=signum) is True
        with pytest.raises(LostResult) as caught:
            future.result()
        assert caught.value.pid == pid
        assert caught.value.exitcode == -signum
        assert str(pid) in str(caught.value)
        assert signal.Signals(signum).name in str(caught.value)
        # Nobody else noticed.
        assert not other.done()
        gate.open()
        assert other.result(PATIENCE) == "other"
        check_slots(js, 2, tmp_path / "slots")


def test_without_a_timeout(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        assert future.wait(signal=signal.SIGKILL) is True
        with pytest.raises(LostResult):
            future.result()


def test_the_signal_is_sent_even_if_nothing_is_waited(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        future.wait(0, signal=signal.SIGKILL)
        assert future.wait(PATIENCE) is True
        with pytest.raises(LostResult):
            future.result()


def test_work_just_submitted_can_be_cancelled(method: str, tmp_path: Path) -> None:
    """Cancelled while it is being launched, work is over: it is not launched again."""
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        for _ in range(5):
            future = js.submit(pass_gate, args=(gate.path,), timeout=0)
            assert future.wait(PATIENCE, signal=signal.SIGKILL) is True
            with pytest.raises(LostResult) as caught:
                future.result()
            assert caught.value.exitcode == -signal.SIGKILL


def test_work_can_clean_up(method: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Jobserver(method, 1) as js:
        future = js.submit(clean_up_on, args=(str(mark), signal.SIGTERM))
        await_file(mark)
        assert future.wait(PATIENCE, signal=signal.SIGTERM) is True
        assert future.result() == "cleaned up"


def test_an_interrupt_is_a_loss_that_shows_it(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        mark = tmp_path / "mark"
        future = js.submit(touch_and_pass_gate, args=(str(mark), gate.path))
        await_file(mark)
        assert future.wait(PATIENCE, signal=signal.SIGINT) is True
        with pytest.raises(LostResult) as caught:
            future.result()
        assert "KeyboardInterrupt" in f"{caught.value.__cause__!r} {caught.value.__cause__}"


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_an_invalid_signal_is_an_os_error(method: str, tmp_path: Path, wrong: int) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        with pytest.raises(OSError, match=r".") as caught:
            future.wait(PATIENCE, signal=wrong)
        assert not isinstance(caught.value, ProcessLookupError)
        assert not future.done()
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_what_is_no_signal_is_refused(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        with pytest.raises(TypeError):
            future.wait(PATIENCE, signal="SIGTERM")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            future.wait(PATIENCE, signal.SIGTERM)  # type: ignore[misc]  # by keyword only
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_a_wrong_timeout_sends_nothing(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        with pytest.raises(ValueError, match="timeout"):
            future.wait(-1, signal=signal.SIGKILL)
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_a_worker_that_has_just_gone_is_no_error(method: str) -> None:
    futures: list[Future[Any]] = []
    with Jobserver(method, 3) as js:
        for work, args in ((identity, ("value",)), (raise_value_error, ("told",)), (die, ())):
            future: Future[Any] = js.submit(work, args=args)
            # Nobody has asked yet; that it is gone is seen from outside.
            await_state(pid_of(future), "Z")
            assert future.wait(PATIENCE, signal=signal.SIGTERM) is True
            futures.append(future)
        returned, failed, died = futures
        assert returned.result() == "value"
        with pytest.raises(ValueError, match="told"):
            failed.result()
        with pytest.raises(LostResult) as caught:
            died.result()
        assert caught.value.exitcode == -signal.SIGKILL


def test_a_future_long_done_ignores_it(method: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(add, args=(1, 2))
        assert future.result(PATIENCE) == 3
        assert future.wait(signal=signal.SIGKILL) is True
        assert future.result() == 3


def test_stopped_and_continued(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        mark = tmp_path / "mark"
        future = js.submit(touch_and_pass_gate, args=(str(mark), gate.path, "value"))
        await_file(mark)
        pid = pid_of(future)
        assert future.wait(0.1, signal=signal.SIGSTOP) is False
        await_state(pid, "T")
        gate.open()
        assert future.wait(0.3) is False
        assert state_of(pid) == "T"
        # The others go on meanwhile.
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        assert future.wait(PATIENCE, signal=signal.SIGCONT) is True
        assert future.result() == "value"


def test_stopped_and_killed(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        pid = pid_of(future)
        assert future.wait(0, signal=signal.SIGSTOP) is False
        await_state(pid, "T")
        assert future.wait(PATIENCE, signal=signal.SIGKILL) is True
        with pytest.raises(LostResult) as caught:
            future.result()
        assert caught.value.exitcode == -signal.SIGKILL


def test_stopped_from_outside(method: str, tmp_path: Path) -> None:
    """A worker that stops is not one that ended, whoever stopped it."""
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        mark = tmp_path / "mark"
        future = js.submit(touch_and_pass_gate, args=(str(mark), gate.path, "value"))
        await_file(mark)
        os.kill(pid_of(future), signal.SIGSTOP)
        await_state(pid_of(future), "T")
        assert future.wait(0.2) is False
        os.kill(pid_of(future), signal.SIGCONT)
        assert future.wait(0.2) is False
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_one_thread_cancels_what_another_waits_for(method: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path,))
        other = pool.submit(future.wait, PATIENCE)
        # The signal does not queue up behind the other's wait.
        start = time.monotonic()
        future.wait(0.5, signal=signal.SIGKILL)
        assert future.wait(PATIENCE) is True
        assert other.result(PATIENCE) is True
        assert time.monotonic() - start < PATIENCE / 3
        with pytest.raises(LostResult):
            future.result()
