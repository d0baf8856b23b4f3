"""Commands that try to break the library: `python -m jobserver.testing chaos`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Optional


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command; its exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chaos = commands.add_parser("chaos", help="kill processes of trees, and count what is lost")
    chaos.add_argument("--minutes", type=float, default=10.0, help="how long; default: 10")
    chaos.add_argument(
        "--start-method",
        choices=("fork", "spawn", "forkserver"),
        action="append",
        help="how workers are started (repeatable); default: each in turn, for --minutes each",
    )
    chaos.add_argument("--seed", help="repeats decisions, though not their timing; default: new")
    chaos.add_argument("--slots", type=int, help="default: 1 to 4, by the round")
    options = parser.parse_args(arguments)
    from .chaos import Chaos

    status = 0
    for method in options.start_method or ("fork", "spawn", "forkserver"):
        status |= Chaos(method, options.minutes * 60, options.seed, options.slots).run()
    return status


if __name__ == "__main__":
    sys.exit(main())
