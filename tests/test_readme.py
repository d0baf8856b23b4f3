"""What the README prints and refers to is there."""

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


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_diagram_is_that_of_the_table() -> None:
    assert fenced("mermaid") == [lifecycle.diagram() + "\n"]


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


def test_the_programs_run(tmp_path: Path) -> None:
    for number, program in enumerate(fenced("python")):
        path = tmp_path / f"program{number}.py"
        path.write_text(program)
        done = subprocess.run(
            [sys.executable, "-W", "error", str(path)],
            env={"PYTHONPATH": str(ROOT)},
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        # The output that a comment beside a print promises.
        promised = re.findall(r"print\(.*\)  # ([^,\n]+(?:\[.*\])?)", program)
        for text in promised:
            assert text in done.stdout


def test_the_figures_are_those_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("table")
    part = README.partition("<!-- benchmarks: begin -->\n")[2]
    drawn, end, _ = part.partition("\n<!-- benchmarks: end -->")
    assert end
    kept = table.Table.load(ROOT / "benchmarks" / "results.json")
    assert drawn == table.as_markdown(kept, "benchmarks/results.png")


def test_what_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 20
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_example_is_listed() -> None:
    for path in (ROOT / "examples").glob("ex*.py"):
        assert f"(examples/{path.name})" in README
