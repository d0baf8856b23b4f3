"""`python -m jobserver`: hosting a command, its status and signals, and what `status` says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobserver import __main__ as command_line
from tests import sites
from tests.processes import ROOT
from tests.work import PATIENCE, await_file

PROGRAM = [sys.executable, "-m", "jobserver"]


def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["--", "sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no such program"], 127),
        (["/"], 126),
    ],
)
def test_the_exit_status_is_the_commands(command: list[str], status: int) -> None:
    assert call("-j", "2", *command).returncode == status


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "a command is needed"),
        (["-j", "0", "true"], "slots must be at least 1"),
        (["-j", "two", "true"], "invalid int value"),
        (["--style", "named", "true"], "invalid choice"),
        (["--memory", "much", "true"], "invalid size value"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: list[str], text: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("tool", ["make 4.3", "make 4.4", "ninja"])
def test_a_build_has_as_many_jobs_as_slots(tool: str, tmp_path: Path) -> None:
    with sites.site(tmp_path) as site:
        command = [*PROGRAM, "-v", "-j", "3", "--", *site.build(tool, 5)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                site.await_jobs(3)
            finally:
                site.gate.open()
                _, err = process.communicate(timeout=PATIENCE)
                sys.stderr.write(err.decode())  # which pytest shows if this fails
        assert process.returncode == 0
        assert err == b"jobserver: 0 slots recovered\n"
        assert (site.peak(), site.done()) == (3, 5)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_are_passed_on(name: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    source = (
        "import pathlib, signal, sys\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(7))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "while True: signal.pause()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*PROGRAM, "-j", "1", "--", sys.executable, "-c", source]
    with subprocess.Popen(command, env=env, start_new_session=True) as process:
        await_file(ready)
        process.send_signal(getattr(signal, name))
        assert process.wait(PATIENCE) == 7


def test_status_tells_what_is_there() -> None:
    done = call("-j", "2", "--", *PROGRAM, "status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("joined: ")


@pytest.mark.parametrize(
    ("makeflags", "reason"),
    [
        (None, "absent"),
        ("kw", "not a jobserver"),
        ("--jobserver-auth=three", "malformed"),
        ("--jobserver-auth=-2,-2", "disabled"),
        ("--jobserver-auth=998,999", "bad descriptor"),
        ("--jobserver-auth=fifo:/dev/null", "not a pipe"),
        ("--jobserver-auth=fifo:/no/such/pipe", "cannot open"),
    ],
)
def test_status_tells_what_is_wrong(makeflags: Any, reason: str) -> None:
    done = call("status", env={"MAKEFLAGS": makeflags})
    assert done.returncode == 1
    assert done.stdout.startswith(f"{reason}: ")


def test_gates_hold_the_command_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    loads = [(9.0, 0.0, 0.0), (3.0, 0.0, 0.0), (2.5, 0.0, 0.0)]

    def load() -> tuple[float, float, float]:
        assert not ran.exists()
        return loads.pop(0)

    monkeypatch.setattr(os, "getloadavg", load)
    monkeypatch.setattr(command_line, "_PAUSE", 0.001)
    arguments = ["-j", "1", "--load", "3", "--memory", "1K", "--", "touch", str(ran)]
    assert command_line.main(arguments) == 0
    assert ran.exists()
    assert loads == []


def test_memory_is_what_the_kernel_says_is_available() -> None:
    assert command_line._above_memory(1)() == 0
    assert command_line._above_memory(1 << 60)() > 0
    assert command_line.size("3M") == 3 << 20
