"""docs/promises.md names files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text()
PROMISES = re.split(r"^## (?=\d)", PAGE, flags=re.MULTILINE)[1:]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def test_there_are_nine() -> None:
    assert [promise.partition(".")[0] for promise in PROMISES] == [str(n) for n in range(1, 10)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.partition(".")[0])
def test_what_a_promise_refers_to_exists(promise: str) -> None:
    for kind in ("kept by", "tests", "property tests"):
        assert f"| {kind} |" in promise
    path = None
    for word in re.findall(r"`([\w./]+)`", promise.partition("| |\n|---|---|\n")[2]):
        if "/" in word:
            path = ROOT / word
            assert path.is_file(), word
        else:
            assert path is not None
            assert word in names_in(path), f"{word} is not in {path.name}"
