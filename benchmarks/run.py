"""Measure jobserver beside its peers and print one table: `python benchmarks/run.py`."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
from pathlib import Path

import environments
from rows import ROWS, Options, Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the waits (10)")
    parser.add_argument(
        "--only", action="append", choices=list(ROWS), help="only this row (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, small numbers")
    arguments = parser.parse_args()
    options = Options(arguments.rounds, arguments.seconds, quick=False)
    if arguments.quick:
        options = Options(rounds=3, seconds=1.0, quick=True)
    heading = _heading(options)
    rows = [ROWS[name](options) for name in arguments.only or ROWS]
    print("\n".join(heading + _table(rows)))


def _heading(options: Options) -> list[str]:
    """When and on what: no figure means anything without it."""
    now = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    load = f"load {os.getloadavg()[0]:.2f} at the start"
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        ", ".join([now, _processor(), f"{os.cpu_count()} processors", load]),
        ", ".join([interpreter, f"{platform.system()} {platform.release()}"]),
        f"{options.rounds} rounds",
        *(f"{name}: {environments.contents(name)}" for name in environments.REQUIREMENTS),
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


def _table(rows: list[Row]) -> list[str]:
    label_width = max(len(label) for row in rows for label in row.lines) + 2
    width = max(len(cell) for row in rows for cells in row.lines.values() for cell in cells) + 2
    text: list[str] = []
    for row in rows:
        text += ["", f"{row.title} ({row.promise})"]
        for label, cells in {"": row.columns, **row.lines}.items():
            line = f"  {label:{label_width}}" + "".join(f"{cell:{width}}" for cell in cells)
            text.append(line.rstrip())
    return text


if __name__ == "__main__":
    main()
