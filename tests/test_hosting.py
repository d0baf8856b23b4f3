"""Our slots for the real tools: how many jobs run at once, and what becomes of the slots."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobserver import Blocked, Jobserver
from jobserver.sharing import Share
from tests import sites, tools
from tests.processes import ROOT, check_slots
from tests.work import PATIENCE, Gate, add, pass_gate

LONG = 120.0  # seconds; a build of a dozen jobs takes a few


def check_full(js: Jobserver) -> None:
    with pytest.raises(Blocked):
        js.submit(add, args=(1, 2), timeout=0)


def check_output(done: subprocess.CompletedProcess[str]) -> None:
    """It went well, and nobody complains of the jobserver."""
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "INTERNAL" not in done.stderr
    assert "jobserver" not in done.stderr, done.stderr


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("tool", tools.TOOLS)
def test_a_tool_uses_all_slots_and_no_more(tool: str, slots: int, tmp_path: Path) -> None:
    jobs = slots + 2
    with Jobserver("fork", slots) as js, sites.site(tmp_path) as site:
        command = site.build(tool, jobs)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            run = threads.submit(js.run, command, capture_output=True, text=True)
            try:
                site.await_jobs(slots)
                check_full(js)
            finally:
                site.gate.open()
            check_output(run.result(LONG))
        assert site.peak() == slots
        assert site.done() == jobs
        check_slots(js, slots, tmp_path / "check")
        assert "recovered" not in repr(js)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("tool", tools.TOOLS)
def test_a_tool_is_killed_with_all_that_it_runs(
    tool: str, signum: signal.Signals, tmp_path: Path
) -> None:
    """As by ^C on a terminal: some tools put back what they hold, and some do not."""
    slots = 3
    with Jobserver("fork", slots) as js, sites.site(tmp_path) as site:
        command = site.build(tool, slots + 2)
        with js.share(tool_style(tool)) as shared, start(command, shared) as process:
            site.await_jobs(slots)
            check_full(js)
            os.killpg(process.pid, signum)
            process.wait(PATIENCE)
        site.gate.open()  # for the jobs of ninja, which are in process groups of their own
        check_slots(js, slots, tmp_path / "check")


# Not gcc, whose make outlives it, and goes on with the build.
@pytest.mark.parametrize("tool", ["make 4.3", "make 4.4", "ninja", "cargo"])
def test_what_a_killed_tool_held_comes_back_with_its_last_orphan(tool: str, tmp_path: Path) -> None:
    slots = 3
    with Jobserver("fork", slots) as js, sites.site(tmp_path) as site:
        command = site.build(tool, slots + 2)
        with js.share(tool_style(tool)) as shared, start(command, shared) as process:
            site.await_jobs(slots)
            process.kill()
            process.wait(PATIENCE)
        # The slot of the command itself is back. What the orphans run on is not.
        assert js.submit(add, args=(1, 2), timeout=0).result() == 3
        with Gate(tmp_path, "held") as held:
            future = js.submit(pass_gate, args=(held.path,), timeout=0)
            check_full(js)
            site.gate.open()
            held.open()
            assert future.wait(PATIENCE)
        check_slots(js, slots, tmp_path / "check")
        assert f"recovered={slots - 1}" in repr(js)


@pytest.mark.parametrize("mixed", [("make 4.4", "ninja"), ("make 4.4", "ninja", "cargo", "gcc")])
def test_a_mixed_pool_of_build_tools_and_python(mixed: tuple[str, ...], tmp_path: Path) -> None:
    slots = 4
    with Jobserver("fork", slots) as js, sites.site(tmp_path) as site:
        commands = [site.build(tool, 4, tool.split()[0]) for tool in mixed]
        with concurrent.futures.ThreadPoolExecutor(len(commands) + 1) as threads:
            runs = [
                threads.submit(js.run, command, capture_output=True, text=True)
                for command in commands
            ]
            python = threads.submit(lambda: list(js.map(run_job, [(str(site.job),)] * 4)))
            try:
                site.await_jobs(slots)
                check_full(js)
            finally:
                site.gate.open()
            for run in runs:
                check_output(run.result(LONG))
            assert python.result(LONG) == [0] * 4
        assert site.peak() == slots
        assert site.done() == 4 * (len(mixed) + 1)
        check_slots(js, slots, tmp_path / "check")


@pytest.mark.thorough
@pytest.mark.parametrize("inner", tools.MAKES)
@pytest.mark.parametrize("outer", tools.MAKES)
def test_python_make_python_make(outer: str, inner: str, method: str, tmp_path: Path) -> None:
    """Four deep: a make of ours, whose recipes are Python that joins it, and runs makes."""
    slots = 3
    with Jobserver(method, slots) as js, sites.site(tmp_path) as site:
        source = "import sys; from tests.test_hosting import run_joined as run; run(*sys.argv[1:])"
        steps = [
            [sys.executable, "-c", source, method, *site.build(inner, 3, f"inner-{number}")]
            for number in range(3)
        ]
        command = sites.steps(outer, tmp_path / "outer", steps)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            run = threads.submit(
                js.run,
                command,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            try:
                site.await_jobs(slots)
                check_full(js)
            finally:
                site.gate.open()
            check_output(run.result(LONG))
        assert site.peak() == slots
        assert site.done() == 9
        check_slots(js, slots, tmp_path / "check")


def run_joined(method: str, *command: str) -> None:
    """A step of a make: run a command on what that make shares, from the program and from work."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Jobserver.from_environ(method) as js:
            assert js(run_command, js, command).result() == 0


def run_command(js: Jobserver, command: Sequence[str]) -> int:
    return js.run(command).returncode


def run_job(job: str) -> int:
    return subprocess.run([job, "python"], check=False).returncode


def tool_style(tool: str) -> Any:
    """Of a share, which does not know what for."""
    return "pipe" if tool in ("make 4.3", "gcc") else "fifo"


@contextlib.contextmanager
def start(command: Sequence[str], shared: Share) -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        command,
        env=shared.env,
        pass_fds=shared.pass_fds,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
