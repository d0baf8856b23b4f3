"""An executor's workers see the process as it was when that executor was first used.

ProcessPoolExecutor is the oracle: the same program prints the same with it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.executor_help import run_script

PRELUDE = """
import concurrent.futures, multiprocessing, os, sys, threading
from jobserver import Jobserver, JobserverExecutor
DATA, UMASK = ["old"], os.umask(0o22)

def look():
    umask = os.umask(0)
    return DATA, os.getcwd(), os.environ.get("COLOR"), sys.path[-1], oct(umask), os.getuid()

def make(face, method="fork"):
    context = multiprocessing.get_context(method)
    if face == "peer":
        return concurrent.futures.ProcessPoolExecutor(1, context)
    return JobserverExecutor(Jobserver(context, 1) if face == "sharing" else 1, *(
        () if face == "sharing" else (context,)))

def change():
    DATA[:] = ["new"]
    os.chdir("/")
    os.umask(0o77)
    os.environ["COLOR"] = "red"
    sys.path.append("/nowhere")
"""
FACES = ("owning", "sharing")


def printed_by(tmp_path: Path, body: str, *args: object, flags: tuple[str, ...] = ()) -> list[str]:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    ended = run_script(
        tmp_path, f'{PRELUDE}\nif __name__ == "__main__":\n{lines}', *args, flags=flags
    )
    assert ended.returncode == 0, ended.stderr
    assert "multi-threaded" not in ended.stderr
    return ended.stdout.splitlines()


SECOND = """
first = make(sys.argv[1])
first.submit(abs, 1).result()
change()
def later(x): return x + len(DATA)
with make(sys.argv[1]) as second, make(sys.argv[1]) as third:
    print(second.submit(look).result()[:5])
    print(third.submit(later, 1).result())
    print(first.submit(abs, -4).result())
first.shutdown()
"""


@pytest.mark.parametrize("face", FACES)
def test_a_second_executor_sees_the_process_as_it_is(face: str, tmp_path: Path) -> None:
    expected = printed_by(tmp_path, SECOND, "peer", flags=("-W", "ignore"))
    assert "new" in expected[0]
    assert printed_by(tmp_path, SECOND, face, flags=("-W", "always")) == expected


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("face", FACES)
def test_a_second_executor_has_the_new_user(face: str, tmp_path: Path) -> None:
    body = """
first = make(sys.argv[1])
print(first.submit(os.getuid).result())
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with make(sys.argv[1]) as second:
    print(second.submit(os.getuid).result(), second.submit(os.getgroups).result())
first.shutdown()
"""
    assert printed_by(tmp_path, body, face) == ["0", "65534 []"]


def test_running_work_of_others_goes_on_while_one_starts(tmp_path: Path) -> None:
    """Threads end for the fork, and everything that comes meanwhile is found afterwards."""
    body = """
executors = [make("owning")]
futures = []
for number in range(8):
    executor = make("owning")
    futures += [other.submit(pow, number, 2) for other in [*executors, executor] for _ in range(5)]
    executors.append(executor)
print(sum(future.result(60) for future in futures))
for executor in executors:
    executor.shutdown()
"""
    total = sum(5 * (number + 2) * number**2 for number in range(8))
    assert printed_by(tmp_path, body, flags=("-W", "always")) == [str(total)]


def test_first_uses_from_several_threads_and_callbacks_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    """A fork in a callback is beside the main thread, so Python may warn; nobody hangs."""
    body = """
done = []
def use_another(future):
    executor = make("owning")
    done.append(executor.submit(abs, -1).result(60))
    executor.shutdown()
def use(barrier):
    barrier.wait()
    with make("owning") as executor:
        executor.submit(abs, 1).add_done_callback(use_another)
barrier = threading.Barrier(4)
threads = [threading.Thread(target=use, args=(barrier,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(done)
"""
    assert printed_by(tmp_path, body, flags=("-W", "ignore")) == ["[1, 1, 1, 1]"]


@pytest.mark.parametrize("face", FACES)
def test_made_before_a_fork_it_is_of_whoever_uses_it(
    face: str, method: str, tmp_path: Path
) -> None:
    body = """
executor = make(sys.argv[1], sys.argv[2])
child = os.fork()
print("child" if child == 0 else "parent", executor.submit(abs, -3).result(60), flush=True)
executor.shutdown()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert sorted(printed_by(tmp_path, body, face, method, flags=("-W", "ignore"))) == [
        "child 3",
        "parent 3",
    ]


def test_forks_that_share_an_unused_executor_have_workers_of_their_own(tmp_path: Path) -> None:
    """With one worker each, work in two forks can wait for each other, as under the peer."""
    body = """
executor = make("owning")
read, write = os.pipe()
child = os.fork()
if child == 0:
    executor.submit(os.write, write, b"x").result(60)
else:
    print(executor.submit(os.read, read, 1).result(60))
executor.shutdown()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert printed_by(tmp_path, body) == ["b'x'"]


def test_a_used_executor_stays_with_its_process(tmp_path: Path) -> None:
    body = """
executor = make("owning")
executor.submit(abs, 1).result()
child = os.fork()
if child == 0:
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        print("belongs to process" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
executor.shutdown()
"""
    assert printed_by(tmp_path, body, flags=("-W", "ignore")) == ["True"]
