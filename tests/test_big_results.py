"""Results of any size arrive, read or unread, and hold nobody else up.

Most here go through the channel, as they do when there can be no file for them: then a worker waits
for whoever reads it. Those that do not are in `test_large_values`, too.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Callable

import pytest

from jobserver import Blocked, Future, Jobserver, LostResult
from tests.processes import await_blocked, await_state, check_slots, pid_of, run_program
from tests.work import PATIENCE, add, await_file, blob, identity, streamed_blob, touch

MIB = 1024 * 1024
BIG = 32 * MIB  # bytes: no pipe or socket takes them without a reader
SOON = PATIENCE / 3


def marked_blob(mark: str, size: int) -> bytes:
    touch(mark)
    return streamed_blob(size)


def submit_unread(js: Jobserver, directory: Path, name: str = "mark") -> Future[bytes]:
    """Submit big work, and return when its worker is stuck with a result that nobody reads."""
    mark = directory / name
    future = js.submit(marked_blob, args=(str(mark), BIG), timeout=PATIENCE)
    await_file(mark)
    await_blocked(pid_of(future))
    return future


@pytest.mark.parametrize("make", [blob, streamed_blob])
def test_256_mib_arrive(method: str, make: Callable[[int], bytes]) -> None:
    with Jobserver(method, 1) as js:
        result = js.submit(make, args=(256 * MIB,)).result(PATIENCE)
        assert len(result) == result.count(b"x") == 256 * MIB


def test_big_arguments_travel_too(method: str) -> None:
    argument = bytes(range(256)) * (BIG // 256)
    with Jobserver(method, 1) as js:
        assert js.submit(identity, args=(argument,)).result(PATIENCE) == argument


def test_an_unread_one_does_not_block_other_slots(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as js:
        big = submit_unread(js, tmp_path)
        for number in range(10):
            assert js.submit(add, args=(number, 1), timeout=SOON).result(SOON) == number + 1
        assert len(big.result(PATIENCE)) == BIG


def test_the_slot_of_an_unread_one_can_be_had(method: str, tmp_path: Path) -> None:
    """Who waits for a slot takes the result in, and so sets its worker free."""
    with Jobserver(method, 1) as js:
        big = submit_unread(js, tmp_path)
        assert js.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
        assert len(big.result(0)) == BIG


def test_without_a_timeout_too(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as js:
        unread = [submit_unread(js, tmp_path, str(number)) for number in range(2)]
        assert [js.submit(add, args=(number, 1)).result() for number in range(3)] == [1, 2, 3]
        assert [len(future.result()) for future in unread] == [BIG, BIG]


def test_reclaiming_takes_it_in(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        big = submit_unread(js, tmp_path)
        deadline = time.monotonic() + PATIENCE
        while "tracked=0" not in repr(js):
            js.reclaim_resources()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert len(big.result(0)) == BIG


def test_many_at_once_in_any_order(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 3) as js:
        futures = [submit_unread(js, tmp_path, str(number)) for number in range(3)]
        assert [len(future.result(PATIENCE)) for future in reversed(futures)] == [BIG] * 3
        check_slots(js, 3, tmp_path / "slots")


def test_the_last_exit_does_not_wait_for_a_reader(method: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with Jobserver(method, 1) as js:
        big = submit_unread(js, tmp_path)
    assert time.monotonic() - start < SOON
    assert len(big.result(PATIENCE)) == BIG


def test_timeouts_hold_in_the_middle_of_one(method: str, tmp_path: Path) -> None:
    """A worker that stops half way through its answer stops nobody else."""
    with Jobserver(method, 2) as js:
        big = submit_unread(js, tmp_path)
        pid = pid_of(big)
        start = time.monotonic()
        big.wait(0, signal=signal.SIGSTOP)
        await_state(pid, "T")
        assert big.wait(0.3) is False
        assert big.done() is False
        with pytest.raises(Blocked):
            big.result(0.1)
        assert js.submit(add, args=(1, 2)).result(SOON) == 3
        other = submit_unread(js, tmp_path, "other")
        other.wait(0, signal=signal.SIGSTOP)
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0.2)
        js.reclaim_resources()
        assert time.monotonic() - start < SOON
        other.wait(0, signal=signal.SIGCONT)
        assert big.wait(PATIENCE, signal=signal.SIGCONT) is True
        assert len(big.result()) == len(other.result(PATIENCE)) == BIG


def test_killed_in_the_middle_of_one(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as js:
        big = submit_unread(js, tmp_path)
        assert big.wait(PATIENCE, signal=signal.SIGKILL) is True
        with pytest.raises(LostResult) as caught:
            big.result()
        assert caught.value.exitcode == -signal.SIGKILL
        check_slots(js, 2, tmp_path / "slots")


def leave_unread(method: str, directory: str, close: int) -> None:
    js = Jobserver(method, 2)
    if close:
        with js:
            kept.append(submit_unread(js, Path(directory)))
    else:
        kept.append(submit_unread(js, Path(directory)))
        kept.append(js)


kept: list[object] = []  # what a program still has when its interpreter ends


@pytest.mark.parametrize("close", [0, 1])
def test_an_interpreter_can_end_with_one_unread(method: str, tmp_path: Path, close: int) -> None:
    run_program(leave_unread, method, str(tmp_path), close)
