"""Steps of real builds: make of either kind runs programs that join its jobserver.

Each make that ends looks whether all of its tokens are back, and complains of a single one that is
missing or too many ("INTERNAL: Exiting with ..."): so nothing may be on its standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from jobserver.cpus import usable_cpus
from tests import tools
from tests.builds import most_at_once
from tests.processes import ROOT, run_command

PYTHON = "$(PYTHON) -c 'from tests.builds import *; "

# Two steps of eight jobs each, and four jobs of make's own. Each step prints one line.
# The + is not in a variable: only make 4.3 would see it there.
MAKEFILE = f"""
both: a b
a b:
\t+@{PYTHON}step("$(METHOD)", "$(LOG)", 8, $(MEET))'
unshared:
\t@{PYTHON}step("$(METHOD)", "$(LOG)", 8, $(MEET))'
mixed: a one two three four
one two three four:
\t@{PYTHON}meet("$(LOG)", $(MEET))'
below:
\t+@$(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) both
lossy:
\t+@{PYTHON}lossy_step("$(METHOD)", "$(LOG)")'
terminated:
\t-+@{PYTHON}be_signalled("$(METHOD)", "$(LOG)", 2, {int(signal.SIGTERM)})' || echo $$?
"""

# The kinds of make, with how each is told to share its slots.
SHARING = [
    ("make 4.3", ()),
    ("make 4.4", ("--jobserver-style=fifo",)),
    ("make 4.4", ("--jobserver-style=pipe",)),
]
KINDS = pytest.mark.parametrize(("name", "style"), SHARING, ids=["4.3", "4.4-fifo", "4.4-pipe"])


def make(name: str, directory: Path, *words: str, meet: int = 1, method: str = "fork") -> list[str]:
    """What make prints, sorted; it has to succeed, and to have no complaint."""
    out, err = make_loudly(name, directory, *words, meet=meet, method=method)
    assert err == ""
    return out


def make_loudly(
    name: str, directory: Path, *words: str, meet: int = 1, method: str = "fork"
) -> tuple[list[str], str]:
    """What make prints, and what on standard error."""
    makefile = directory / "Makefile"
    makefile.write_text(MAKEFILE)
    variables = [f"LOG={directory}", f"MEET={meet}", f"METHOD={method}", f"PYTHON={sys.executable}"]
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = run_command(
        [tools.need(name), "-f", str(makefile), *variables, *words],
        "make",
        env={**environment, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
    )
    return sorted(done.stdout.splitlines()), done.stderr


@KINDS
@pytest.mark.parametrize("jobs", [2, 4])
def test_two_steps_of_one_build(
    name: str, style: tuple[str, ...], jobs: int, tmp_path: Path
) -> None:
    out = make(name, tmp_path, *style, f"-j{jobs}", "both", meet=jobs)
    assert out == [f"slots {jobs}"] * 2
    assert most_at_once(tmp_path) == jobs


@pytest.mark.parametrize("name", tools.MAKES)
def test_every_start_method(method: str, name: str, tmp_path: Path) -> None:
    make(name, tmp_path, "-j3", "both", meet=3, method=method)
    assert most_at_once(tmp_path) == 3


@KINDS
def test_beside_jobs_of_makes_own(name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    make(name, tmp_path, *style, "-j4", "mixed", meet=4)
    assert most_at_once(tmp_path) == 4


@KINDS
def test_in_a_make_below(name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    assert make(name, tmp_path, *style, "-j3", "below", meet=3) == ["slots 3"] * 2
    assert most_at_once(tmp_path) == 3


@pytest.mark.parametrize("name", tools.MAKES)
def test_one_job_at_a_time(name: str, tmp_path: Path) -> None:
    assert make(name, tmp_path, "-j1", "both") == ["slots 1"] * 2
    assert most_at_once(tmp_path) == 1


@pytest.mark.parametrize("name", tools.MAKES)
@pytest.mark.parametrize("unlimited", [True, False])
def test_no_limit(name: str, unlimited: bool, tmp_path: Path) -> None:
    """A make that gives no limit has no jobserver: each step has as many as there are CPUs."""
    words = ["-j"] * unlimited
    assert make(name, tmp_path, *words, "both") == [f"slots {usable_cpus()}"] * 2


@KINDS
def test_a_recipe_without_plus(name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    out, err = make_loudly(name, tmp_path, *style, "-j2", "unshared", meet=2)
    if style == ("--jobserver-style=fifo",):  # which is to be seen from anywhere
        assert (out, err) == (["slots 2"], "")
        assert most_at_once(tmp_path) == 2
    else:
        assert out == [f"slots {usable_cpus()}"]
        assert "RuntimeWarning: this Jobserver does not share make's slots" in err
        assert "prefix the recipe with + so that make shares its jobserver" in err
        assert "INTERNAL" not in err


@KINDS
def test_a_dry_run(name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    """What is marked with + runs then as well, and shares."""
    out = make(name, tmp_path, *style, "-j2", "-n", "both", meet=2)
    assert [line for line in out if line.startswith("slots")] == ["slots 2"] * 2
    assert most_at_once(tmp_path) == 2


@KINDS
def test_killed_workers(method: str, name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    assert make(name, tmp_path, *style, "-j4", "lossy", method=method) == ["lost"] * 3


@KINDS
def test_a_step_that_is_terminated(name: str, style: tuple[str, ...], tmp_path: Path) -> None:
    out, err = make_loudly(name, tmp_path, *style, "-j4", "terminated")
    assert out == [str(128 + signal.SIGTERM)]
    assert "INTERNAL" not in err  # but the shell may say something
