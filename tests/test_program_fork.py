"""The whole program forks while Futures run: the child neither waits for nor disturbs them."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from jobserver import Blocked, Future, Jobserver
from tests.processes import await_state, check_slots, pid_of, run_program
from tests.work import (
    PATIENCE,
    Gate,
    add,
    die,
    getpid,
    identity,
    pass_gate,
    raise_value_error,
)


def in_forked_child(check: Callable[[], object]) -> None:
    """Fork, run `check` in the child, and fail as it fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of the test runner may go on in the child, however this ends.
        try:
            os.close(read)
            signal.alarm(int(2 * PATIENCE))
            try:
                check()
                answer = "fine"
            except BaseException:
                answer = traceback.format_exc()
            os.write(write, answer.encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as reader:
        answer = reader.read()
    os.waitpid(pid, 0)
    assert answer == "fine", answer


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(RuntimeError) as caught:
        yield
    # It says why, and is neither the loss of the work nor a matter of this library's inside.
    assert type(caught.value) is RuntimeError
    assert "process" in str(caught.value) or "fork" in str(caught.value)


def test_the_child_cannot_wait(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))

        def check() -> None:
            for timeout in (None, 0, 0.1):
                with refused():
                    future.wait(timeout)
                with refused():
                    future.result(timeout)
                with refused():
                    future.done(timeout)
            assert repr(future).startswith("Future(")

        in_forked_child(check)
        assert not future.done()
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_the_child_cannot_signal(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))

        def check() -> None:
            with refused():
                future.wait(0, signal=signal.SIGKILL)

        in_forked_child(check)
        assert not future.done(0.1)
        gate.open()
        assert future.result(PATIENCE) == "value"


def test_what_was_done_still_answers(method: str) -> None:
    with Jobserver(method, 2) as js:
        returned = js.submit(identity, args=("value",))
        failed = js.submit(raise_value_error, args=("told",))
        assert returned.wait(PATIENCE)
        assert failed.wait(PATIENCE)

        def check() -> None:
            for future in (returned, failed):
                assert future.done() is True
                assert future.wait() is True
                assert repr(future) == "Future(done, callbacks=0, pid=None)"
            assert returned.result() == "value"
            with pytest.raises(ValueError, match="told"):
                failed.result()

        in_forked_child(check)
        assert returned.result() == "value"


@pytest.mark.parametrize("work", [getpid, die])
def test_what_had_ended_unobserved_is_the_parents(
    method: str, work: Callable[[], Optional[int]]
) -> None:
    """The result lies in the channel: the child leaves it there."""
    with Jobserver(method, 2) as js:
        future = js.submit(work)
        pid = pid_of(future)
        await_state(pid, "Z")

        def check() -> None:
            js.reclaim_resources()
            with refused():
                future.wait(0)

        in_forked_child(check)
        assert future.wait(PATIENCE)
        if work is getpid:
            assert future.result() == pid


def test_the_child_may_forget_them(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate:
        js = Jobserver(method, 2)
        futures = [js.submit(pass_gate, args=(gate.path, "value"))]
        handles = [js]
        del js

        def check() -> None:
            # They are the parent's to wait for, so there is nothing to warn of either.
            futures.clear()
            handles.clear()
            gc.collect()

        in_forked_child(check)
        assert not futures[0].done()
        gate.open()
        assert futures[0].result(PATIENCE) == "value"
        check_slots(handles[0], 2, tmp_path / "slots")
        futures.clear()
        handles.clear()


def test_the_childs_callbacks_are_not_the_parents(method: str, tmp_path: Path) -> None:
    seen: list[str] = []
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        future.when_done(seen.append, "parent")

        def check() -> None:
            js.reclaim_resources()
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
            js.reclaim_resources()
            assert seen == []

        in_forked_child(check)
        gate.open()
        assert future.result(PATIENCE) == "value"
        assert seen == ["parent"]


def test_an_inherited_handle_works_as_the_childs_own(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))

        def check() -> None:
            assert "tracked=0" in repr(js)
            mine = js.submit(add, args=(1, 2), timeout=PATIENCE)
            assert "tracked=1" in repr(js)
            assert mine.result(PATIENCE) == 3
            assert list(js.map(abs, [(-1,), (-2,), (-3,)])) == [1, 2, 3]
            with js:
                assert js(identity, "again").result(PATIENCE) == "again"

        in_forked_child(check)
        assert "tracked=1" in repr(js)
        # The child has given back what it took, and closed nothing of ours.
        assert js.submit(add, args=(3, 4), timeout=0).result(PATIENCE) == 7
        gate.open()
        assert future.result(PATIENCE) == "value"
        check_slots(js, 2, tmp_path / "slots")


def test_the_slots_are_shared_with_the_child(method: str, tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver(method, 1) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))

        def check() -> None:
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0)
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0.1)
            assert js.submit(add, args=(1, 2), consume=0).result(PATIENCE) == 3

        in_forked_child(check)
        gate.open()
        assert future.result(PATIENCE) == "value"
        check_slots(js, 1, tmp_path / "slots")


def test_closing_in_the_child_is_the_childs_own(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 2)

    def check() -> None:
        with js:
            assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            js.submit(add, args=(1, 2))

    in_forked_child(check)
    with js:
        check_slots(js, 2, tmp_path / "slots")


def test_closed_before_is_closed_in_the_child(method: str) -> None:
    with Jobserver(method, 2) as js:
        assert js.submit(add, args=(1, 2)).result(PATIENCE) == 3

    def check() -> None:
        with pytest.raises(RuntimeError, match="Jobserver is closed"):
            js.submit(add, args=(1, 2))

    in_forked_child(check)


def test_a_worker_cannot_wait_for_its_parents_future(tmp_path: Path) -> None:
    """A forked worker is a forked child too, and a closure takes a Future along."""
    with Gate(tmp_path) as gate, Jobserver("fork", 2) as js:
        future = js.submit(pass_gate, args=(gate.path, "value"))
        asking: Future[Any] = js.submit(future.result, args=(PATIENCE,))
        with refused():
            asking.result(PATIENCE)
        gate.open()
        assert future.result(PATIENCE) == "value"


def fork_and_end(method: str, directory: str) -> None:
    """The child ends as programs do, with all that it inherited; the parent goes on."""
    gate = Gate(Path(directory))
    js = Jobserver(method, 2)
    future = js.submit(pass_gate, args=(gate.path, "value"))
    pid = os.fork()
    if pid == 0:
        return
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE) == "value"
    check_slots(js, 2, Path(directory) / "slots")
    gate.__exit__(None, None, None)


def test_the_childs_end_disturbs_nothing(method: str, tmp_path: Path) -> None:
    done = run_program(fork_and_end, method, str(tmp_path))
    assert "Error" not in done.stderr
