"""Error, exit and crash at every step on the way from `submit` to `result`."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from jobserver import Future, Jobserver, LostResult
from tests import mischief
from tests.mischief import KINDS
from tests.processes import await_blocked, check_slots, pid_of, run_program
from tests.work import PATIENCE, add, await_file, echo, identity

LARGE = 32 * 1024 * 1024  # bytes: no pipe or socket takes them without a reader

Submit = Callable[[Jobserver, str], "Future[Any]"]


def unpickling_the_arguments(js: Jobserver, kind: str) -> Future[Any]:
    return js.submit(mischief.ignore, args=(mischief.StrikesWhenUnpickled(kind),))


def running_preexec(js: Jobserver, kind: str) -> Future[Any]:
    return js.replace_preexec(mischief.strike, kind).submit(identity, args=("value",))


def entering_the_context(js: Jobserver, kind: str) -> Future[Any]:
    return js.replace_preexec(mischief.striking, kind, None).submit(identity, args=("value",))


def leaving_the_context(js: Jobserver, kind: str) -> Future[Any]:
    return js.replace_preexec(mischief.striking, None, kind).submit(identity, args=("value",))


def running(js: Jobserver, kind: str) -> Future[Any]:
    return js.submit(mischief.strike, args=(kind,))


def pickling_the_result(js: Jobserver, kind: str) -> Future[Any]:
    return js.submit(mischief.strike_when_pickled, args=(kind,))


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def check_loss(error: BaseException, kind: str) -> None:
    """How a worker is lost that exits or crashes."""
    assert isinstance(error, LostResult)
    if kind == "exit":
        assert "SystemExit: struck" in shown(error)
    else:
        assert error.exitcode == {"_exit": 3, "crash": -signal.SIGKILL}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [running_preexec, entering_the_context, leaving_the_context, running]
)
def test_while_the_work_runs(method: str, tmp_path: Path, place: Submit, kind: str) -> None:
    with Jobserver(method, 1) as js:
        future = place(js, kind)
        with pytest.raises((ValueError, LostResult)) as caught:
            future.result(PATIENCE)
        if kind == "error":
            assert type(caught.value) is ValueError
            assert "ValueError: struck" in str(caught.value.__cause__)
        else:
            check_loss(caught.value, kind)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("kind", KINDS)
def test_while_the_arguments_are_unpickled(method: str, tmp_path: Path, kind: str) -> None:
    with Jobserver(method, 1) as js:
        future = unpickling_the_arguments(js, kind)
        if method == "fork":  # where nothing is pickled
            assert future.result(PATIENCE) == "ignored"
        else:
            with pytest.raises((ValueError, RuntimeError, LostResult)) as caught:
                future.result(PATIENCE)
            if kind == "error":
                assert "ValueError: struck" in shown(caught.value)
            else:
                check_loss(caught.value, kind)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("kind", KINDS)
def test_while_the_result_is_pickled(method: str, tmp_path: Path, kind: str) -> None:
    with Jobserver(method, 1) as js:
        future = pickling_the_result(js, kind)
        with pytest.raises((RuntimeError, LostResult)) as caught:
            future.result(PATIENCE)
        if kind == "error":
            assert isinstance(caught.value, RuntimeError)
            assert "not picklable" in str(caught.value)
            assert "StrikesWhenPickled" in str(caught.value)
            assert "ValueError: struck" in shown(caught.value)
        elif kind == "exit":  # a loss, or one more way of not being picklable
            assert "SystemExit" in shown(caught.value)
        else:
            check_loss(caught.value, kind)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("kind", KINDS)
def test_while_the_result_is_sent(method: str, tmp_path: Path, kind: str) -> None:
    """Half a result is none: what was sent of it is not taken for an answer."""
    with Jobserver(method, 2) as js:
        mark = tmp_path / "mark"
        future = js.submit(mischief.send_and_strike, args=(str(mark), kind, LARGE))
        await_file(mark)
        pid = pid_of(future)
        await_blocked(pid)
        os.kill(pid, signal.SIGUSR1)
        with pytest.raises((RuntimeError, LostResult)) as caught:
            future.result(PATIENCE)
        if kind in {"_exit", "crash"}:
            check_loss(caught.value, kind)
        check_slots(js, 2, tmp_path / "slots")


def test_when_there_is_no_channel_to_send_on(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.close_all)
        with pytest.raises(LostResult):
            future.result(PATIENCE)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("kind", ["error", "exit"])
def test_while_the_result_is_unpickled(method: str, tmp_path: Path, kind: str) -> None:
    with Jobserver(method, 1) as js:
        future = js.submit(mischief.strike_when_unpickled, args=(kind,))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not reconstructable") as caught:
                future.result(PATIENCE)
            cause = ValueError("struck") if kind == "error" else SystemExit("struck")
            assert repr(cause) in str(caught.value)
        check_slots(js, 1, tmp_path / "slots")


@pytest.mark.parametrize("kind", ["error", "exit"])
def test_while_the_arguments_are_pickled(method: str, tmp_path: Path, kind: str) -> None:
    with Jobserver(method, 1) as js:
        strikes = mischief.StrikesWhenPickled(kind)
        for _ in range(2):
            if method == "fork":
                assert js.submit(mischief.ignore, args=(strikes,)).result(PATIENCE) == "ignored"
            elif kind == "error":
                with pytest.raises(TypeError, match="not picklable") as caught:
                    js.submit(mischief.ignore, args=(strikes,))
                assert method in str(caught.value)
                assert isinstance(caught.value.__cause__, ValueError)
            else:
                # An exit is the caller's own, or one more way of not being picklable.
                with pytest.raises((SystemExit, TypeError)):
                    js.submit(mischief.ignore, args=(strikes,))
        check_slots(js, 1, tmp_path / "slots")


def crash_pickling(method: str) -> None:
    with Jobserver(method, 2) as js:
        future = js.submit(identity, args=("value",))
        js.submit(identity, args=(mischief.StrikesWhenPickled("crash"),))
        future.wait()


def crash_unpickling(method: str) -> None:
    with Jobserver(method, 2) as js:
        other = js.submit(identity, args=("value",))
        js.submit(mischief.strike_when_unpickled, args=("crash",)).result()
        other.wait()


@pytest.mark.parametrize("program", [crash_pickling, crash_unpickling])
def test_a_crash_in_the_parent_leaves_nothing_running(
    method: str, program: Callable[[str], None]
) -> None:
    if method == "fork" and program is crash_pickling:
        return  # nothing is pickled, so nothing crashes
    run_program(program, method, status=-signal.SIGKILL)


@pytest.mark.parametrize("name", ["self", "fn", "args", "kwargs", "consume", "timeout", "callback"])
def test_keywords_named_like_ours_reach_the_work(method: str, name: str) -> None:
    with Jobserver(method, 2) as js:
        called = js(echo, 1, **{name: 2})
        submitted = js.submit(echo, args=(1,), kwargs={name: 2})
        prepared = js.replace_preexec(mischief.ignore_all, **{name: 2}).submit(echo)
        assert called.result(PATIENCE) == ((1,), {name: 2})
        assert submitted.result(PATIENCE) == ((1,), {name: 2})
        assert prepared.result(PATIENCE) == ((), {})


def descriptors() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def run_out_of_descriptors(method: str, directory: str) -> None:
    """Lower the limit step by step: each submission fails cleanly, or works."""
    with Jobserver(method, 2) as js:
        # What multiprocessing opens once and keeps is opened now.
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = descriptors()
        failed, worked = 0, 0
        for spare in range(40):
            # With every number below the limit taken but for `spare` of them.
            taken: list[int] = []
            limit = max(int(fd) for fd in before) + 40
            while len(taken) + len(before) + spare < limit:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            future: Optional[Future[int]] = None
            error: Optional[OSError] = None
            try:
                future = js.submit(add, args=(1, 2), timeout=PATIENCE)
            except OSError as caught:
                error = caught
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for fd in taken:
                    os.close(fd)
            if future is None:
                assert error is not None
                assert error.errno == errno.EMFILE, error
                failed += 1
            else:
                worked += 1
                # The worker may have met the limit too, where it inherits one.
                assert future.wait(PATIENCE)
            assert descriptors() == before, f"spare {spare}: {before ^ descriptors()}"
        check_slots(js, 2, Path(directory) / "slots")
    sys.stdout.write(f"{failed} {worked}")


def test_running_out_of_descriptors(method: str, tmp_path: Path) -> None:
    done = run_program(run_out_of_descriptors, method, str(tmp_path))
    failed, worked = map(int, done.stdout.split())
    assert failed > 0
    assert worked > 0
