"""Workers that serve many submissions: the promises of fresh ones, and who is used again."""

from __future__ import annotations

import errno
import gc
import math
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from jobserver import Blocked, Future, Jobserver, JobserverExecutor, LostResult
from jobserver.crew import Crew
from jobserver.engine import Engine
from jobserver.poller import KernelPoller
from tests import errands
from tests.processes import await_state, check_slots, pid_of, run_program
from tests.work import (
    PATIENCE,
    Gate,
    add,
    await_file,
    blob,
    getpid,
    identity,
    os_exit,
    pass_gate,
    raise_value_error,
    sys_exit,
    touch_and_pass_gate,
)

NAME = "JOBSERVER_TEST"


def one_after_another(js: Jobserver, count: int) -> list[int]:
    """The processes in which submissions run, each after the one before."""
    return [js(getpid).result(PATIENCE) for _ in range(count)]


def stop_an_idle_worker(js: Jobserver) -> int:
    """It gets the next work, and does not begin it."""
    (pid,) = one_after_another(js, 1)
    os.kill(pid, signal.SIGSTOP)
    await_state(pid, "T")
    return pid


# Who serves


def test_a_worker_serves_one_submission_after_another(method: str) -> None:
    with Jobserver(method, 2) as js:
        pids = one_after_another(js.replace_workers(), 5)
        assert len(set(pids)) == 1
        assert pids[0] != os.getpid()


def test_max_tasks_bounds_how_many(method: str) -> None:
    with Jobserver(method, 1) as js:
        pids = one_after_another(js.replace_workers(max_tasks=2), 5)
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_a_fresh_one_each_unless_told(method: str) -> None:
    with Jobserver(method, 1) as js:
        assert len(set(one_after_another(js, 3))) == 3
        assert len(set(one_after_another(js.replace_workers(max_tasks=1), 3))) == 3


def test_a_new_handle_leaves_the_old_one_as_it_was() -> None:
    with Jobserver("fork", 1) as js:
        reusing = js.replace_workers()
        assert len(set(one_after_another(js, 2))) == 2
        assert len(set(one_after_another(reusing, 2))) == 1
        assert len(set(one_after_another(reusing.replace_workers(1), 2))) == 2


def test_a_fresh_one_under_fork_runs_what_cannot_be_pickled() -> None:
    with Jobserver("fork", 1) as js:
        assert js.replace_workers(max_tasks=1)(lambda: 7).result(PATIENCE) == 7
        with pytest.raises(TypeError, match="not picklable"):
            js.replace_workers(max_tasks=2)(lambda: 7)


def test_handles_with_other_settings_share_the_workers(method: str) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        others = [
            js.revise_env({NAME: "x"}),
            js.replace_preexec(nothing),
            js.replace_sleep(nothing),
        ]
        pids = [pid for handle in [js, *others] for pid in one_after_another(handle, 1)]
        assert len(set(pids)) == 1


def nothing() -> None:
    pass


def test_one_that_has_served_too_often_for_a_handle_serves_others(method: str) -> None:
    with Jobserver(method, 1) as js:
        many, few = js.replace_workers(), js.replace_workers(max_tasks=2)
        first = one_after_another(many, 2)
        second = one_after_another(few, 1)
        assert second[0] not in first
        assert one_after_another(many, 1)[0] in (first[0], second[0])


def test_as_many_at_once_as_there_are_slots(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as base:
        js = base.replace_workers()
        futures = [js.submit(pass_gate, args=(gate.path,), timeout=0) for _ in range(2)]
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0)
        pids = {pid_of(future) for future in futures}
        gate.open()
        for future in futures:
            assert future.wait(PATIENCE)
        assert {*one_after_another(js, 4)} <= pids
        check_slots(js, 2, tmp_path / "slots")


@pytest.mark.parametrize(
    ("max_tasks", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)]
)
def test_bad_max_tasks(max_tasks: Any, error: type[Exception]) -> None:
    with (
        Jobserver("fork", 1) as js,
        pytest.raises(error, match=r"max_tasks.*not " + str(max_tasks)),
    ):
        js.replace_workers(max_tasks=max_tasks)


@pytest.mark.parametrize(
    ("idle", "error"),
    [
        (-1, ValueError),
        (math.inf, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_bad_idle(idle: Any, error: type[Exception]) -> None:
    with Jobserver("fork", 1) as js, pytest.raises(error, match=f"idle.*not {idle}"):
        js.replace_workers(idle=idle)


# What each submission has for itself


def test_env_is_undone(method: str) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        set_, unset = js.revise_env({NAME: "x"}), js.revise_env({"PATH": None})
        path = os.environ["PATH"]
        assert set_(os.getenv, NAME).result(PATIENCE) == "x"
        assert js(os.getenv, NAME).result(PATIENCE) is None
        assert unset(os.getenv, "PATH").result(PATIENCE) is None
        assert js(os.getenv, "PATH").result(PATIENCE) == path
        with pytest.raises(ValueError, match="as told"):
            set_(raise_value_error, "as told").result(PATIENCE)
        assert js(os.getenv, NAME).result(PATIENCE) is None


def test_preexec_runs_around_every_submission(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers().replace_preexec(append_line, str(tmp_path / "lines"))
        assert len(set(one_after_another(js, 3))) == 1
        assert (tmp_path / "lines").read_text() == "line\n" * 3


def append_line(path: str) -> None:
    with open(path, "a") as stream:
        stream.write("line\n")


def test_an_error_is_its_own_submissions(method: str) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        failing = js(raise_value_error, "as told")
        with pytest.raises(ValueError, match="as told") as caught:
            failing.result(PATIENCE)
        assert "raise_value_error" in str(caught.value.__cause__)
        assert js(add, 1, 2).result(PATIENCE) == 3


def test_callbacks_that_are_left_over_do_not_run_in_later_work(method: str) -> None:
    with Jobserver(method, 2) as base:
        js = base.replace_workers()
        first = js(errands.submit_and_forget_a_callback, js).result(PATIENCE)
        # Whatever this submits would run them, and raise CallbackRaised.
        assert js(errands.submit_add, js, 1, 2).result(PATIENCE) == 3
        assert one_after_another(js, 1) == [first]


def test_large_work_and_large_results(method: str) -> None:
    size = 3 << 20
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        for _ in range(2):
            assert js(identity, blob(size)).result(PATIENCE) == blob(size)
        assert len(set(one_after_another(js, 2))) == 1


def test_descriptors_among_the_arguments(method: str) -> None:
    context = multiprocessing.get_context(method)
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        for number in range(3):
            ours, theirs = context.Pipe()
            with ours, theirs:
                future = js(send_through, theirs, number)
                assert ours.poll(PATIENCE)
                assert ours.recv() == number
                assert future.result(PATIENCE) is None
        assert js(count_descriptors).result(PATIENCE) == js(count_descriptors).result(PATIENCE)


def send_through(connection: Any, value: object, *_: object) -> None:
    connection.send(value)
    connection.close()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_cannot_be_pickled_is_refused(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        for _ in range(2):
            with pytest.raises(TypeError, match=f"not picklable.*{method!r}.*reused"):
                js(lambda: None)
            assert js(add, 1, 2).result(PATIENCE) == 3
        check_slots(js, 1, tmp_path / "slots")


# Deaths


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_is_killed_at_work(method: str, signum: signal.Signals, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as base:
        js = base.replace_workers()
        one_after_another(js, 2)
        mark = tmp_path / "mark"
        doomed = js(touch_and_pass_gate, str(mark), gate.path)
        other = js(pass_gate, gate.path, 7)
        await_file(mark)
        pid = pid_of(doomed)
        assert doomed.wait(PATIENCE, signal=signum)
        with pytest.raises(LostResult) as caught:
            doomed.result()
        assert (caught.value.pid, caught.value.exitcode) == (pid, -signum)
        gate.open()
        assert other.result(PATIENCE) == 7
        assert pid not in one_after_another(js, 3)
        check_slots(js, 2, tmp_path / "slots")


@pytest.mark.parametrize(("leave", "status"), [(os_exit, 3), (sys_exit, 4)])
def test_work_ends_its_worker(method: str, leave: Callable[[int], object], status: int) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        before = one_after_another(js, 1)
        with pytest.raises(LostResult) as caught:
            js(leave, status).result(PATIENCE)
        assert caught.value.exitcode == status
        assert one_after_another(js, 1) != before


def test_a_worker_that_was_sent_a_signal_is_not_used_again(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as base:
        js = base.replace_workers()
        future = js(pass_gate, gate.path, 7)
        pid = pid_of(future)
        assert not future.wait(0, signal=signal.SIGCONT)
        gate.open()
        assert future.result(PATIENCE) == 7
        await_state(pid, "Z")
        assert pid not in one_after_another(js, 2)


def test_an_idle_worker_is_killed(method: str, tmp_path: Path) -> None:
    """Nobody's result is lost."""
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        for _ in range(3):
            (pid,) = set(one_after_another(js, 2))
            os.kill(pid, signal.SIGKILL)
            assert js(add, 1, 2).result(PATIENCE) == 3
            await_state(pid, "Z")
        check_slots(js, 1, tmp_path / "slots")


def test_a_worker_is_killed_with_work_that_it_has_not_begun(method: str, tmp_path: Path) -> None:
    """Another one has the work, once."""
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        pid = stop_an_idle_worker(js)
        future = js(append_and_getpid, str(tmp_path / "lines"))
        assert pid_of(future) == pid
        os.kill(pid, signal.SIGKILL)
        assert future.result(PATIENCE) != pid
        assert (tmp_path / "lines").read_text() == "line\n"
        check_slots(js, 1, tmp_path / "slots")


def append_and_getpid(path: str) -> int:
    append_line(path)
    return os.getpid()


def test_descriptors_are_sent_again_with_the_work(method: str) -> None:
    context = multiprocessing.get_context(method)
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        pid = stop_an_idle_worker(js)
        ours, theirs = context.Pipe()
        with ours:
            with theirs:
                future = js(send_through, theirs, 7, blob(1 << 17))
            os.kill(pid, signal.SIGKILL)
            assert future.result(PATIENCE) is None
            assert ours.poll(PATIENCE)
            assert ours.recv() == 7


def test_work_that_was_cancelled_before_it_began_does_not_run(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        stop_an_idle_worker(js)
        future = js(append_and_getpid, str(tmp_path / "lines"))
        assert future.wait(PATIENCE, signal=signal.SIGKILL)
        with pytest.raises(LostResult):
            future.result()
        assert not (tmp_path / "lines").exists()
        check_slots(js, 1, tmp_path / "slots")


def test_work_that_leaves_a_process_behind(method: str, tmp_path: Path) -> None:
    """That has the result channel, so another worker tells of what comes next."""
    with Gate(tmp_path) as gate, Jobserver(method, 1) as base:
        js = base.replace_workers()
        before = one_after_another(js, 2)
        left = js(fork_and_leave, gate.path).result(PATIENCE)
        try:
            pids = one_after_another(js, 2)
            assert pids[0] == pids[1] != before[0]
        finally:
            gate.open()
            await_state(left, "Z")


def fork_and_leave(path: str) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            pass_gate(path)
        finally:
            os._exit(0)
    return pid


# Executors


def test_an_executor_that_owns_its_jobserver_reuses_workers(method: str) -> None:
    with JobserverExecutor(1, multiprocessing.get_context(method)) as executor:
        assert len({executor.submit(getpid).result(PATIENCE) for _ in range(3)}) == 1


def test_an_executor_does_as_the_handle_says(method: str) -> None:
    with Jobserver(method, 1) as js:
        for handle, processes in ((js, 3), (js.replace_workers(), 1)):
            with JobserverExecutor(handle) as executor:
                pids = {executor.submit(getpid).result(PATIENCE) for _ in range(3)}
            assert len(pids) == processes


def test_an_initializer_runs_once_in_a_worker(method: str, tmp_path: Path) -> None:
    path, context = tmp_path / "lines", multiprocessing.get_context(method)
    with JobserverExecutor(1, context, append_line, (str(path),)) as executor:
        for _ in range(3):
            executor.submit(getpid).result(PATIENCE)
    assert path.read_text() == "line\n"


# Leaving


def test_a_worker_leaves_when_it_has_been_idle(method: str) -> None:
    with Jobserver(method, 1) as js:
        (pid,) = one_after_another(js.replace_workers(idle=0.05), 1)
        await_state(pid, "Z")
        # Its parent has seen it by the next call.
        assert one_after_another(js.replace_workers(), 1) != [pid]
        assert not os.path.exists(f"/proc/{pid}")


def test_work_handed_over_while_the_worker_leaves(method: str, tmp_path: Path) -> None:
    """With no idle time at all each worker is about to leave."""
    count = {"fork": 200, "spawn": 10, "forkserver": 30}[method]
    path = str(tmp_path / "lines")
    with Jobserver(method, 2) as base:
        js = base.replace_workers(idle=0)
        futures = [js(append_and_getpid, path) for _ in range(count)]
        assert all(future.result(PATIENCE) for future in futures)
        assert (tmp_path / "lines").read_text() == "line\n" * count
        check_slots(js, 2, tmp_path / "slots")


def test_closing_waits_for_those_that_are_idle(method: str) -> None:
    with Jobserver(method, 2) as js:
        pids = one_after_another(js.replace_workers(), 2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_closing_does_not_wait_for_one_that_is_stopped() -> None:
    with Jobserver("fork", 2) as js:
        (pid,) = one_after_another(js.replace_workers(), 1)
        os.kill(pid, signal.SIGSTOP)
        await_state(pid, "T")
    assert not os.path.exists(f"/proc/{pid}")


def test_running_work_outlives_the_close(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        with Jobserver(method, 1) as js:
            future = js.replace_workers()(pass_gate, gate.path, 7)
        assert not future.done()
        pid = pid_of(future)
        gate.open()
        assert future.result(PATIENCE) == 7
        assert not os.path.exists(f"/proc/{pid}")


def test_dropping_the_last_handle_ends_them(method: str) -> None:
    js = Jobserver(method, 1)
    (pid,) = one_after_another(js.replace_workers(), 1)
    del js
    gc.collect()
    assert not os.path.exists(f"/proc/{pid}")


def test_they_end_with_their_parent(method: str, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    run_program(leave_idle_workers, method, str(path), status=-signal.SIGKILL)
    for pid in map(int, path.read_text().split()):
        await_state(pid, "Z")


def leave_idle_workers(method: str, path: str) -> None:
    js = Jobserver(method, 2).replace_workers(idle=3600)
    futures = [js(getpid) for _ in range(2)]
    pids = [future.result(PATIENCE) for future in futures]
    Path(path).write_text(" ".join(map(str, pids)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_they_end_with_the_interpreter(method: str, tmp_path: Path) -> None:
    run_program(exit_with_idle_workers, method, str(tmp_path / "pids"))
    for pid in (tmp_path / "pids").read_text().split():
        assert not os.path.exists(f"/proc/{pid}")


kept: list[Jobserver] = []


def exit_with_idle_workers(method: str, path: str) -> None:
    kept.append(Jobserver(method, 2).replace_workers(idle=3600))
    Path(path).write_text(str(kept[0](getpid).result(PATIENCE)))


def test_a_forked_child_does_not_disturb_them() -> None:
    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        before = one_after_another(js, 1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                mine = one_after_another(js, 2)
                status = 0 if mine[0] == mine[1] != before[0] else 2
                del js, base
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert one_after_another(js, 1) == before


# Nesting


def test_a_handle_arrives_as_the_workers_own(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 2) as base:
        js = base.replace_workers()
        for _ in range(3):
            assert js(errands.submit_add, js, 1, 2).result(PATIENCE) == 3
        check_slots(js, 2, tmp_path / "slots")


def test_workers_of_workers_serve_again(method: str) -> None:
    with Jobserver(method, 2) as base:
        js = base.replace_workers()
        nested = [js(getpid_of_nested, js).result(PATIENCE) for _ in range(3)]
        assert len(set(nested)) == 1
        assert os.getpid() not in nested[0]


def getpid_of_nested(js: Jobserver) -> tuple[int, int]:
    return os.getpid(), js(getpid).result(PATIENCE)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_full_tree_does_not_stand_still(method: str, slots: int, tmp_path: Path) -> None:
    with Jobserver(method, slots) as base:
        js = base.replace_workers()
        for _ in range(2):
            assert js(tree, js, 3, 2).result(PATIENCE) == 15
        check_slots(js, slots, tmp_path / "slots")


def tree(js: Jobserver, depth: int, width: int) -> int:
    """How many run, this one included."""
    if depth == 0:
        return 1
    futures = [js(tree, js, depth - 1, width) for _ in range(width)]
    return 1 + sum(future.result(PATIENCE) for future in futures)


def test_what_work_has_submitted_is_over_before_it_is_answered(method: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Jobserver(method, 2) as base:
        js = base.replace_workers()
        assert js(submit_and_forget, js, str(mark)).result(PATIENCE) is None
        assert mark.exists()
        check_slots(js, 2, tmp_path / "slots")


def submit_and_forget(js: Jobserver, mark: str) -> None:
    unread.append(js(append_line, mark))


unread: list[Future[None]] = []


def test_two_threads_learn_that_work_has_not_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of them has another worker for it; the other one does nothing."""
    with Jobserver("spawn", 1) as base:
        js = base.replace_workers()
        pid = stop_an_idle_worker(js)
        future = js(append_and_getpid, str(tmp_path / "lines"))
        os.kill(pid, signal.SIGKILL)
        await_state(pid, "Z")
        poll, both, met = KernelPoller.poll, threading.Barrier(2), set[int]()

        def meet(poller: KernelPoller, timeout: Optional[float]) -> Iterable[object]:
            ready = poll(poller, timeout)
            if threading.get_ident() not in met:
                met.add(threading.get_ident())
                both.wait(PATIENCE)
            return ready

        monkeypatch.setattr(KernelPoller, "poll", meet)
        other = threading.Thread(target=js.reclaim_resources)
        other.start()
        js.reclaim_resources()
        other.join()
        assert future.result(PATIENCE) != pid
        assert (tmp_path / "lines").read_text() == "line\n"
        check_slots(js, 1, tmp_path / "slots")


def test_a_forked_child_closes_no_descriptor_of_its_own(tmp_path: Path) -> None:
    """When it drops its parent's Future, whose worker serves."""
    run_program(drop_in_a_fork, str(tmp_path))


def drop_in_a_fork(directory: str) -> None:
    with Gate(Path(directory)) as gate, Jobserver("fork", 1) as base:
        js = base.replace_workers()
        futures = [js(pass_gate, gate.path, 7)]
        pid = os.fork()
        if pid == 0:
            opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
            futures.clear()
            gc.collect()
            os._exit(0 if all(os.path.exists(f"/proc/self/fd/{fd}") for fd in opened) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.open()
        assert futures[0].result(PATIENCE) == 7


def test_work_that_returns_in_a_fork_of_its_worker(method: str) -> None:
    """The first of the two answers is its result; the other one is nobody's."""
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        for _ in range(2):
            assert js(fork_and_return).result(PATIENCE) == 0
            assert js(add, 1, 2).result(PATIENCE) == 3


def fork_and_return() -> int:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return pid


def test_work_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The submission raises, and its worker leaves."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "as told")

    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        (pid,) = one_after_another(js, 1)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "send_fds", refuse)
            with pytest.raises(OSError, match="as told"):
                js(identity, blob(1 << 17))
        await_state(pid, "Z")
        check_slots(js, 1, tmp_path / "slots")
        assert not os.path.exists(f"/proc/{pid}")


def test_a_worker_does_not_keep_every_handle_that_came(method: str) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        counts: list[int] = []
        for _ in range(10):
            with Jobserver(method, 1) as other:
                counts.append(js(count_descriptors_beside, other).result(PATIENCE))
        assert counts[-1] == counts[-2]


def count_descriptors_beside(_: object) -> int:
    return count_descriptors()


def test_news_of_an_answer_that_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread has taken it by then, and the worker is idle: it stays."""
    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        before = one_after_another(js, 2)
        poll, late = KernelPoller.poll, list[object]()

        def tell_again(poller: KernelPoller, timeout: Optional[float]) -> Iterable[object]:
            return [*poll(poller, timeout), *late]

        watch = KernelPoller.watch

        def remember(poller: KernelPoller, fd: int, subject: object) -> None:
            late[:] = [subject]
            watch(poller, fd, subject)

        monkeypatch.setattr(KernelPoller, "watch", remember)
        monkeypatch.setattr(KernelPoller, "poll", tell_again)
        assert one_after_another(js, 3) == [*before, before[0]]


@pytest.mark.filterwarnings("ignore:Finalizing:ResourceWarning")
def test_the_last_handle_is_collected_amid_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a garbage collection can run anywhere."""
    handles = [Jobserver("fork", 1).replace_workers(idle=3600)]
    plain = Engine.attend

    def drop(engine: Engine, *args: Any) -> None:
        handles.clear()
        plain(engine, *args)

    future = handles[0](getpid)
    monkeypatch.setattr(Engine, "attend", drop)
    pid = future.result(PATIENCE)
    handles.clear()
    gc.collect()
    assert not os.path.exists(f"/proc/{pid}")


def test_a_closed_crew_that_hires_once_more_is_not_kept() -> None:
    before = count_crews()
    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        pid = stop_an_idle_worker(js)
        future = js(getpid)
    os.kill(pid, signal.SIGKILL)
    assert future.result(PATIENCE) != pid
    del base, js, future
    assert count_crews() <= before


def count_crews() -> int:
    gc.collect()
    return sum(isinstance(item, Crew) for item in gc.get_objects())
