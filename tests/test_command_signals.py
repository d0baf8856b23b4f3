"""`python -m jobserver` and signals: they reach the command, and what ends it ends both."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.work import PATIENCE, await_file

PROGRAM = [sys.executable, "-m", "jobserver", "-j", "1"]
ENDING = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program has a fifo while it runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    return tmp_path / f"jobserver-{os.geteuid()}"


@contextlib.contextmanager
def in_terminal(command: list[str]) -> Generator[tuple[int, int]]:
    """Run a command in the foreground of a terminal of its own: its pid, and our end of that."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execv(command[0], command)
        finally:
            os._exit(127)
    try:
        yield pid, terminal
    finally:
        os.close(terminal)


def status_of(pid: int) -> int:
    """What became of a process of ours: as `subprocess` has it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the program does not end")
        time.sleep(0.005)


def waiting(ready: Path) -> list[str]:
    return ["/bin/sh", "-c", f": > {ready}; exec sleep 1000"]


@pytest.mark.parametrize("name", ENDING)
def test_it_dies_by_the_signal_that_ends_its_command(
    name: str, folder: Path, tmp_path: Path
) -> None:
    signum = getattr(signal, name)
    ready = tmp_path / "ready"
    with subprocess.Popen([*PROGRAM, *waiting(ready)], start_new_session=True) as process:
        await_file(ready)
        process.send_signal(signum)
        assert process.wait(PATIENCE) == -signum
    assert not folder.exists()


@pytest.mark.parametrize("name", ENDING)
def test_a_shell_says_that_its_command_died_by_the_signal(name: str, tmp_path: Path) -> None:
    signum = getattr(signal, name)
    ready = tmp_path / "ready"
    script = f"trap 'kill $!; exit {128 + signum}' {name[3:]}; sleep 1000 & : > {ready}; wait"
    command = [*PROGRAM, "/bin/sh", "-c", script]
    with subprocess.Popen(command, start_new_session=True) as process:
        await_file(ready)
        process.send_signal(signum)
        assert process.wait(PATIENCE) == -signum


def test_what_it_did_not_get_it_does_not_die_by() -> None:
    done = subprocess.run([*PROGRAM, "/bin/sh", "-c", "kill -TERM $$"], check=False)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ENDING)
def test_one_that_waits_for_its_slot_leaves_nothing(name: str, folder: Path) -> None:
    signum = getattr(signal, name)
    command = [*PROGRAM, "--load", "0", "true"]  # the load is never below that
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + PATIENCE
        while not folder.exists() or not list(folder.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signum
    assert errors == b""
    assert not folder.exists()


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    outer = f"trap '' HUP; exec {' '.join(PROGRAM)} /bin/sh -c ': > {ready}; exec sleep 1000'"
    with subprocess.Popen(["/bin/sh", "-c", outer], start_new_session=True) as process:
        await_file(ready)
        os.killpg(process.pid, signal.SIGHUP)
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGTERM"])
def test_a_signal_to_it_alone_reaches_its_command_in_a_terminal(name: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'exit 7' {name[3:]}; : > {ready}; while :; do sleep 0.01; done"
    with in_terminal([*PROGRAM, "/bin/sh", "-c", script]) as (pid, _):
        await_file(ready)
        os.kill(pid, getattr(signal, name))
        assert status_of(pid) == 7


COUNT = """
import pathlib, signal, sys
had = []
signal.signal(signal.SIGINT, lambda *_: (had.append(1), pathlib.Path(sys.argv[2]).touch()))
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(10 + len(had)))
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""


def test_a_key_of_the_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    ready, had = tmp_path / "ready", tmp_path / "had"
    with in_terminal([*PROGRAM, sys.executable, "-c", COUNT, str(ready), str(had)]) as (
        pid,
        terminal,
    ):
        await_file(ready)
        os.write(terminal, b"\x03")
        await_file(had)
        os.kill(pid, signal.SIGUSR1)  # passed on after what came before it
        assert status_of(pid) == 11


def test_a_key_of_the_terminal_stops_a_loop(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    ready, after = tmp_path / "ready", tmp_path / "after"
    inner = f"{' '.join(PROGRAM)} /bin/sh -c ': > {ready}; exec sleep 1000'"
    with in_terminal([bash, "-c", f"for i in 1 2; do {inner}; : > {after}; done"]) as (
        pid,
        terminal,
    ):
        await_file(ready)
        os.write(terminal, b"\x03")
        assert status_of(pid) == -signal.SIGINT
    assert not after.exists()
