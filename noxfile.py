"""The tests under each CPython that this machine has, and the mutants."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]

nox.needs_version = ">=2025.5.1"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # nor where CI is set: it skips them
nox.options.reuse_venv = "yes"


def _show_pyenv_to_nox() -> None:
    """Put the interpreters that pyenv built on PATH, before the shims.

    A shim stands for every version that was ever built, but fails for one that is not selected.
    """
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [str(path.parent) for path in root.glob("versions/3.*/bin/python3.*[0-9]")]
    os.environ["PATH"] = os.pathsep.join([*sorted(found), os.environ["PATH"]])


_show_pyenv_to_nox()


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, and the property tests over a few schedules; or pytest as told after `--`."""
    session.install("--quiet", "--editable", ".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "auto", "--all"]))


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Try the mutants of the modules that are told after `--`, or of all, in a copy of the tree."""
    tree = Path(session.virtualenv.location, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(".", tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "dist"))
    session.install("--quiet", "--editable", f"{tree}[mutants]")
    session.chdir(tree)
    session.run("python", "-m", "property_tests.mutants", *session.posargs)
