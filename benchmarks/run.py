"""Measure jobserver beside its peers and print one table: `python benchmarks/run.py`."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

import environments
from rows import METHODS, ROWS, Options
from table import Row, Table, as_markdown, as_text, headlines

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PICTURE = HERE / "results.png"
TABLES = HERE / "README.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(ROWS), help="only this row (repeatable)"
    )
    parser.add_argument(
        "--method", action="append", choices=METHODS, help="only this start method (repeatable)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (9)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the waits (10)")
    parser.add_argument("--quick", action="store_true", help="three rounds, small numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, as JSON")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="write results.json, results.png, and the parts of both READMEs",
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; draw from results.json once more"
    )
    arguments = parser.parse_args()
    if arguments.draw:
        _draw(Table.load(RESULTS))
        return
    methods = tuple(arguments.method or METHODS)
    options = Options(arguments.rounds, arguments.seconds, methods=methods)
    if arguments.quick:
        options = Options(3, 1.0, quick=True, methods=methods)
    table = Table(_machine(options), [])
    for name in arguments.only or ROWS:
        row = _measured(name, options)
        if row is not None:
            table.rows.append(row)
    print(as_text(table))
    if arguments.json is not None:
        table.save(arguments.json)
    if arguments.keep:
        table.save(RESULTS)
        _draw(table)


def _measured(name: str, options: Options) -> Row | None:
    """A row; None if it could not be measured, which costs no other."""
    try:
        return ROWS[name](options)
    except Exception as error:
        print(f"{name}: {error!r}", file=sys.stderr)
        return None


def _draw(table: Table) -> None:
    """The picture, the tables beside it, and the lines of the project's README."""
    if environments.why_missing("picture") is None:
        python = environments.python("picture")
        command = [str(python), str(HERE / "picture.py"), str(RESULTS), str(PICTURE)]
        subprocess.run(command, env=environments.variables(), check=True)
    _replace_part(TABLES, as_markdown(table, PICTURE.name))
    _replace_part(README, headlines(table))


def _replace_part(path: Path, part: str) -> None:
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{part}\n{END}{after}", encoding="utf-8")


def _machine(options: Options) -> dict[str, str]:
    """When and on what: no figure means anything without it."""
    now = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    names = {
        name.partition("=")[0]
        for packages in environments.REQUIREMENTS.values()
        for name in packages
    }
    peers = {
        package
        for environment in environments.REQUIREMENTS
        if environment != "picture"
        for package in environments.contents(environment)
        if package.split()[0].lower() in names
    }
    return {
        "date": now,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "peers": ", ".join(sorted(peers)),
        "rounds": str(options.rounds),
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
