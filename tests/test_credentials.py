"""No process is used again when the program has changed its user, capabilities or namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.executor_help import run_script

pytestmark = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give rights up"
)

PRELUDE = """
import concurrent.futures, ctypes, multiprocessing, os, sys, threading
from jobserver import Jobserver, JobserverExecutor

LIBC = ctypes.CDLL(None, use_errno=True)
SETS = ctypes.c_uint32 * 6
HEADER = ctypes.c_uint32 * 2

def become(what):
    if what == "user":
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    elif what == "real user":
        os.setresuid(65534, 0, 0)
    elif what == "groups":
        os.setgroups([65534])
    elif what == "capabilities":
        sets = SETS()
        assert LIBC.capget(HEADER(0x20080522, 0), sets) == 0
        for index in range(6):
            sets[index] &= ~(1 << 13)  # CAP_NET_RAW
        assert LIBC.capset(HEADER(0x20080522, 0), sets) == 0
    else:
        assert LIBC.unshare(0x04000000) == 0, ctypes.get_errno()  # CLONE_NEWUTS

def look():
    with open("/proc/thread-self/status") as file:
        capabilities = [line for line in file if line.startswith("CapEff")]
    namespace = os.readlink("/proc/thread-self/ns/uts")
    return os.getresuid(), os.getresgid(), os.getgroups(), capabilities, namespace

def wait_for(pipe):
    before = look()
    pipe.send("begun")
    pipe.recv()
    return before, look()

def make(face, method, slots=2):
    context = multiprocessing.get_context(method)
    if face == "owning":
        return JobserverExecutor(slots, context)
    js = Jobserver(context, slots)
    if face == "reused":
        js = js.replace_workers()
    return JobserverExecutor(js) if face == "sharing" else js
"""

REUSE = """
what, face, method = sys.argv[1:]
with make(face, method) as pool:
    submit = pool.submit if face in ("owning", "sharing") else pool
    old = submit(look)
    assert old.result() == look(), (old.result(), look())
    become(what)
    for _ in range(2):
        new = submit(look)
        assert new.result() == look(), (new.result(), look())
    assert new.result() != old.result()
print("new")
"""

RUNNING = """
what, face, method = sys.argv[1:]
with make(face, method) as pool:
    submit = pool.submit if face in ("owning", "sharing") else pool
    read, write = multiprocessing.get_context(method).Pipe()
    old = submit(wait_for, read)
    write.recv()
    before = look()
    become(what)
    assert submit(look).result() == look()
    write.send("go on")
    assert old.result() == (before, before)
print("new")
"""
FACES = ("fresh", "reused", "owning", "sharing")


def printed_by(tmp_path: Path, body: str, *args: object) -> str:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    program = f'{PRELUDE}\nif __name__ == "__main__":\n{lines}'
    # The directory of the test is root's alone.
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder != Path("/tmp"):
            folder.chmod(0o755)
    ended = run_script(tmp_path, program, *args, flags=("-W", "always"))
    assert ended.returncode == 0, ended.stderr
    assert "multi-threaded" not in ended.stderr
    return ended.stdout


@pytest.mark.parametrize("face", FACES)
def test_work_after_a_change_of_user_has_the_new_one(
    face: str, method: str, tmp_path: Path
) -> None:
    """The effective user stays under spawn, because another may be unable to read Python."""
    what = "user" if method == "fork" else "real user"
    assert printed_by(tmp_path, REUSE, what, face, method) == "new\n"


@pytest.mark.parametrize("face", ["reused", "owning"])
@pytest.mark.parametrize("what", ["groups", "capabilities", "namespace"])
def test_other_credentials_count_as_well(what: str, face: str, tmp_path: Path) -> None:
    assert printed_by(tmp_path, REUSE, what, face, "fork") == "new\n"


def test_namespaces_of_the_submitting_thread_count(tmp_path: Path) -> None:
    assert printed_by(tmp_path, REUSE, "namespace", "owning", "spawn") == "new\n"


@pytest.mark.parametrize("face", FACES)
def test_work_that_runs_goes_on_through_a_change(face: str, method: str, tmp_path: Path) -> None:
    what = "user" if method == "fork" else "real user"
    assert printed_by(tmp_path, RUNNING, what, face, method) == "new\n"


COMMAND = """
# Takes a slot from the pipe. It says so, and who it is.
TAKE = ["sh", "-c", 'auth=${MAKEFLAGS##*=} && head -c 1 /dev/fd/${auth%%,*} | wc -c && id -u']

def drop():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)

def take(js, **options):
    return js.run(TAKE, capture_output=True, check=True, timeout=30, **options).stdout.split()

(who,) = sys.argv[1:]
with Jobserver("fork", 2) as js:
    assert take(js, style="pipe") == [b"1", b"0"]
    if who == "the program":
        drop()
        taken = take(js)
    elif who == "preexec":
        taken = js.replace_preexec(drop)(take, js).result()
    else:
        taken = take(js, user=65534)
    assert taken == [b"1", b"65534"], taken
    assert js(pow, 2, 3).result() == 8
print("taken")
"""


@pytest.mark.skipif(not os.path.exists("/dev/fd/0"), reason="commands are given /proc/self/fd")
@pytest.mark.parametrize("fifo", [True, False], ids=["fifo", "no fifo"])
@pytest.mark.parametrize("who", ["the program", "preexec", "the command"])
def test_a_command_of_another_user_draws_on_the_slots(
    who: str, fifo: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The program can no longer remove its fifo. No fifo is made where the path has a blank.
    folder = tmp_path / ("folder" if fifo else "a folder")
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert printed_by(tmp_path, COMMAND, who) == "taken\n"
