"""One thread an executor, no fork beside it, and results straight from the worker.

Python 3.12 and later warn of a fork in a process with several threads. As an error that warning is
dropped by the interpreter (up to 3.14), and the watchdog of these tests is a thread, too: so each
program here runs by itself with every warning shown, and says nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from jobserver import Jobserver
from tests import executor_work as work
from tests.executor_help import context_of, executor_for, run_script, sharing_executor
from tests.work import PATIENCE, add, identity

SHOWN = ("-W", "always")

warns = pytest.mark.skipif(sys.version_info < (3, 12), reason="no such warning before 3.12")

PRELUDE = """
import multiprocessing, os, signal, sys, threading
from jobserver import Jobserver, JobserverExecutor
from tests import executor_work as work
from tests.work import add, die, identity, raise_value_error

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
"""


def said_by(tmp_path: Path, body: str) -> tuple[str, str]:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    ended = run_script(tmp_path, PRELUDE + lines, flags=SHOWN)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


@warns
def test_a_fork_beside_a_thread_would_be_shown(tmp_path: Path) -> None:
    body = """
executor = JobserverExecutor(1, context)
executor.submit(add, 1, 2).result()
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
executor.shutdown()
"""
    _, err = said_by(tmp_path, body)
    assert "multi-threaded" in err


@warns
def test_no_fork_beside_the_thread(tmp_path: Path) -> None:
    body = """
with JobserverExecutor(2, context) as executor:
    print(list(executor.map(identity, range(6))))
    executor.submit(die).exception()
    executor.submit(raise_value_error, "no").exception()
    print(executor.submit(add, 1, 2).result())
"""
    assert said_by(tmp_path, body) == ("[0, 1, 2, 3, 4, 5]\n3\n", "")


@warns
def test_no_fork_by_a_second_executor_on_the_same_jobserver(tmp_path: Path) -> None:
    body = """
with Jobserver(context, 2) as js:
    with JobserverExecutor(js) as first:
        print(first.submit(add, 1, 2).result())
        with JobserverExecutor(js) as second:
            print(second.submit(add, 3, 4).result())
            print(first.submit(add, 5, 6).result())
        print(first.submit(add, 7, 8).result())
"""
    assert said_by(tmp_path, body) == ("3\n7\n11\n15\n", "")


@warns
def test_no_fork_by_executors_one_after_another(tmp_path: Path) -> None:
    body = """
with Jobserver(context, 1) as js:
    for _ in range(3):
        with JobserverExecutor(js) as executor:
            print(executor.submit(add, 1, 2).result())
for _ in range(2):
    with JobserverExecutor(1, context) as executor:
        print(executor.submit(add, 3, 4).result())
"""
    assert said_by(tmp_path, body) == ("3\n3\n3\n7\n7\n", "")


@warns
def test_no_fork_by_an_executor_on_a_sibling_of_the_handle(tmp_path: Path) -> None:
    body = """
with Jobserver(context, 2) as js:
    with JobserverExecutor(js) as first:
        print(first.submit(add, 1, 2).result())
        with JobserverExecutor(js.revise_env({"A_NAME": "a value"})) as second:
            print(second.submit(work.getenv, "A_NAME").result())
"""
    assert said_by(tmp_path, body) == ("3\na value\n", "")


@warns
def test_no_fork_by_a_second_executor_with_slots_of_its_own(tmp_path: Path) -> None:
    body = """
with JobserverExecutor(1, context) as first:
    print(first.submit(add, 1, 2).result())
    with JobserverExecutor(1, context) as second:
        print(second.submit(add, 3, 4).result())
"""
    assert said_by(tmp_path, body) == ("3\n7\n", "")


@warns
def test_no_fork_beside_the_thread_of_an_executor_that_is_just_ending(tmp_path: Path) -> None:
    body = """
from jobserver import pauses
from jobserver.forker import Forker
closed, wanted = threading.Event(), threading.Event()
close, alone = Forker.close, pauses.alone
def close_and_linger(*args):
    close(*args)
    closed.set()
    wanted.wait()
def want(do):
    wanted.set()
    alone(do)
first = JobserverExecutor(1, context)
print(first.submit(add, 1, 2).result())
Forker.close, pauses.alone = close_and_linger, want
first.shutdown(wait=False)
closed.wait()
with JobserverExecutor(1, context) as second:
    print(second.submit(add, 3, 4).result())
"""
    assert said_by(tmp_path, body) == ("3\n7\n", "")


@warns
def test_no_fork_beside_a_thread_in_the_workers(tmp_path: Path) -> None:
    body = """
with Jobserver(context, 1) as js:
    with JobserverExecutor(js) as executor:
        print(executor.submit(work.fan_out, js, 3, "result").result())
        print(executor.submit(work.submit_in_turn, js, [1, 2]).result())
        print(executor.submit(work.descend, js, 2).result())
"""
    assert said_by(tmp_path, body) == ("[0, 1, 2]\n[1, 2]\n2\n", "")


def test_exactly_one_thread_each(method: str) -> None:
    before = threading.active_count()
    with Jobserver(context_of(method), 2) as js:
        js(identity, 1).result(PATIENCE)
        assert threading.active_count() == before
        with sharing_executor(js) as first, sharing_executor(js) as second:
            for executor in (first, second, first):
                assert executor.submit(add, 1, 2).result(PATIENCE) == 3
            assert threading.active_count() == before + 2
            assert list(first.map(identity, range(4))) == [0, 1, 2, 3]
            second.shutdown()
            assert threading.active_count() == before + 1
        assert threading.active_count() == before
    with executor_for(method, 2) as executor:
        assert executor.submit(add, 1, 2).result(PATIENCE) == 3
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_thread_that_could_not_be_started_is_started_by_the_next_submit(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with Jobserver(context_of(method), 1) as js:
        handle = js.replace_preexec(work.initialize, "here")
        if method == "fork":  # may be what cannot be pickled, there
            handle = js.replace_preexec(lambda: work.initialize("here"))
        with sharing_executor(handle) as executor:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", no_more_threads)
                with pytest.raises(RuntimeError, match="new thread"):
                    executor.submit(work.initialized)
            assert executor.submit(work.initialized).result(PATIENCE) == "here"


def test_work_finds_no_thread_beside_it(method: str) -> None:
    with executor_for(method, 2) as executor:
        assert list(executor.map(work.threads_for, range(4))) == [1] * 4


def test_arguments_are_unpickled_once_in_their_own_worker(method: str) -> None:
    with executor_for(method, 2) as executor:
        trail, pid = executor.submit(work.receive_traveller, work.Traveller()).result(PATIENCE)
    assert trail == [pid]
    assert pid != os.getpid()


def test_results_are_unpickled_once_here(method: str) -> None:
    with executor_for(method, 2) as executor:
        traveller = executor.submit(work.send_traveller).result(PATIENCE)
        assert traveller.trail == [os.getpid()]
        [mapped] = executor.map(work.make, [work.Traveller])
        assert isinstance(mapped, work.Traveller)
        assert mapped.trail == [os.getpid()]
