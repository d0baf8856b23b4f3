"""What the site takes from elsewhere in the checkout: the examples, and documents at the top."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parent.parent
BLOB = "blob/main/"  # below the repository's address: a file that has no page of its own

# Documents that are kept at the top of the checkout, where people look for them.
PAGES = {"architecture.md": "ARCHITECTURE.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: MkDocsConfig) -> None:
    """Name the examples' pages in the navigation."""
    for part in config.nav or []:
        if isinstance(part, dict) and "Examples" in part:
            part["Examples"] = [f"examples/{path.stem}.md" for path in _examples()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each example, and for each document at the top."""
    for path in _examples():
        files.append(File.generated(config, f"examples/{path.stem}.md", content=_example(path)))
    for page, document in PAGES.items():
        text = (ROOT / document).read_text()
        files.append(File.generated(config, page, content=_rebased(text, config)))


def _examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("ex*.py"))


def _example(path: Path) -> str:
    source = path.read_text()
    summary = (ast.get_docstring(ast.parse(source)) or path.stem).partition("\n")[0]
    title = path.stem.partition("_")[2].replace("_", " ").capitalize()
    return (
        f"# {title}\n\n{summary}\n\n"
        f"Run it with `python examples/{path.name}`. It asserts what it shows.\n\n"
        f"```python\n{source}```\n"
    )


def _rebased(text: str, config: MkDocsConfig) -> str:
    """The text with links to files of the checkout leading to the repository."""

    def target(match: re.Match[str]) -> str:
        place = match[1]
        if "://" in place or place.startswith("#"):
            return match[0]
        return f"]({config.repo_url}/{BLOB}{place})"

    return re.sub(r"\]\(([^)]+)\)", target, text)
