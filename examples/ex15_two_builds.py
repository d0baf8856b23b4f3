"""A driver that runs two builds under one limit: together they have no more jobs than slots.

`js.run` is `subprocess.run` on a slot. A make, ninja or cargo that it runs takes further slots as
others leave them, without -j. Work of Python on the same Jobserver takes its part.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from jobserver import Jobserver

SLOTS = 3
MAKEFILE = """\
all: one two three four five
one two three four five:
\t@$(JOB) $@
"""


def job(log: str, name: str) -> str:
    """What takes its time; it notes when it began and ended."""
    begun = time.monotonic()
    time.sleep(0.02)
    with open(log, "a") as lines:
        lines.write(f"{begun} {time.monotonic()} {name}\n")
    return name


def build(js: Jobserver, make: str, folder: str, log: str) -> int:
    """Run a build on the slot of this work, and on what others are free."""
    program = f"{sys.executable} {Path(__file__).resolve()} --job {log}"
    return js.run(
        [make, "-C", folder, f"JOB={program}"], capture_output=True, check=True
    ).returncode


def most_at_once(log: str) -> int:
    changes: list[tuple[float, int]] = []
    for line in Path(log).read_text().splitlines():
        begun, ended = map(float, line.split()[:2])
        changes += [(begun, 1), (ended, -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def main() -> None:
    make = shutil.which("make")
    if make is None:
        print("there is no make here to run")
        return
    with tempfile.TemporaryDirectory() as place:
        log = str(Path(place) / "log")
        folders = [Path(place) / name for name in ("kernel", "drivers")]
        for folder in folders:
            folder.mkdir()
            (folder / "Makefile").write_text(MAKEFILE)
        with Jobserver(slots=SLOTS) as js:
            builds = [js(build, js, make, str(folder), log) for folder in folders]
            named = list(js.map(job, [(log, name) for name in ("docs", "notes")]))
            assert named == ["docs", "notes"]
            assert [each.result() for each in builds] == [0, 0]
        done = len(Path(log).read_text().splitlines())
        assert done == 2 * 5 + 2, done
        assert 1 <= most_at_once(log) <= SLOTS
        print(f"two builds and Python: {done} jobs, at most {most_at_once(log)} at once")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(*sys.argv[2:])
    else:
        main()
