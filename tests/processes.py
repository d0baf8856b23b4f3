"""What the tests do with processes from outside: run programs, look at states, count slots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import pytest

from jobserver import Blocked, Future, Jobserver
from tests.work import PATIENCE, Gate, await_file, touch_and_pass_gate

Argument = Union[str, int, float]  # what repr gives back

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = 150.0  # seconds a program may take; most take one


def run_program(
    program: Callable[..., object], *args: Argument, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a module-level function in an interpreter of its own, which must end with `status`.

    What it prints is read to the end, which comes only when every process that inherited the
    output is gone: a program that leaves one behind is not back in time.
    """
    source = f"from {program.__module__} import {program.__name__} as run; run(*{args!r})"
    return run_command([sys.executable, "-c", source], program.__name__, status=status)


def run_command(
    command: Sequence[str],
    name: str,
    *,
    status: int = 0,
    env: Optional[Mapping[str, str]] = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command, called `name` should it fail, in a session of its own, as `run_program`."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PROGRAM)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{name} or what it started did not end\n{out}\n{err}")
    assert process.returncode == status, f"{process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, status, out, err)


def pid_of(future: Future[Any]) -> int:
    """The worker's process id, from the one public place that tells it."""
    found = re.search(r"pid=(\d+)", repr(future))
    assert found is not None, f"{future!r} tells no pid"
    return int(found.group(1))


def state_of(pid: int) -> str:
    """The letter that ps(1) shows for the process; "Z" too for one that is gone altogether."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def await_state(pid: int, *states: str) -> None:
    """Wait until the process is in one of these states, or fail.

    The kernel announces none of them; the look repeats quickly and is bounded.
    """
    deadline = time.monotonic() + PATIENCE
    while state_of(pid) not in states:
        assert time.monotonic() < deadline, f"process {pid} is {state_of(pid)}, not {states}"
        time.sleep(0.002)


def await_blocked(pid: int) -> None:
    """Wait until the process sleeps and does nothing, as one does that writes to a full pipe."""
    deadline = time.monotonic() + PATIENCE
    quiet, last = 0, ""
    while quiet < 10:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        look = " ".join((fields[0], fields[11], fields[12]))  # state, user and system time
        quiet = quiet + 1 if look == last and fields[0] == "S" else 0
        last = look
        assert time.monotonic() < deadline, f"process {pid} does not come to rest"
        time.sleep(0.01)


def check_slots(js: Jobserver, slots: int, directory: Path) -> None:
    """Fail unless exactly `slots` submissions run at once on the otherwise idle tree."""
    directory.mkdir()
    with Gate(directory) as gate:
        futures: list[Future[Any]] = []
        for number in range(slots):
            mark = str(directory / str(number))
            futures.append(js.submit(touch_and_pass_gate, args=(mark, gate.path), timeout=PATIENCE))
            await_file(mark)
        with pytest.raises(Blocked):
            futures.append(js.submit(touch_and_pass_gate, args=("", gate.path), timeout=0))
        gate.open()
        for future in futures:
            assert future.wait(PATIENCE)
