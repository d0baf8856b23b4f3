"""The table as a value: rows of cells and bars; kept as JSON, from which all else is drawn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """The median of the rounds' medians; of their ratios to the row's base, with quartiles."""

    value: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, rounds: Sequence[float], base: Sequence[float] | None = None) -> Cell:
        value = statistics.median(rounds)
        if not base:
            return cls(value)
        ratios = [mine / theirs for mine, theirs in zip(rounds, base)]
        ratio = statistics.median(ratios)
        if len(ratios) < 2 or rounds is base:
            return cls(value, ratio)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(value, ratio, low, high)


@dataclass(frozen=True)
class Bar:
    """What is promised of a row in one case, such as a start method; and what was measured."""

    case: str
    measured: float
    limit: float
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.measured <= self.limit

    def __str__(self) -> str:
        return f"{self.case} {written(self.measured, self.unit)} {'✓' if self.met else '✗'}"


@dataclass(frozen=True)
class Row:
    """A titled part of the table: a line of cells for each contestant or case."""

    name: str
    title: str
    bar: str  # in words
    unit: str
    columns: list[str]
    lines: dict[str, list[Cell | None]] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    machine: dict[str, str]
    rows: list[Row]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Table:
        content: Any = json.loads(path.read_text())
        return cls(content["machine"], [_row(row) for row in content["rows"]])


def _row(row: Any) -> Row:
    lines = {
        label: [None if cell is None else Cell(**cell) for cell in cells]
        for label, cells in row.pop("lines").items()
    }
    bars = [Bar(**bar) for bar in row.pop("bars")]
    return Row(**row, lines=lines, bars=bars)


def written(value: float, unit: str) -> str:
    """A figure of a row: a ratio (x), seconds (s), percent (%) or kibibytes (KiB)."""
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "%":
        return f"{value:.3f} %"
    if unit == "KiB":
        return f"{value / 1024:.1f} MiB"
    if value < 1e-3:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def as_text(table: Table) -> str:
    """The whole table, for a terminal."""
    rows = [(row, _texts(row)) for row in table.rows]
    label_width = max((len(label) for row in table.rows for label in row.lines), default=0) + 2
    cells = [cell for _, lines in rows for line in lines.values() for cell in line]
    width = max(map(len, cells), default=0) + 2
    text = [f"{name}: {value}" for name, value in table.machine.items()]
    for row, lines in rows:
        text += ["", f"{row.title} ({row.bar})"]
        for label, line in {"": row.columns, **lines}.items():
            padded = f"  {label:{label_width}}" + "".join(f"{cell:{width}}" for cell in line)
            text.append(padded.rstrip())
        if row.bars:
            text.append("  " + ", ".join(map(str, row.bars)))
    return "\n".join(text)


def _texts(row: Row) -> dict[str, list[str]]:
    return {
        label: ["" if cell is None else _text(cell, row.unit) for cell in cells]
        for label, cells in row.lines.items()
    }


def _text(cell: Cell, unit: str) -> str:
    text = written(cell.value, unit)
    if cell.ratio is not None:
        text += f" {cell.ratio:.2f}x"
    if cell.low is not None:
        text += f" ({cell.low:.2f}-{cell.high:.2f})"
    return text


# What the project's README shows: a row, our contestant, and the one that it is compared with.
HEADLINES = (
    ("one call at a time", "latency", "jobserver, reused", "ProcessPoolExecutor"),
    ("many calls, as completed", "many", "executor, reused", "ProcessPoolExecutor"),
    ("many calls, as completed", "many", "executor, reused", "Pool"),
    ("64 MiB array as argument", "array there", "executor, reused", "ProcessPoolExecutor"),
    ("fresh worker", "fresh in turn", "jobserver, fresh", "bare Process"),
)


def headlines(table: Table) -> str:
    """Five rows as ratios, ours to the peer's, with both named."""
    rows = {row.name: row for row in table.rows}
    lines = ["| what | ours ÷ peer | fork | forkserver | spawn |", "|---|---|---|---|---|"]
    for title, name, ours, peer in HEADLINES:
        ratios = [
            written(mine.value / theirs.value, "x") if mine and theirs else ""
            for mine, theirs in zip(rows[name].lines[ours], rows[name].lines[peer])
        ]
        lines.append(f"| {title} | {ours} ÷ {peer} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def as_markdown(table: Table, picture: str) -> str:
    """All of it: the bars, and the figures side by side under one start method."""
    machine = "; ".join(f"{name} {value}" for name, value in table.machine.items())
    lines = [
        f"![The benchmark's table as a picture]({picture})",
        "",
        f"Measured on one machine: {machine}.",
        "",
        "| what | bar | measured |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row.title} | {row.bar} | {', '.join(map(str, row.bars))} |"
        for row in table.rows
        if row.bars
    ]
    for method in ("fork", "spawn"):
        lines += ["", *_side_by_side(table, method)]
    return "\n".join(lines)


def _side_by_side(table: Table, method: str) -> list[str]:
    rows = [row for row in table.rows if method in row.columns]
    labels = list(dict.fromkeys(label for row in rows for label in row.lines))
    lines = [f"| {method} | " + " | ".join(row.name for row in rows) + " |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    for label in labels:
        cells: list[str] = []
        for row in rows:
            line = row.lines.get(label)
            cell = None if line is None else line[row.columns.index(method)]
            cells.append("" if cell is None else written(cell.value, row.unit))
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines
