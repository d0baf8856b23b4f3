"""Whoever is killed, the slots that it held come free when nobody computes on them any more."""

from __future__ import annotations

import logging
import re
import signal
import threading
from pathlib import Path

import pytest

from jobserver import Blocked, Jobserver, LostResult
from tests import wreckage
from tests.executor_help import sharing_executor
from tests.processes import await_state, check_slots, run_program
from tests.trees import A_LOT
from tests.work import PATIENCE, Gate, add, await_file, identity
from tests.wreckage import Census, kill, pid_in

SLOTS = 3


def recovered(js: Jobserver) -> int:
    found = re.search(r"recovered=(\d+)", repr(js))
    return int(found.group(1)) if found else 0


def marks_in(directory: Path, number: int) -> list[str]:
    return [str(directory / f"mark{n}") for n in range(number)]


def test_what_a_killed_worker_held_comes_free(method: str, tmp_path: Path) -> None:
    """Its own slot at once, the others when those who use them end; a blocked submission finds
    them by itself, since nobody is left to tell it."""
    census = Census(tmp_path / "census", SLOTS)
    marks = marks_in(tmp_path, SLOTS)
    with Gate(tmp_path) as gate, Jobserver(method, SLOTS) as js:
        assert repr(js) == f"Jobserver({method!r}, tracked=0, slots={SLOTS})"
        future = js.submit(wreckage.hold_beside, args=(js, census, marks, gate.path))
        await_file(marks[0])
        assert future.wait(PATIENCE, signal=signal.SIGKILL)
        with pytest.raises(LostResult):
            future.result()
        # The nested ones go on, each on its slot.
        assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3
        args = census, str(tmp_path / "last"), gate.path, 7
        last = js.submit(wreckage.hold, args=args, timeout=0)
        await_file(tmp_path / "last")
        assert census.count() == SLOTS
        for timeout in (0, 0.1):
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=timeout)
        assert recovered(js) == 0
        found: list[int] = []
        blocked = threading.Thread(
            target=lambda: found.append(js.submit(add, args=(1, 2)).result(PATIENCE))
        )
        blocked.start()
        kill(pid_in(marks[1]))
        blocked.join(PATIENCE)
        assert found == [3]
        assert recovered(js) == 1
        gate.open()
        assert last.result(PATIENCE) == 7
        check_slots(js, SLOTS, tmp_path / "slots")
        assert recovered(js) == SLOTS - 1
    census.check()


def test_a_deadline_is_no_less_certain(method: str, tmp_path: Path) -> None:
    """Even without waiting, what is lost is looked for before a submission is refused."""
    census = Census(tmp_path / "census", 2)
    marks = marks_in(tmp_path, 2)
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(wreckage.hold_beside, args=(js, census, marks, gate.path))
        await_file(marks[0])
        assert future.wait(PATIENCE, signal=signal.SIGKILL)
        nested = pid_in(marks[1])
        kill(nested)
        await_state(nested, "Z")
        futures = [js.submit(add, args=(1, 2), timeout=0) for _ in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [3, 3]


def test_a_lent_slot_stays_with_its_borrower(method: str, tmp_path: Path) -> None:
    """The lender was killed: its slot is nobody else's while the one that it lent it to runs."""
    lender_dies(method, tmp_path, by_executor=False)


def test_a_slot_lent_by_an_executor_stays_with_its_borrower(method: str, tmp_path: Path) -> None:
    lender_dies(method, tmp_path, by_executor=True)


def lender_dies(method: str, tmp_path: Path, *, by_executor: bool) -> None:
    census = Census(tmp_path / "census", 1)
    lender, borrower = marks_in(tmp_path, 2)
    work = wreckage.hold_below_by_executor if by_executor else wreckage.hold_below
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(work, args=(js, census, [lender, borrower], gate.path))
        await_file(borrower)
        kill(pid_in(lender))
        with pytest.raises(LostResult):
            future.result(PATIENCE)
        for timeout in (0, A_LOT):
            with pytest.raises(Blocked):
                js.submit(wreckage.count, args=(census,), timeout=timeout)
        assert census.count() == 1
        gate.open()
        assert js.submit(wreckage.count, args=(census,), timeout=PATIENCE).result(PATIENCE) == 1
        check_slots(js, 1, tmp_path / "slots")
    census.check()


def test_two_never_compute_on_a_slot_that_was_lent_twice(method: str, tmp_path: Path) -> None:
    """The middle of a chain was killed: the first waits until the last has ended."""
    middle_dies(method, tmp_path, by_executor=False)


def test_two_never_compute_on_a_slot_that_executors_lent_twice(method: str, tmp_path: Path) -> None:
    middle_dies(method, tmp_path, by_executor=True)


def middle_dies(method: str, tmp_path: Path, *, by_executor: bool) -> None:
    census = Census(tmp_path / "census", 1)
    marks = marks_in(tmp_path, 3)
    after = tmp_path / "after"
    work = wreckage.hold_below_by_executor if by_executor else wreckage.hold_below
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(work, args=(js, census, marks, gate.path, str(after)))
        await_file(marks[2])
        kill(pid_in(marks[1]))
        assert not future.done(A_LOT)
        assert not after.exists()
        assert census.count() == 1
        gate.open()
        assert future.result(PATIENCE) == "lost"
        assert after.exists()
        check_slots(js, 1, tmp_path / "slots")
    census.check()


def test_the_root_is_killed_and_the_tree_goes_on(method: str, tmp_path: Path) -> None:
    run_program(wreckage.die_above_a_tree, method, str(tmp_path), SLOTS, status=-signal.SIGKILL)
    assert (tmp_path / "finished").exists()
    assert not list(tmp_path.glob("census.*"))


def test_an_executor_finds_what_a_killed_worker_held(method: str, tmp_path: Path) -> None:
    census = Census(tmp_path / "census", 2)
    marks = marks_in(tmp_path, 2)
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js, sharing_executor(js) as executor:
        lost = executor.submit(wreckage.hold_beside, js, census, marks, gate.path)
        await_file(marks[0])
        holding = executor.submit(wreckage.hold, census, str(tmp_path / "next"), gate.path)
        pending = executor.submit(identity, 7)
        kill(pid_in(marks[0]))
        assert isinstance(lost.exception(PATIENCE), LostResult)
        await_file(tmp_path / "next")
        assert census.count() == 2
        assert not pending.done()
        kill(pid_in(marks[1]))
        assert pending.result(PATIENCE) == 7
        gate.open()
        assert holding.result(PATIENCE) == 0
    census.check()


def test_a_forkserver_is_killed(tmp_path: Path) -> None:
    run_program(wreckage.lose_the_forkserver, str(tmp_path))


def test_a_forkserver_is_killed_just_before_it_is_asked(tmp_path: Path) -> None:
    run_program(wreckage.submit_into_the_gap, str(tmp_path))


def test_a_forker_is_killed(tmp_path: Path) -> None:
    """Its workers go on. The executor cannot have another one, for it has a thread by now."""
    run_program(wreckage.lose_the_forker, str(tmp_path))


def test_a_platform_without_ofd_locks(method: str, tmp_path: Path) -> None:
    run_program(wreckage.recover_without_ofd_locks, method, str(tmp_path))


def test_it_is_told_at_debug_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "jobserver")
    census = Census(tmp_path / "census", 2)
    marks = marks_in(tmp_path, 2)
    with Gate(tmp_path) as gate, Jobserver("fork", 2) as js:
        future = js.submit(wreckage.hold_beside, args=(js, census, marks, gate.path))
        await_file(marks[0])
        assert future.wait(PATIENCE, signal=signal.SIGKILL)
        kill(pid_in(marks[1]))
        await_state(pid_in(marks[1]), "Z")
        check_slots(js, 2, tmp_path / "slots")
        assert repr(js) == "Jobserver('fork', tracked=0, slots=2, recovered=1)"
    assert repr(js) == "Jobserver('fork', tracked=0, slots=2, recovered=1)"
    told = [record.getMessage() for record in caplog.records if record.name == "jobserver"]
    assert len(told) == 2
    assert all(re.search(r"\b1\b.* recovered", text) for text in told)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    caplog.clear()
    with Jobserver("fork", 2) as js:
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
    assert not caplog.records
