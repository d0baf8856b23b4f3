"""What the work sees of the process it runs in: what it would see under multiprocessing itself."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import process, util
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from jobserver import Jobserver, LostResult
from tests.processes import run_program
from tests.work import PATIENCE, Gate, await_file, pass_gate, sys_exit, touch


def sight() -> dict[str, object]:
    """What there is to see for whoever asks."""
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return {
        "class": type(me).__name__,
        "name": me.name,
        "daemon": me.daemon,
        "authkey": bytes(me.authkey),
        "depth": len(me._identity),
        "its pid": me.pid == os.getpid(),
        "alive": me.is_alive(),
        "exitcode": me.exitcode,
        "parent's name": parent.name,
        "parent's pid": parent.pid == os.getppid(),
        "parent lives": parent.is_alive(),
        "children": multiprocessing.active_children(),
        "default method": multiprocessing.get_start_method(),
        "main thread": threading.main_thread() is threading.current_thread(),
        "its id": threading.main_thread().native_id == os.getpid(),
        "stdin": sys.stdin.read(),
    }


def tell_sight(pipe: Any) -> None:
    pipe.send(sight())


def test_it_is_what_multiprocessing_shows(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=tell_sight, args=(theirs,), name="Jobserver-worker")
    child.start()
    expected = ours.recv()
    child.join()
    child.close()
    ours.close()
    theirs.close()
    js = Jobserver(method, 1)
    seen = js(sight).result(PATIENCE)
    if method == "forkserver":  # of which both are children, and of which Python tells nothing
        del seen["parent's pid"], expected["parent's pid"]
    assert seen == expected


def its_identity() -> tuple[int, ...]:
    found: tuple[int, ...] = multiprocessing.current_process()._identity
    return found


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_each_has_an_identity_of_its_own(method: str) -> None:
    js = Jobserver(method, 4)
    found: list[tuple[int, ...]] = []

    def submit() -> None:
        found.extend(js(its_identity).result(PATIENCE) for _ in range(5))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 10


def rename_and_nest(js: Jobserver) -> tuple[str, bool]:
    me = multiprocessing.current_process()
    me.name = "renamed"
    me.noted = True  # type: ignore[attr-defined]
    return js(note_of_it).result(PATIENCE)


def note_of_it() -> tuple[str, bool]:
    me = multiprocessing.current_process()
    return me.name, hasattr(me, "noted")


def test_nested_work_is_another_process() -> None:
    """What the work makes of its process object is not the next one's."""
    js = Jobserver("fork", 2)
    assert js(lambda: rename_and_nest(js)).result(PATIENCE) == ("Jobserver-worker", False)


class OwnProcess(multiprocessing.get_context("fork").Process):  # type: ignore[misc]
    def run(self) -> None:
        os.environ["JOBSERVER_TEST"] = "run"
        super().run()


class OwnContext(type(multiprocessing.get_context("fork"))):  # type: ignore[misc]
    Process = OwnProcess


def test_a_contexts_own_process_class_is_used() -> None:
    js = Jobserver(OwnContext(), 1)
    assert js(os.getenv, "JOBSERVER_TEST").result(PATIENCE) == "run"


def test_a_tool_that_wraps_the_bootstrap_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As coverage does, to write what it has measured when a child ends."""
    base: Any = process.BaseProcess
    original = base._bootstrap

    def wrapped(*args: Any, **kwargs: Any) -> object:
        try:
            return original(*args, **kwargs)
        finally:
            touch(tmp_path / "measured")

    js = Jobserver("fork", 1)
    js(os.getpid).result(PATIENCE)
    monkeypatch.setattr(base, "_bootstrap", wrapped)
    js(os.getpid).result(PATIENCE)
    assert (tmp_path / "measured").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [(None, 0), (3, 3), (True, 1), (-1, 255), (256, 0), ("text", 1), (2.0, 1)],
)
def test_the_exit_status_is_multiprocessings(method: str, code: object, status: int) -> None:
    """Of a Jobserver's worker. SystemExit does not end an executor's."""
    js = Jobserver(method, 1)
    with pytest.raises(LostResult) as caught:
        js(sys_exit, code).result(PATIENCE)
    assert caught.value.exitcode == status


def exit_hugely() -> None:
    with Jobserver("fork", 1) as js:
        with pytest.raises(LostResult) as caught:
            js(sys_exit, 1 << 70).result(PATIENCE)
        assert caught.value.exitcode == 0
    sys.stdout.write("end\n")


def test_a_status_that_the_kernel_cannot_have_sets_no_copy_of_the_program_free() -> None:
    assert run_program(exit_hugely).stdout == "end\n"


def interrupt_at_the_fork() -> None:
    """Every child is sent SIGINT when the first of its code runs."""

    def strike() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(after_in_child=strike)
    with Jobserver("fork", 1) as js:
        pids: list[Optional[int]] = []
        for _ in range(3):
            with pytest.raises(LostResult) as caught:
                js(os.getpid).result(PATIENCE)
            pids.append(caught.value.pid)
            assert caught.value.exitcode == 1
        assert len(set(pids)) == 3
        assert "recovered" not in repr(js)
    sys.stdout.write("end\n")


def test_an_interrupt_at_the_fork_sets_no_copy_of_the_program_free() -> None:
    ended = run_program(interrupt_at_the_fork)
    assert ended.stdout == "end\n"
    assert ended.stderr == ""


# What the work leaves


def await_then_touch(awaited: str, mark: str) -> None:
    await_file(awaited)
    touch(mark)


def leave_a_child(method: str, awaited: str, mark: str) -> None:
    context: Any = multiprocessing.get_context(method)
    context.Process(target=await_then_touch, args=(awaited, mark)).start()


def leave_a_daemon(method: str, gate: str) -> int:
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=pass_gate, args=(gate,), daemon=True)
    child.start()
    pid: int = child.pid
    return pid


def leave_a_thread(awaited: str, mark: str) -> None:
    threading.Thread(target=await_then_touch, args=(awaited, mark)).start()


def leave_a_finalizer(mark: str) -> None:
    util.Finalize(None, touch, args=(mark,), exitpriority=0)


def leave_an_exit_function(mark: str) -> None:
    atexit.register(touch, mark)


def leave_a_pool() -> int:
    pool = multiprocessing.get_context("fork").Pool(2)
    return pool.apply(os.getpid)


@pytest.mark.parametrize("leave", [leave_a_child, leave_a_thread])
def test_a_child_and_a_thread_are_waited_for(
    method: str, tmp_path: Path, leave: Callable[..., None]
) -> None:
    js = Jobserver(method, 1)
    awaited, mark = str(tmp_path / "awaited"), str(tmp_path / "mark")
    args = (method, awaited, mark) if leave is leave_a_child else (awaited, mark)
    future = js.submit(leave, args=args)
    assert not future.done(0.1)
    touch(awaited)
    assert future.wait(PATIENCE)
    assert os.path.exists(mark)


def test_a_daemon_is_ended(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        js = Jobserver(method, 1)
        pid = js(leave_a_daemon, method, gate.path).result(PATIENCE)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_finalizer_is_run(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1)
    assert js(leave_a_finalizer, str(tmp_path / "mark")).wait(PATIENCE)
    assert (tmp_path / "mark").exists()


def test_an_exit_function_is_run_as_far_as_multiprocessing_runs_it(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    assert js(leave_an_exit_function, str(tmp_path / "mark")).wait(PATIENCE)
    assert (tmp_path / "mark").exists() == (sys.version_info >= (3, 13))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_pool_is_ended() -> None:
    js = Jobserver("fork", 1)
    pid = js(leave_a_pool).result(PATIENCE)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Registered:
    def __init__(self) -> None:
        self.pid = os.getpid()
        util.register_after_fork(self, Registered.forked)

    def forked(self) -> None:
        self.pid = os.getpid()


def test_what_is_registered_for_forks_is_called() -> None:
    registered = Registered()
    js = Jobserver("fork", 1)
    assert js(lambda: registered.pid == os.getpid()).result(PATIENCE)
