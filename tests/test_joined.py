"""Inside a jobserver of make's, of which this process is a client."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable

import pytest

from jobserver import (
    Blocked,
    Jobserver,
    JobserverExecutor,
    LostResult,
    NoJobserver,
    forks,
    joined,
    server,
)
from jobserver.cpus import usable_cpus
from jobserver.engine import Engine
from jobserver.make import Fifo
from tests import builds
from tests.builds import STYLES, Build, build, run_recipe
from tests.processes import check_slots, run_program
from tests.work import PATIENCE, Gate, await_file, die, getpid, touch_and_pass_gate

TOKENS = b"abc"  # as some makes have them, each its own
MANY = bytes(range(100, 120))  # more than a pipe has pages: they cannot be spliced


@pytest.mark.parametrize("told", [True, False], ids=["-jN", "-j"])
@pytest.mark.parametrize("style", STYLES)
def test_the_implicit_slot_and_the_tokens_are_used_and_go_back(
    method: str, style: str, told: bool, tmp_path: Path
) -> None:
    with build(tmp_path, style, TOKENS, told=told) as outer:
        with Jobserver(method) as js:
            assert js.slots == (4 if told else None)
            check_slots(js, 4, tmp_path / "marks")
            check_slots(js, 4, tmp_path / "again")
            assert outer.tokens() == TOKENS
        assert outer.tokens() == b""


def test_more_tokens_than_pages(tmp_path: Path) -> None:
    with build(tmp_path, "pipe", MANY) as outer:
        with Jobserver("fork") as js:
            check_slots(js, 21, tmp_path / "marks")
        assert outer.tokens() == MANY


def test_one_at_a_time_uses_no_token(method: str, tmp_path: Path) -> None:
    """The implicit slot first: the rest of the build can have the others."""
    with build(tmp_path, "pipe", TOKENS) as outer, Jobserver(method) as js, Gate(tmp_path) as gate:
        future = js(touch_and_pass_gate, str(tmp_path / "mark"), gate.path)
        await_file(tmp_path / "mark")
        assert outer.tokens() == TOKENS
        gate.open()
        future.result(PATIENCE)


def test_progress_with_a_drained_pool(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "fifo", b"") as outer, Jobserver(method) as js:
        check_slots(js, 1, tmp_path / "marks")
        assert list(js.map(abs, [(number,) for number in range(-5, 0)])) == [5, 4, 3, 2, 1]
        assert js(builds.descend, js, 4).result(PATIENCE) == 4
        with JobserverExecutor(js) as executor:
            assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        assert outer.tokens() == b""


def test_a_token_that_comes_back_wakes_who_waits(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", b"") as outer, Jobserver(method) as js, Gate(tmp_path) as gate:
        first = js(touch_and_pass_gate, str(tmp_path / "1"), gate.path)
        with pytest.raises(Blocked):
            js.submit(getpid, timeout=0)
        os.write(outer.write, b"z")
        second = js.submit(
            touch_and_pass_gate, args=(str(tmp_path / "2"), gate.path), timeout=PATIENCE
        )
        await_file(tmp_path / "2")
        gate.open()
        assert first.wait(PATIENCE)
        assert second.wait(PATIENCE)
        assert outer.tokens() == b"z"


def test_a_process_has_one_implicit_slot(method: str, tmp_path: Path) -> None:
    """However many it makes, of whatever start method, while one of them has work under way."""
    with build(tmp_path, "pipe", b"") as outer, Gate(tmp_path) as gate:
        other = multiprocessing.get_all_start_methods()[0]
        with Jobserver(other), Jobserver.from_environ(method) as js:
            future = js(touch_and_pass_gate, str(tmp_path / "mark"), gate.path)
            await_file(tmp_path / "mark")
            with pytest.raises(Blocked), Jobserver(other) as late:
                late.submit(getpid, timeout=0)
        # All are closed, but not what runs.
        with Jobserver(other) as later:
            with pytest.raises(Blocked):
                later.submit(getpid, timeout=0)
            gate.open()
            assert later.submit(getpid, timeout=PATIENCE).result() != os.getpid()
        assert future.wait(PATIENCE)
        with Jobserver(method) as anew:
            check_slots(anew, 1, tmp_path / "marks")
        assert outer.tokens() == b""


def join_beside_a_submission(directory: str) -> None:
    """One thread joins while another opens a file in a step of the engine that they share."""
    opening, joining = threading.Event(), threading.Event()
    open_file, reopen = forks.open_file, Engine.reopen

    def open_while_joined(path: str, flags: int) -> int:
        opening.set()
        assert joining.wait(PATIENCE)
        return open_file(path, flags)

    def reopen_while_opened(engine: Engine) -> bool:
        joining.set()
        return reopen(engine)

    with build(Path(directory), "pipe", TOKENS), Jobserver("fork") as js:
        patch = pytest.MonkeyPatch()  # to the end of the program
        patch.setattr(forks, "open_file", open_while_joined)
        patch.setattr(Engine, "reopen", reopen_while_opened)
        submitter = threading.Thread(target=js.submit, args=(getpid,))
        submitter.start()
        assert opening.wait(PATIENCE)
        with Jobserver("fork") as other:
            assert other.submit(getpid).result(PATIENCE) != os.getpid()
        submitter.join(PATIENCE)


def test_joining_while_another_thread_submits(tmp_path: Path) -> None:
    run_program(join_beside_a_submission, str(tmp_path))


def test_in_a_worker_the_handle_rules(method: str, tmp_path: Path) -> None:
    """Its slot is one of make's already: it can lend that one, but has no other implicit one."""
    with build(tmp_path, "pipe", b"") as outer, Jobserver(method) as handle:
        # A forkserver may be older than the test, and have none.
        js = handle.revise_env({"MAKEFLAGS": outer.makeflags})
        assert js(builds.join_and_submit, js, method).result(PATIENCE) == ("Blocked", 2)
        assert outer.tokens() == b""


@pytest.mark.parametrize("style", STYLES)
def test_nested_work_draws_on_the_same_tokens(method: str, style: str, tmp_path: Path) -> None:
    with build(tmp_path, style, TOKENS) as outer, Jobserver(method) as js:
        assert js(builds.descend, js, 6).result(PATIENCE) == 6
        assert outer.tokens() == TOKENS


@pytest.mark.parametrize("told", [True, False], ids=["-jN", "-j"])
def test_what_the_killed_had_goes_back(method: str, told: bool, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS, told=told) as outer, Jobserver(method) as js:
        for work, args in (die, ()), (builds.take_and_die, (js,)):
            futures = [js.submit(work, args=args) for _ in range(2)]
            for future in futures:
                with pytest.raises(LostResult):
                    future.result(PATIENCE)
        check_slots(js, 4, tmp_path / "marks")
        assert outer.tokens() == TOKENS


def test_nothing_is_taken_from_make_for_one_who_is_about_to_take(tmp_path: Path) -> None:
    """He has a receipt already, and no token yet: there is one too many of the two for a moment."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    outer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    pool = joined.JoinedPool.join(Fifo(path), 3)
    try:
        os.write(outer, b"ab")
        receipt, place = pool.kernel.open(), pool.kernel.new_place()
        pool.kernel.lock(receipt, place)
        assert pool.audit() == 0
        assert os.read(outer, 3) == b"ab"
        pool.kernel.close(receipt)
    finally:
        pool.close()
        os.close(outer)


def test_what_runs_on_below_the_killed_keeps_its_slots(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer, Jobserver(method) as js, Gate(tmp_path) as gate:
        marks = [str(tmp_path / "1"), str(tmp_path / "2")]
        with pytest.raises(LostResult):
            js(builds.hold_two_below, js, marks, gate.path).result(PATIENCE)
        # The implicit slot is free again, and one token.
        held = [
            js.submit(touch_and_pass_gate, args=(str(tmp_path / each), gate.path), timeout=0)
            for each in "34"
        ]
        with pytest.raises(Blocked):
            js.submit(getpid, timeout=0)
        gate.open()
        for future in held:
            assert future.wait(PATIENCE)
        check_slots(js, 4, tmp_path / "marks")
        assert outer.tokens() == TOKENS


@pytest.mark.parametrize("style", STYLES)
def test_nothing_of_what_was_inherited_is_changed(method: str, style: str, tmp_path: Path) -> None:
    with build(tmp_path, style, TOKENS) as outer:

        def flags() -> list[int]:
            asked = fcntl.F_GETFL, fcntl.F_GETFD
            return [fcntl.fcntl(fd, which) for fd in outer.descriptors for which in asked]

        before = flags()
        with Jobserver(method) as js:
            assert js(abs, -1).result(PATIENCE) == 1
            assert flags() == before
            show = (
                "import os\n"
                "for fd in map(int, os.listdir('/proc/self/fd')):\n"
                "    if fd > 2 and os.path.exists(f'/proc/self/fd/{fd}'):\n"  # not the listing
                "        print(fd)"
            )
            shown = subprocess.run(
                [sys.executable, "-c", show], close_fds=False, stdout=subprocess.PIPE, check=True
            )
        assert all(is_inheritable(fd) for fd in map(int, shown.stdout.split()))
        assert set(outer.descriptors) <= set(map(int, shown.stdout.split()))
        assert flags() == before


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_a_number_of_slots_stays_out_of_it(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer, Jobserver(method, slots=2) as js:
        assert js.slots == 2
        check_slots(js, 2, tmp_path / "marks")
        assert outer.tokens() == TOKENS


@pytest.mark.parametrize(
    ("makeflags", "slots"),
    [("", None), ("n", None), (" -j1", 1), ("kj1", 1), (" -j", None), (" -j7", None)],
)
def test_without_a_jobserver_it_is_as_ever(
    makeflags: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "usable_cpus", lambda: 3)
    monkeypatch.setenv("MAKEFLAGS", makeflags)
    with Jobserver() as js:
        assert js.slots == (slots or 3)
    with pytest.raises(NoJobserver, match=r"names no jobserver.*say how many slots") as caught:
        Jobserver.from_environ()
    assert caught.value.reason == "not a jobserver"
    monkeypatch.delenv("MAKEFLAGS")
    with Jobserver() as js:
        assert js.slots == 3
    with pytest.raises(NoJobserver, match="MAKEFLAGS is not set"):
        Jobserver.from_environ()


def closed(outer: Build, directory: Path) -> str:
    free = os.dup(outer.read)
    os.close(free)
    return f"{outer.read},{free}"


def own(outer: Build, directory: Path) -> str:
    for fd in outer.descriptors:
        os.set_inheritable(fd, False)
    return f"{outer.read},{outer.write}"


def swapped(outer: Build, directory: Path) -> str:
    return f"{outer.write},{outer.read}"


def no_pipe(outer: Build, directory: Path) -> str:
    return f"{outer.read},1" if not os.isatty(1) else f"0,{outer.write}"


def missing(outer: Build, directory: Path) -> str:
    return f"fifo:{directory}/missing"


def deserted(outer: Build, directory: Path) -> str:
    os.mkfifo(directory / "deserted")
    return f"fifo:{directory}/deserted"


def plain_file(outer: Build, directory: Path) -> str:
    (directory / "file").touch()
    return f"fifo:{directory}/file"


def switched_off(outer: Build, directory: Path) -> str:
    return "-2,-2"


def nonsense(outer: Build, directory: Path) -> str:
    return "3;4"


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [
        (closed, "bad descriptor", r"is not open; prefix the recipe with \+"),
        (own, "bad descriptor", "is not make's but this program's own; prefix"),
        (swapped, "bad descriptor", "is the other end of the pipe"),
        (missing, "cannot open", "No such file or directory.*make that made it has to run"),
        (deserted, "cannot open", "No such device or address"),
        (plain_file, "not a pipe", "is no pipe"),
        (switched_off, "disabled", r"prefix the recipe with \+"),
        (nonsense, "malformed", "of unknown form: '--jobserver-auth=3;4'"),
    ],
)
def test_a_reason_for_each_that_cannot_be_joined(
    name: Callable[[Build, Path], str],
    reason: str,
    text: str,
    tmp_path: Path,
) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        os.environ["MAKEFLAGS"] = f" -j4 --jobserver-auth={name(outer, tmp_path)}"
        with pytest.raises(NoJobserver, match=text) as caught:
            Jobserver.from_environ()
        assert caught.value.reason == reason
        assert outer.tokens() == TOKENS


def test_a_platform_that_lacks_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "HAS_OFD", False)
    with build(tmp_path, "pipe", TOKENS):
        with pytest.raises(NoJobserver, match="on Linux only") as caught:
            Jobserver.from_environ()
    assert caught.value.reason == "unsupported"


def test_who_cannot_join_says_so_once_and_goes_on(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        outer.makeflags += " --jobserver-auth=-2,-2"
        out, err = run_recipe(outer, builds.warn_once, method)
        assert out.splitlines() == [f"{usable_cpus()} 3"] * 3
        assert (
            err.count("RuntimeWarning: this Jobserver does not share make's slots: make has") == 1
        )
        assert "builds.py" in err  # where it was made
        assert outer.tokens() == TOKENS


def test_tokens_go_back_when_the_process_ends(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        run_recipe(outer, builds.leave_work, method, str(tmp_path), 4)
        assert outer.tokens() == TOKENS


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_tokens_go_back_on_a_signal(method: str, signum: int, tmp_path: Path) -> None:
    """Also what work below has taken: a process passes SIGTERM on."""
    with build(tmp_path, "pipe", TOKENS) as outer:
        run_recipe(
            outer, builds.be_signalled, method, str(tmp_path), 2, int(signum), status=-signum
        )
        assert outer.tokens() == TOKENS


def test_a_member_that_lives_on_returns_what_the_root_had(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        run_recipe(outer, builds.be_killed, method, str(tmp_path), status=-signal.SIGKILL)
        assert (tmp_path / "0-done").exists()
        assert outer.tokens() == TOKENS


def test_an_executor_on_sigterm(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "fifo", TOKENS) as outer:
        run_recipe(
            outer,
            builds.be_terminated_with_executor,
            method,
            str(tmp_path),
            4,
            status=-signal.SIGTERM,
        )
        assert outer.tokens() == TOKENS


def test_a_program_that_minds_sigterm_itself(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        run_recipe(outer, builds.keep_own_handler, method, str(tmp_path))


def test_sigterm_is_minded_only_where_slots_are(method: str, tmp_path: Path) -> None:
    with build(tmp_path, "pipe", TOKENS) as outer:
        out, _ = run_recipe(outer, builds.show_handlers, method)
        assert out.split() == ["False", "True", "True"]
