"""The environments that the contestants run in: made once, kept in `.benchmarks/` of the checkout.

Each contestant that has to be installed has one of its own: two packages are called jobserver, and
one that cannot be installed is missing from the table, and nothing else.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = CHECKOUT / ".benchmarks"

REQUIREMENTS = {
    # This checkout, linked in where pip would have put it, and the standard library's pools.
    "ours": ["attrs", "numpy"],
    "namesake": ["jobserver==3.0.1", "numpy"],
    "loky": ["loky", "numpy"],
    "mpire": ["mpire", "numpy"],
    "pebble": ["pebble", "numpy"],
    "picture": ["matplotlib"],
}


class MissingError(Exception):
    """The environment cannot be made; the message says why."""


@functools.cache
def python(name: str) -> Path:
    """The interpreter of an environment, which is made when it is not there yet."""
    home = CACHE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = home / "bin" / "python"
    stamp = home / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[name]) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"setting up {home}: {' '.join(REQUIREMENTS[name])}", file=sys.stderr)
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        _run(str(interpreter), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name])
        if name == "ours":
            where = "import sysconfig; print(sysconfig.get_path('purelib'))"
            packages = Path(_run(str(interpreter), "-c", where).strip())
            (packages / "jobserver").symlink_to(CHECKOUT / "jobserver")
        stamp.write_text(wanted)  # last, so that half an environment is made anew
    return interpreter


@functools.cache
def why_missing(name: str) -> str | None:
    """Make the environment, if it is not there: why that cannot be, or None."""
    try:
        python(name)
    except (MissingError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return str(error)
    return None


def variables() -> dict[str, str]:
    """The variables of this process, less those that would make one environment unlike another.

    Without bytecode files this checkout would be compiled anew in every worker, which the
    packages that pip installed, and compiled, are spared.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def contents(name: str) -> list[str]:
    """What pip has put into an environment: names and versions."""
    if why_missing(name) is not None:
        return []
    frozen = _run(str(python(name)), "-m", "pip", "--disable-pip-version-check", "freeze")
    return [line.replace("==", " ") for line in frozen.splitlines()]


def _run(*command: str) -> str:
    done = subprocess.run(command, env=variables(), capture_output=True, check=False, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise MissingError(f"{' '.join(command[1:])}: {last}")
    return done.stdout
