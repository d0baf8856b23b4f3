"""A Python step in a Makefile: its work and the rest of the build together run no more than -jN.

`Jobserver()` joins the jobserver of the make that runs it. This program writes a Makefile with two
steps that each run it again, and a few jobs beside them; has make run it all with -j3; and counts
how many jobs ran at once. The + in a recipe has make share its jobserver with it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobserver import Jobserver, NoJobserver

MAKEFILE = """\
all: left right one two three
left right:
\t+@$(PROGRAM) --step $@
one two three:
\t@$(PROGRAM) --alone
"""
JOBS = 3
LOG = Path("log")


def compress(number: int) -> int:
    """What takes its time; it notes when it began and ended."""
    begun = time.monotonic()
    time.sleep(0.02)
    with LOG.open("a") as log:
        log.write(f"{begun} {time.monotonic()}\n")
    return number


def step(name: str) -> None:
    """What a recipe runs."""
    with Jobserver() as js:
        assert js.slots == JOBS, "make -j3 says how many there are"
        done = list(js.map(compress, [(number,) for number in range(8)]))
    print(f"{name}: {len(done)} files, beside whatever else make runs")


def most_at_once(log: Path) -> int:
    changes: list[tuple[float, int]] = []
    for line in log.read_text().splitlines():
        begun, ended = map(float, line.split())
        changes += [(begun, 1), (ended, -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def build(make: str) -> None:
    """Have make run the steps, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Makefile").write_text(MAKEFILE)
        program = f"PROGRAM='{sys.executable}' '{Path(__file__).resolve()}'"
        environ = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
        command = [make, "--silent", f"-j{JOBS}", program]
        subprocess.run(command, cwd=folder, env=environ, check=True)
        most = most_at_once(Path(folder, LOG))
    assert most <= JOBS
    print(f"19 jobs, of two steps and of make itself: never more than {JOBS} at once")


def main() -> None:
    make = shutil.which("make")
    if make is None or sys.platform != "linux":
        print("skipped: it needs make, and Linux")
        return
    build(make)

    # Who insists on sharing says so. Without a make around it, this program has nothing to join.
    if "MAKEFLAGS" not in os.environ:
        try:
            Jobserver.from_environ()
        except NoJobserver as error:
            print("outside of make:", error)


if __name__ == "__main__":
    if "--step" in sys.argv:
        step(sys.argv[-1])
    elif "--alone" in sys.argv:
        compress(0)
    else:
        main()
