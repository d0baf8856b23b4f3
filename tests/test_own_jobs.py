"""What takes a build out of the pool, and the warning of it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobserver import own_jobs
from tests import tools
from tests.processes import ROOT


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("make", []),
        ("make -j8", ["make -j8"]),
        ("/usr/bin/gmake-4.4 -C x -kj 8 all", ["gmake-4.4 -kj 8"]),
        ("make -j", ["make -j"]),
        ("make -j all", ["make -j"]),
        ("make --jobs=8", ["make --jobs=8"]),
        ("make -j1", []),
        ("make -j 1", []),
        ("make CFLAGS=-j8", []),
        ("make -- -j8", []),
        ("ninja -j 4", ["ninja -j 4"]),
        ("cmake --build b --parallel 8", ["cmake --parallel 8"]),
        ("cmake --build b -- -j8", ["cmake -j8"]),
        ("meson compile -C b -j 3", ["meson -j 3"]),
        ("cargo build -j8", []),  # it says so itself, and ignores it
        ("env A=b nice -n 5 make -j8", ["make -j8"]),
        ("timeout 60 ninja -j8", ["ninja -j8"]),
        ("echo make -j8", []),
        ("sh -c 'cd x && make -j8; ninja'", ["make -j8"]),
        ("bash -ec 'make -j8 | tee log'", ["make -j8"]),
        ("sh -c 'echo \"make -j8\"; gcc -j8'", []),
        ('sh -c "it\'s unbalanced" make -j8', []),
        ("sh ./build.sh -j8", []),
        ("python -j8", []),
    ],
)
def test_numbers_of_a_command(command: str, found: list[str]) -> None:
    assert own_jobs.find(shlex.split(command), {}) == found


@pytest.mark.parametrize(
    ("name", "value", "takes_out"),
    [
        ("CMAKE_BUILD_PARALLEL_LEVEL", "8", True),
        ("CMAKE_BUILD_PARALLEL_LEVEL", "1", False),
        ("CMAKE_BUILD_PARALLEL_LEVEL", "", False),
        ("CARGO_BUILD_JOBS", "8", True),
        ("NINJAFLAGS", "-v -j 8", True),
        ("NINJAFLAGS", "-v", False),
        ("GNUMAKEFLAGS", "-j8", True),
        ("MAKEFLAGS", "-j8", False),  # which is replaced
    ],
)
def test_numbers_of_the_environment(name: str, value: str, takes_out: bool) -> None:
    assert own_jobs.find(["true"], {name: value}) == [f"{name}={value}"] * takes_out


def test_it_is_told_once_and_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n\t@echo built\n")
    command = [tools.need("make 4.3"), "-s", "-j3", "-C", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CMAKE_BUILD_PARALLEL_LEVEL": "8"}
    done = subprocess.run(
        [sys.executable, "-m", "jobserver", "-j", "2", "--", *command],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "built\n"
    told = [line for line in done.stderr.splitlines() if line.startswith("jobserver: ")]
    assert len(told) == 1
    assert told[0].startswith("jobserver: make -j3, CMAKE_BUILD_PARALLEL_LEVEL=8: this takes")
