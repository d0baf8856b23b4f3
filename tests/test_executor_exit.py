"""JobserverExecutor at the end of the interpreter, and in a program that forks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.executor_help import run_script

PRELUDE = """
import atexit, multiprocessing, os, pathlib, sys, threading
from jobserver import Jobserver, JobserverExecutor
from tests.executor_work import append
from tests.work import add, echo, identity, touch, touch_and_pass_gate, await_file, Gate

if __name__ == "__main__":
    method, directory = sys.argv[1:]
    context = multiprocessing.get_context(method)
"""


def run(tmp_path: Path, method: str, body: str) -> tuple[int, str, str]:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    ended = run_script(tmp_path, PRELUDE + lines, method, tmp_path, flags=("-W", "error"))
    return ended.returncode, ended.stdout, ended.stderr


def test_pending_work_is_finished(method: str, tmp_path: Path) -> None:
    body = """
executor = JobserverExecutor(1, context)
for number in range(4):
    future = executor.submit(identity, number)
    future.add_done_callback(lambda future: print(future.result(), flush=True))
"""
    assert run(tmp_path, method, body) == (0, "0\n1\n2\n3\n", "")


def test_pending_work_is_finished_whatever_else_is_alive(method: str, tmp_path: Path) -> None:
    body = """
def main():
    js = Jobserver(context, 1)
    executor = JobserverExecutor(js)
    return executor, js, [executor.submit(append, directory + "/log", str(n)) for n in range(3)]

kept = main()
"""
    assert run(tmp_path, method, body) == (0, "", "")
    assert (tmp_path / "log").read_text() == "012"


def test_pending_work_is_finished_after_a_shutdown_that_did_not_wait(
    method: str, tmp_path: Path
) -> None:
    body = """
executor = JobserverExecutor(1, context)
futures = [executor.submit(append, directory + "/log", str(n)) for n in range(3)]
executor.shutdown(wait=False)
"""
    assert run(tmp_path, method, body) == (0, "", "")
    assert (tmp_path / "log").read_text() == "012"


def test_pending_work_of_a_forgotten_executor_is_finished(method: str, tmp_path: Path) -> None:
    body = """
executor = JobserverExecutor(1, context)
for n in range(3):
    executor.submit(append, directory + "/log", str(n))
del executor
"""
    assert run(tmp_path, method, body) == (0, "", "")
    assert (tmp_path / "log").read_text() == "012"


def test_what_is_printed_is_printed_once(method: str, tmp_path: Path) -> None:
    body = """
print("here")
with JobserverExecutor(2, context) as executor:
    executor.submit(print, "there").result()
    executor.submit(print, "and there").result()
print("at the end")
"""
    code, out, err = run(tmp_path, method, body)
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["and there", "at the end", "here", "there"]


def test_the_exit_status_is_kept(method: str, tmp_path: Path) -> None:
    body = """
executor = JobserverExecutor(1, context)
executor.submit(append, directory + "/log", "done")
sys.exit(3)
"""
    assert run(tmp_path, method, body) == (3, "", "")
    assert (tmp_path / "log").read_text() == "done"


AFTER_THE_SCRIPT = r"""
import concurrent.futures, multiprocessing, os, pathlib, sys, threading
from jobserver import Jobserver, JobserverExecutor

def work(name, number):
    words = name, number, sys.argv[-1], os.getcwd(), sys.path[-1]
    os.write(1, (" ".join(map(str, words)) + "\n").encode())

def tell(future):
    if future.exception() is not None:
        print("lost:", repr(future.exception()), flush=True)

if __name__ == "__main__":
    method, directory = sys.argv[1:]
    context = multiprocessing.get_context(method)
    js = Jobserver(context, 1)
    executors = {
        "standard": concurrent.futures.ProcessPoolExecutor(1, context),
        "owning": JobserverExecutor(1, context),
        "sharing": JobserverExecutor(js),
        "reusing": JobserverExecutor(js.replace_workers()),
    }
    for name, executor in executors.items():
        for number in range(3):
            executor.submit(work, name, number).add_done_callback(tell)
"""


@pytest.mark.parametrize("ending", ["pass", "executor.shutdown(wait=False)"])
def test_work_of_the_main_script_runs_after_its_end(
    method: str, tmp_path: Path, ending: str
) -> None:
    """As it would have run at once, under ProcessPoolExecutor: see what that prints."""
    change = f"""
    for executor in executors.values():
        {ending}
    sys.argv.append("later")
    sys.path.append("later")
    os.chdir("/")
"""
    ended = run_script(tmp_path, AFTER_THE_SCRIPT + change, method, tmp_path, flags=("-W", "error"))
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    expected = [line for line in lines if line.startswith("standard")]
    assert len(expected) == 3
    for name in ("owning", "sharing", "reusing"):
        assert sorted(line for line in lines if line.startswith(name)) == [
            line.replace("standard", name) for line in expected
        ]
    assert len(lines) == 12


@pytest.mark.parametrize("afresh", ["spawn", "forkserver"])  # a fork has all that there was
def test_a_jobserver_is_used_after_the_end_of_the_main_script(afresh: str, tmp_path: Path) -> None:
    text = r"""
import os, sys, threading
from jobserver import Jobserver

def work(number):
    return -number

def late(js, number):
    threading.main_thread().join()
    os.write(1, b"%d\n" % js.submit(work, args=(number,)).result())

if __name__ == "__main__":
    js = Jobserver(sys.argv[1], 1)
    for number, handle in enumerate([js, js.replace_workers()]):
        threading.Thread(target=late, args=(handle, number + 1)).start()
"""
    ended = run_script(tmp_path, text, afresh)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split()) == ["-1", "-2"]


def test_an_idle_executor_does_not_hold_the_exit_up(method: str, tmp_path: Path) -> None:
    body = """
executor = JobserverExecutor(2, context)
print(executor.submit(add, 1, 2).result())
unused = JobserverExecutor(2, context)
"""
    assert run(tmp_path, method, body) == (0, "3\n", "")


@pytest.mark.parametrize("used", ["executor.submit(add, 1, 2).result()", "pass"])
def test_submit_at_exit_is_refused(method: str, tmp_path: Path, used: str) -> None:
    body = f"""
def late():
    try:
        executor.submit(identity, None)
    except RuntimeError as error:
        print(error)

atexit.register(late)
executor = JobserverExecutor(1, context)
{used}
"""
    code, out, err = run(tmp_path, method, body)
    assert (code, err) == (0, "")
    assert out.startswith("cannot schedule new futures after")


def test_work_submitted_by_a_thread_that_outlives_the_program(method: str, tmp_path: Path) -> None:
    body = """
def collect():
    with JobserverExecutor(1, context) as executor:
        print(executor.submit(add, 1, 2).result())

threading.Thread(target=collect).start()
"""
    code, out, err = run(tmp_path, method, body)
    # The interpreter may be too far gone for new work by the time the thread asks for it; either
    # way everything ends. That refusal is all that may be said.
    assert code == 0
    assert out == "3\n" or "cannot schedule new futures after" in err


def test_a_forked_child_of_the_program_ends_by_itself(method: str, tmp_path: Path) -> None:
    body = """
import warnings
warnings.simplefilter("ignore")  # the program forks beside a thread, and knows it
gate, mark = Gate(pathlib.Path(directory)), directory + "/mark"
executor = JobserverExecutor(1, context)
running = executor.submit(touch_and_pass_gate, mark, gate.path, "running")
pending = executor.submit(identity, "pending")
await_file(mark)
child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), running.done(), flush=True)
gate.open()
print(running.result(), pending.result())
"""
    assert run(tmp_path, method, body) == (0, "7 False\nrunning pending\n", "")


def test_a_process_forked_by_multiprocessing_ends_by_itself(tmp_path: Path) -> None:
    body = """
import warnings
warnings.simplefilter("ignore")  # the program forks beside a thread, and knows it
executor = JobserverExecutor(1, context)
print(executor.submit(add, 1, 2).result(), flush=True)
process = context.Process(target=identity, args=(1,))
process.start()
process.join()
print(process.exitcode, executor.submit(add, 3, 4).result())
"""
    assert run(tmp_path, "fork", body) == (0, "3\n0 7\n", "")


def test_a_forked_child_can_make_an_executor_of_its_own(tmp_path: Path) -> None:
    body = """
import warnings
warnings.simplefilter("ignore")  # the program forks beside a thread, and knows it
executor = JobserverExecutor(1, context)
print(executor.submit(add, 1, 2).result(), flush=True)
child = os.fork()
if child == 0:
    del executor
    with JobserverExecutor(1, context) as own:
        print(own.submit(add, 3, 4).result(), flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print(executor.submit(add, 5, 6).result())
"""
    assert run(tmp_path, "fork", body) == (0, "3\n7\n0\n11\n", "")


UNGUARDED = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jobserver import JobserverExecutor

method, which = sys.argv[1:]
make = ProcessPoolExecutor if which == "peer" else JobserverExecutor
pool = make(2, get_context(method))
futures = [pool.submit(abs, -number) for number in range(20)]
for again in futures:
    print(type(again.exception()).__name__, again.exception())
try:
    pool.submit(abs, 1)
except Exception as error:
    print("refused", type(error).__name__)
pool.shutdown()
"""


@pytest.mark.parametrize("afresh", ["spawn", "forkserver"])
def test_a_program_without_a_guard_does_not_storm(afresh: str, tmp_path: Path) -> None:
    """Workers that end before they begin anything break the executor, as its peer breaks."""
    ours = run_script(tmp_path, UNGUARDED, afresh, "ours")
    lines = ours.stdout.splitlines()
    assert len(lines) == 21
    for line in lines[:-1]:
        assert line.startswith("BrokenProcessPool the executor's workers end before they begin")
        assert 'if __name__ == "__main__":' in line
    assert lines[-1] == "refused BrokenProcessPool"
    peer = run_script(tmp_path, UNGUARDED, afresh, "peer")
    assert peer.stdout.splitlines()[-1] == "refused BrokenProcessPool"
    # Two workers fail for each of the two calls that begin, and a few more were on their way.
    assert ours.stderr.count("Traceback") <= 10
