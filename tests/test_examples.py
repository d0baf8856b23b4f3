"""The examples run as they stand, silently and cleanly, under every start method."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(ROOT.joinpath("examples").glob("ex*.py"))
# The others choose their start methods themselves.
OF_ANY_METHOD = [path for path in EXAMPLES if "Jobserver(method" not in path.read_text("utf-8")]
TIMEOUT = 120.0  # seconds; each takes a few

# Runs a program as `python program` does, but with another default start method.
WITH_START_METHOD = """
import multiprocessing, runpy, sys
multiprocessing.set_start_method(sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def run(*command: str) -> None:
    """Run Python strictly: it has to succeed, to warn of nothing and to leave nothing behind."""
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            # Ends only when every process that inherited the pipes has ended, so that a worker
            # which outlives its program fails the test as a hang.
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as expired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            raise AssertionError(f"still running after {TIMEOUT} s:\n{output}{errors}") from expired
        assert process.returncode == 0, errors
        assert errors == ""
        assert output
        assert os.listdir(scratch) == []


def test_every_topic_has_its_example() -> None:
    assert [path.name[:5] for path in EXAMPLES] == [f"ex{number:02}_" for number in range(1, 17)]


@pytest.mark.thorough
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs_by_itself(path: Path) -> None:
    run(str(path))


@pytest.mark.parametrize("path", OF_ANY_METHOD, ids=lambda path: path.stem)
def test_runs_under_every_start_method(method: str, path: Path) -> None:
    run("-c", WITH_START_METHOD, method, str(path))
