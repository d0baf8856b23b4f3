"""The README is short, and what it and ARCHITECTURE print is what the project has."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobserver import lifecycle

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", ARCHITECTURE, re.DOTALL)


def test_the_diagram_is_that_of_the_table() -> None:
    assert lifecycle.diagram() + "\n" in fenced("mermaid")


def test_the_diagram_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobserver.lifecycle"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == (lifecycle.diagram() + "\n", "")


def test_the_figures_are_those_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("table")
    kept = table.Table.load(ROOT / "benchmarks" / "results.json")
    assert drawn_in(README) == table.headlines(kept)
    tables = (ROOT / "benchmarks" / "README.md").read_text()
    assert drawn_in(tables) == table.as_markdown(kept, "results.png")


def drawn_in(text: str) -> str:
    part = text.partition("<!-- benchmarks: begin -->\n")[2]
    drawn, end, _ = part.partition("\n<!-- benchmarks: end -->")
    assert end
    return drawn


def test_it_is_short() -> None:
    before_the_links = README.partition("\n## More\n")[0]
    assert len(re.findall(r"\w[\w'.-]*", re.sub(r"\]\([^)]*\)", "]", before_the_links))) <= 700
