"""The whole program forks while Futures run: the child neither waits for nor disturbs them."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

import pytest

from jobserver import Blocked, CallbackRaised, Future, Jobserver, forks
from jobserver.forker import Forker
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
            with refused():
                future.when_done(print)
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


def test_a_worker_cannot_go_on_with_its_parents_map(tmp_path: Path) -> None:
    with Gate(tmp_path) as gate, Jobserver("fork", 2) as js:
        results = js.map(pass_gate, [(gate.path, 1), (gate.path, 2)])
        asking = js.submit(lambda: next(results), consume=0)
        with refused():
            asking.result(PATIENCE)
        gate.open()
        assert list(results) == [1, 2]


class Loading:
    """In the process that made it, its loading is held up; elsewhere it is not."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def load(self) -> str:
        if os.getpid() == self.pid:
            self.begun.set()
            assert self.go_on.wait(PATIENCE)
        return "loaded"


loading = Loading()


def load_it() -> str:
    return loading.load()


class LoadsIt:
    def __reduce__(self) -> tuple[object, ...]:
        return load_it, ()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_result_that_another_thread_was_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """That thread is not there, nor ever to let go of its lock."""
    monkeypatch.setattr(f"{__name__}.loading", Loading())
    with Jobserver("fork", 2) as js:
        future: Future[Any] = js(LoadsIt)
        assert future.wait(PATIENCE)
        thread = threading.Thread(target=future.result)
        thread.start()
        assert loading.begun.wait(PATIENCE)
        try:
            in_forked_child(future.result)
            asking: Future[Any] = js(future.result)
            assert asking.wait(PATIENCE)
            assert asking.result() == "loaded"
        finally:
            loading.go_on.set()
            thread.join()


def test_callbacks_that_are_left_are_the_parents() -> None:
    seen: list[int] = []
    with Jobserver("fork", 2) as js:
        future = js(getpid)
        future.when_done(raise_value_error, "told")
        future.when_done(lambda: seen.append(os.getpid()))
        with pytest.raises(CallbackRaised):
            future.wait(PATIENCE)

        def check() -> None:
            assert future.done()
            assert seen == []
            future.when_done(seen.append, 0)
            assert seen == [0]

        in_forked_child(check)
        assert future.done()
        assert seen == [os.getpid()]


class Reset:
    """Told of forks as what is inherited is; takes its time, or is interrupted."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.interrupts = 0
        self.done = False
        forks.reset_in_children(self)

    def after_fork(self) -> None:
        self.begun.set()
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        self.go_on.wait(PATIENCE)
        self.done = True


def test_threads_of_a_worker_wait_for_what_it_inherited_to_be_reset() -> None:
    reset = Reset()
    seen: list[bool] = []

    def look() -> None:
        forks.catch_up()
        seen.append(reset.done)

    def check() -> list[bool]:
        threads = [threading.Thread(target=look) for _ in range(2)]
        threads[0].start()
        assert reset.begun.wait(PATIENCE)
        threads[1].start()
        threads[1].join(0.1)  # long enough for it to look, were it not held up
        reset.go_on.set()
        for thread in threads:
            thread.join()
        return seen

    with Jobserver("fork", 1) as js:
        assert js(check).result(PATIENCE) == [True, True]


def test_an_interrupted_reset_is_not_taken_for_done() -> None:
    reset = Reset()
    reset.go_on.set()
    reset.interrupts = 1

    def check() -> bool:
        with pytest.raises(KeyboardInterrupt):
            forks.catch_up()
        forks.catch_up()
        return reset.done

    with Jobserver("fork", 1) as js:
        assert js(check).result(PATIENCE)


def inodes_of(pid: int) -> set[int]:
    found: set[int] = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
    return found


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "opener"), [(os, "pipe"), (socket, "socketpair")], ids=["pipe", "socketpair"]
)
def test_a_child_forked_beside_an_opening_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, opener: str
) -> None:
    """Another thread forks after the kernel has opened and before anybody has noted it."""
    children: list[int] = []
    waiting = threading.Event()
    look, ready = os.pipe()

    def fork() -> None:
        waiting.set()
        pid = os.fork()
        if pid == 0:
            os.write(ready, b".")
            signal.pause()
        children.append(pid)

    thread = threading.Thread(target=fork)
    opened: list[int] = []

    def open_and_fork(*args: Any) -> tuple[Any, Any]:
        ends: tuple[Any, Any] = original(*args)
        opened.extend(os.stat(end if isinstance(end, int) else end.fileno()).st_ino for end in ends)
        thread.start()
        assert waiting.wait(PATIENCE)
        thread.join(0.2)  # long enough for it to fork, were it not held up
        return ends

    original = getattr(module, opener)
    monkeypatch.setattr(module, opener, open_and_fork)
    forker = None
    ends: tuple[int, ...] = ()
    if module is os:
        ends = forks.pipe()
    else:
        forker = Forker(None)
    monkeypatch.undo()
    thread.join(PATIENCE)
    os.read(look, 1)
    try:
        assert opened
        assert not inodes_of(children[0]) & set(opened)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        for fd in ends:
            forks.close(fd)
        if forker is not None:
            forker.close()
        os.close(look)
        os.close(ready)


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


def used_up(directory: Path) -> Jobserver:
    """One that has had to wait for a slot, and has what it keeps for the next."""
    js = Jobserver("fork", 1)
    with Gate(directory) as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0.001)
        gate.open()
        future.result(PATIENCE)
    return js


def make_garbage(directory: str) -> None:
    gc.set_threshold(0)
    for _ in range(8):
        cycle: list[object] = [used_up(Path(directory))]
        cycle.append(cycle)


def fork_amid_garbage(directory: str) -> None:
    """The collector would run at once in the child, before anything is reset there."""
    make_garbage(directory)
    gc.set_threshold(1)
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(not gc.isenabled())
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
    assert gc.isenabled()
    gc.collect()


def test_garbage_is_collected_in_the_child_only_when_all_is_reset(tmp_path: Path) -> None:
    done = run_program(fork_amid_garbage, str(tmp_path))
    assert done.stderr == ""


def collect_in_a_worker(directory: str) -> None:
    make_garbage(directory)
    with Jobserver("fork", 1) as js:
        js.submit(gc.collect).result(PATIENCE)
    gc.collect()


def test_what_a_worker_collects_is_not_what_it_came_with(tmp_path: Path) -> None:
    done = run_program(collect_in_a_worker, str(tmp_path))
    assert done.stderr == ""
