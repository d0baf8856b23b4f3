"""The fifo that a command is told of: where it lies, what it opens, and that it goes away."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from jobserver import Jobserver
from jobserver.make import Descriptors, Fifo, find_auth
from tests.processes import run_program

# Counts what it can take from the fifo of the last word of MAKEFLAGS, and puts it back.
COUNT = r"""
import os
path = os.environ["MAKEFLAGS"].split("fifo:")[1]
read, write = os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY)
data = os.read(read, 99)
os.write(write, data)
print(len(data))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fifos of this test are, and of nothing else."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / f"jobserver-{os.geteuid()}"


def fifo_of(js: Jobserver) -> str:
    with js.share("fifo") as shared:
        auth = find_auth(shared.env["MAKEFLAGS"])
    assert isinstance(auth, Fifo)
    return auth.path


def kinds_of(js: Jobserver) -> set[type]:
    """How commands are told of the slots."""
    with js.share() as shared:
        words = shared.env["MAKEFLAGS"].split()
    return {type(find_auth(word)) for word in words if word.startswith("--jobserver-auth=")}


def test_it_is_a_fifo_that_only_this_user_reaches(folder: Path) -> None:
    with Jobserver("fork", 2) as js:
        path = Path(fifo_of(js))
        assert path.parent == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_ISFIFO(path.lstat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666  # for a later user of this process
        with Jobserver("fork", 2) as other:
            assert fifo_of(other) != str(path)
    assert list(folder.iterdir()) == []


def count_from_work(js: Jobserver) -> tuple[str, int]:
    """The fifo that work is told of, and how many slots its command has beside its own."""
    done = js.run([sys.executable, "-c", COUNT], style="fifo", stdout=subprocess.PIPE, check=True)
    return fifo_of(js), int(done.stdout)


def test_it_opens_the_slots_of_the_whole_tree(method: str) -> None:
    with Jobserver(method, 4) as js:
        expected = fifo_of(js), 3
        assert count_from_work(js) == expected
        assert js(count_from_work, js).result() == expected
        assert js.replace_workers()(count_from_work, js).result() == expected


NAMESPACES = [
    ["unshare", "--net", "--map-current-user"],
    ["unshare", "--user"],
    ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"],
    ["bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"],
]


@pytest.mark.parametrize("enter", NAMESPACES, ids=" ".join)
def test_it_works_in_other_namespaces(enter: Sequence[str], tmp_path: Path) -> None:
    if shutil.which(enter[0]) is None or subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip(f"{enter[0]} is not there, or may not do this")
    with Jobserver("fork", 3) as js:
        command = [*enter, sys.executable, "-c", COUNT]
        done = js.run(command, style="fifo", capture_output=True, text=True)
    # As make's own does: it has the same mode.
    own = tmp_path / "own"
    os.mkfifo(own, 0o600)
    held = os.open(own, os.O_RDWR | os.O_NONBLOCK)
    os.write(held, b"++")
    env = {**os.environ, "MAKEFLAGS": f"--jobserver-auth=fifo:{own}"}
    oracle = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    os.close(held)
    assert (done.returncode, done.stdout) == (oracle.returncode, oracle.stdout)
    assert done.stdout == "2\n", done.stderr


def leave_open(slots: int) -> None:
    js = Jobserver("fork", slots)
    js.run(["true"])
    sys.modules["kept"] = js  # type: ignore[assignment]  # until the interpreter ends


def test_what_nobody_has_closed_goes_at_the_exit(folder: Path) -> None:
    run_program(leave_open, 2)
    assert not folder.exists()


def be_killed(slots: int) -> None:
    with Jobserver("fork", slots):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_has_left_goes_with_the_next(folder: Path) -> None:
    run_program(be_killed, 2, status=-signal.SIGKILL)
    stale = list(folder.iterdir())
    assert len(stale) == 1
    unrelated = folder / "notes"
    unrelated.write_text("mine")
    with Jobserver("fork", 2) as js:
        kept = fifo_of(js)
        run_program(leave_open, 2)  # looks for what is stale, and finds ours in use
        assert set(map(str, folder.iterdir())) == {kept, str(unrelated)}


def test_a_forked_child_removes_nothing() -> None:
    with Jobserver("fork", 2) as js:
        path = fifo_of(js)
        pid = os.fork()
        if pid == 0:
            with js:
                pass
            del js
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert fifo_of(js) == path
        assert os.path.exists(path)


def unusable(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "open to others":
        folder.mkdir()
        folder.chmod(0o755)
    elif how == "a link":
        (folder.parent / "elsewhere").mkdir(0o700)
        folder.symlink_to("elsewhere")
    elif how == "a file":
        folder.touch()
    else:
        base = folder.parent / "two words"
        base.mkdir()
        monkeypatch.setenv("TMPDIR", str(base))


@pytest.mark.parametrize("how", ["open to others", "a link", "a file", "with a blank"])
def test_where_it_cannot_be_made_there_is_another_place_or_a_pipe(
    how: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unusable(folder, how, monkeypatch)
    with Jobserver("fork", 2) as js:
        assert kinds_of(js) == {Descriptors}
        with pytest.raises(RuntimeError, match="style='fifo' needs a fifo"):
            js.run(["true"], style="fifo")
        assert js.run(["true"]).returncode == 0
    second = tmp_path / "run"
    second.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(second))
    with Jobserver("fork", 2) as js:
        assert Path(fifo_of(js)).parent.parent == second
    assert not list((tmp_path / "elsewhere").iterdir() if how == "a link" else [])


def test_of_a_fifo_that_somebody_has_removed_nobody_is_told() -> None:
    with Jobserver("fork", 2) as js:
        os.unlink(fifo_of(js))
        assert kinds_of(js) == {Descriptors}


def test_nobody_waits_for_one_who_holds_the_folder(folder: Path) -> None:
    import fcntl

    folder.mkdir(0o700)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    begun = time.monotonic()
    with Jobserver("fork", 2) as js:
        assert kinds_of(js) == {Descriptors}
    assert time.monotonic() - begun < 10
    os.close(held)


def test_without_descriptors_nothing_is_left(folder: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    Jobserver("fork", 1)
    opened = len(os.listdir("/proc/self/fd")) - 1
    failed: Optional[Any] = None
    for more in range(1, 8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + more, limits[1]))
        try:
            js = Jobserver("fork", 1)
        except OSError as error:
            failed = error
            assert list(folder.iterdir()) == []
        else:
            with js:
                pass
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert failed is not None
