"""Programs in the README and the guide run and print what they say; links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "examples/README.md", "property_tests/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def programs() -> list[object]:
    """Each fenced block of Python, named after its page and its number there."""
    return [
        pytest.param(program, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, program in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        )
    ]


@pytest.mark.parametrize("program", programs())
def test_a_program_runs_and_prints_what_it_says(program: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
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
    promised = re.findall(r"print\(.*\)  # (.+)", program)
    assert promised, "a program shows what it prints"
    assert [line.strip() for line in promised] == done.stdout.splitlines()[: len(promised)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    made = {"architecture.md", "changelog.md"}  # by docs/hooks.py
    for link in links:
        assert link in made or (page.parent / link).exists(), link


def test_every_example_is_listed() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    for path in (ROOT / "examples").glob("ex*.py"):
        assert f"({path.name})" in listed
