"""Builds for the real tools, whose jobs are counted: each waits at a gate before it is done."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from tests import tools
from tests.work import PATIENCE, Gate

ROOT = Path(__file__).resolve().parents[1]

# Lines are appended in one write each, so their order is that in which things happened. In Python,
# as a shell that is interrupted just when it starts a program may go on.
_JOB = """#!{python} -SI
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
gate = os.open({gate!r}, os.O_RDWR)
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND)
os.write(log, f"+ {{sys.argv[1]}}\\n".encode())
os.read(gate, 1)
os.write(log, f"- {{sys.argv[1]}}\\n".encode())
"""


class Site:
    """Where builds are, with one log and one gate for the jobs of all of them."""

    def __init__(self, directory: Path, gate: Gate) -> None:
        self.directory = directory
        self.gate = gate
        self.log = directory / "log"
        self.job = directory / "job"
        self.log.touch()
        self.job.write_text(_JOB.format(python=sys.executable, log=str(self.log), gate=gate.path))
        self.job.chmod(0o755)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def await_jobs(self, count: int) -> None:
        """Wait until so many jobs have begun, or fail."""
        deadline = time.monotonic() + PATIENCE
        while (begun := sum(line.startswith("+") for line in self.lines())) < count:
            assert time.monotonic() < deadline, f"{begun} jobs of {count} have begun"
            time.sleep(0.002)

    def peak(self) -> int:
        """How many jobs were at work at once, at most."""
        now = most = 0
        for line in self.lines():
            now += 1 if line.startswith("+") else -1
            most = max(most, now)
        return most

    def done(self) -> int:
        return sum(line.startswith("-") for line in self.lines())

    def build(self, tool: str, jobs: int, name: str = "build") -> list[str]:
        """The command of a build of so many jobs. Skips the test if the tool is missing."""
        path = tools.need(tool)
        directory = self.directory / name
        directory.mkdir()
        return _BUILDS[tool](self, path, directory, jobs)


@contextlib.contextmanager
def site(directory: Path) -> Generator[Site, None, None]:
    with Gate(directory) as gate:
        yield Site(directory, gate)


def _make(site: Site, path: str, directory: Path, jobs: int) -> list[str]:
    names = [f"{directory.name}-{number}" for number in range(jobs)]
    targets = " ".join(names)
    text = f"all: {targets}\n.PHONY: all {targets}\n{targets}:\n\t@{site.job} $@\n"
    (directory / "Makefile").write_text(text)
    return [path, "-C", str(directory)]


def steps(make: str, directory: Path, commands: Sequence[Sequence[str]]) -> list[str]:
    """A make whose recipes are these commands, as makes or as what else shares its jobserver."""
    names = [f"step-{number}" for number in range(len(commands))]
    text = f"all: {' '.join(names)}\n.PHONY: all {' '.join(names)}\n"
    for name, command in zip(names, commands):
        text += f"{name}:\n\t+@{shlex.join(command).replace('$', '$$')}\n"
    directory.mkdir()
    (directory / "Makefile").write_text(text)
    return [tools.need(make), "-C", str(directory)]


def _ninja(site: Site, path: str, directory: Path, jobs: int) -> list[str]:
    text = f"rule job\n  command = {site.job} $out\n"
    text += "".join(f"build {directory.name}-{number}: job\n" for number in range(jobs))
    (directory / "build.ninja").write_text(text)
    return [path, "-C", str(directory)]


def _cargo(site: Site, path: str, directory: Path, jobs: int) -> list[str]:
    names = [f"{directory.name}-{number}" for number in range(jobs)]
    members = ", ".join(f'"{name}"' for name in names)
    (directory / "Cargo.toml").write_text(f'[workspace]\nresolver = "2"\nmembers = [{members}]\n')
    for name in names:
        (directory / name / "src").mkdir(parents=True)
        (directory / name / "src" / "lib.rs").write_text("pub fn f() {}\n")
        manifest = f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2018"\n'
        (directory / name / "Cargo.toml").write_text(manifest)
    wrapper = directory / "rustc"
    # It is asked for its version, too, and for much else; crates have an --out-dir.
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *--out-dir*) {site.job} "$3" || exit;; esac\nexec "$@"\n'
    )
    wrapper.chmod(0o755)
    manifest_path = str(directory / "Cargo.toml")
    return [
        *("env", f"RUSTC_WRAPPER={wrapper}", f"CARGO_TARGET_DIR={directory / 'target'}"),
        *(path, "build", "--quiet", "--offline", "--manifest-path", manifest_path),
    ]


def _gcc(site: Site, path: str, directory: Path, jobs: int) -> list[str]:
    names = [f"{directory.name}-{number}" for number in range(jobs)]
    sources = []
    for number, name in enumerate(names):
        source = directory / f"{name}.c"
        text = f"int f{number}(int x) {{ return x + {number}; }}\n"
        if not number:
            text += "".join(f"int f{other}(int);\n" for other in range(1, jobs))
            calls = " + ".join(f"f{other}(argc)" for other in range(jobs))
            text += f"int main(int argc, char **argv) {{ return argv && {calls} < 0; }}\n"
        source.write_text(text)
        sources.append(str(source))
    subprocess.run([path, "-flto", "-c", *sources], cwd=directory, check=True)
    real = subprocess.run([path, "-print-prog-name=lto1"], stdout=subprocess.PIPE, check=True)
    compiler = real.stdout.decode().strip()
    wrapper = directory / "lto1"
    # First it divides the whole; what runs side by side is what then becomes of the parts.
    wrapper.write_text(
        f'#!/bin/sh\ncase " $* " in *" -fltrans "*) {site.job} lto || exit;; esac\n'
        f'exec {compiler} "$@"\n'
    )
    wrapper.chmod(0o755)
    objects = [str(directory / f"{name}.o") for name in names]
    return [
        *("env", f"TMPDIR={directory}"),  # where it leaves its files when it is killed
        *(path, "-flto=jobserver", "-flto-partition=1to1", f"-B{directory}/"),
        *("-o", str(directory / "program"), *objects),
    ]


_BUILDS = {
    "make 4.3": _make,
    "make 4.4": _make,
    "ninja": _ninja,
    "cargo": _cargo,
    "gcc": _gcc,
}
