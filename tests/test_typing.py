"""The type checkers agree with what `tests/typing` says, and find nothing in the package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("jobserver", "tests/typing")
LIMIT = 200  # seconds; below the watchdog's, so that what the checker said is shown


def check(*command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def test_mypy_strict() -> None:
    needs("mypy")
    check("mypy", "--strict", "--no-incremental", f"--cache-dir={os.devnull}", *CHECKED)


def test_pyright_strict(tmp_path: Path) -> None:
    needs("pyright")
    project = tmp_path / "pyrightconfig.json"
    project.write_text(
        json.dumps(
            {
                "include": [os.path.relpath(ROOT / path, tmp_path) for path in CHECKED],
                "extraPaths": [str(ROOT)],
                "stubPath": str(ROOT / "typings"),
                "typeCheckingMode": "strict",
            }
        )
    )
    # Without the interpreter of this run, pyright looks for the packages of any it finds.
    check("pyright", "--project", str(project), "--pythonpath", sys.executable)
