"""Which jobserver a process joins, and that it joins nothing that is something else."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import tty
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobserver import Jobserver, NoJobserver
from jobserver.cpus import usable_cpus
from tests import tools
from tests.builds import build
from tests.processes import ROOT, check_slots, run_command

NAMES = ("MAKEFLAGS", "CARGO_MAKEFLAGS", "JOBSERVER_POOL")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def refusal() -> NoJobserver:
    with pytest.raises(NoJobserver) as caught:
        Jobserver.from_environ("fork")
    return caught.value


# A fifo, or what is in its place.


def test_a_descriptor_of_some_process_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a build, or in another PID namespace, it is somebody else's."""
    read, write = os.pipe()
    os.write(write, b"foreign")
    for path in f"/proc/{os.getpid()}/fd/{read}", f"/proc/self/fd/{read}", f"/dev/fd/{read}":
        monkeypatch.setenv("MAKEFLAGS", f"-j9 --jobserver-auth=fifo:{path}")
        error = refusal()
        assert error.reason == "cannot open"
        assert "some process has open there" in str(error)
        assert "+" not in str(error)
    assert os.read(read, 99) == b"foreign"
    os.close(read)
    os.close(write)


def test_more_bytes_than_make_has_tokens(tmp_path: Path) -> None:
    # The fixture `monkeypatch` would put back what the build has set, after the build's end.
    with build(tmp_path, "fifo", b"x" * 100) as outer, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAKEFLAGS", outer.makeflags.replace("-j101", "-j4"))
        assert "has 100 bytes, but -j4 no more than 3 tokens" in str(refusal())
        assert outer.tokens() == b"x" * 100


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "a terminal", "a file"])
def test_what_keeps_no_tokens_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "file").write_text("content")
    place = {"a terminal": os.ttyname(theirs), "a file": str(tmp_path / "file")}.get(path, path)
    os.write(ours, b"typed\n")
    monkeypatch.setenv("MAKEFLAGS", f"-j4 --jobserver-auth=fifo:{place}")
    error = refusal()
    assert error.reason == "not a pipe"
    assert "recipe" not in str(error)
    assert os.read(theirs, 99) == b"typed\n"
    assert (tmp_path / "file").read_text() == "content"
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("tokens", [b"", b"++"])
def test_a_device_that_keeps_tokens_is_joined(
    method: str, tokens: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gentoo's steve is one. The kernel has none but terminals that can be made to behave so."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    os.write(ours, tokens)
    monkeypatch.setattr(os, "isatty", lambda _: False)
    monkeypatch.setenv("MAKEFLAGS", f"-j3 --jobserver-auth=fifo:{os.ttyname(theirs)}")
    with Jobserver.from_environ(method) as js:
        assert js.slots == 3
        if not tokens:
            check_slots(js, 1, tmp_path / "check")
        else:
            # What it is given back it shows at the other end, and does not keep.
            assert os.read(ours, 1) == b"+"  # that of the trial
            futures = [js(os.getpid) for _ in range(2)]
            assert len({future.result() for future in futures}) == 2
    os.close(ours)
    os.close(theirs)


# What has been lost on the way.

STATUS = [sys.executable, "-m", "jobserver", "status"]
STEP = (
    "import warnings; warnings.simplefilter('error'); from jobserver import Jobserver\n"
    "with Jobserver('fork') as js: print('slots', js.slots, js(abs, -3).result())"
)


def recipe(directory: Path, command: list[str], plus: str = "") -> list[str]:
    """The arguments of a make that runs a command."""
    *words, last = command
    line = shlex.join(words) + (' "$$step"' if last == STEP else f" {shlex.quote(last)}")
    (directory / "Makefile").write_text(f"all:\n\t{plus}@{line}\n")
    return ["-s", "-C", str(directory)]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    return {**kept, "PYTHONPATH": str(ROOT), "step": STEP, **more}


def test_who_has_kept_make_s_pipe_is_named(tmp_path: Path) -> None:
    """The line has its +, so that is not what is missing."""
    make = tools.need("make 4.3")
    wrapper = f"import subprocess, sys; sys.exit(subprocess.run({STATUS!r}).returncode)"
    words = recipe(tmp_path, [sys.executable, "-c", wrapper], plus="+")
    done = subprocess.run(
        [make, "-j3", *words], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("bad descriptor: descriptor ")
    assert "although python" in done.stdout
    assert "close_fds=False or pass_fds" in done.stdout
    assert "prefix" not in done.stdout


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize("tool", tools.MAKES)
def test_a_step_below_ours_joins_and_knows_how_many(tool: str, plus: str, tmp_path: Path) -> None:
    command = [tools.need(tool), *recipe(tmp_path, [sys.executable, "-c", STEP], plus)]
    host = [sys.executable, "-m", "jobserver", "-j", "5", "--"]
    done = run_command([*host, *command], tool, env=environment())
    assert (done.stdout, done.stderr) == ("slots 5 3\n", "")


@pytest.mark.parametrize("style", ["auto", "pipe", "fifo"])
def test_a_step_that_ours_runs_knows_how_many(style: Any) -> None:
    with Jobserver("fork", 5) as js:
        done = js.run([sys.executable, "-c", STEP], style=style, capture_output=True, text=True)
        assert done.stdout == "slots 5 3\n", done.stderr


@pytest.mark.parametrize(("jobs", "slots"), [("-j1", 1), ("-j2", 2)])
def test_a_make_below_ours_that_has_its_own_rules(jobs: str, slots: int, tmp_path: Path) -> None:
    make = tools.need("make 4.3")
    words = recipe(tmp_path, [sys.executable, "-c", STEP], "+")
    host = [sys.executable, "-m", "jobserver", "-j", "5", "--"]
    done = run_command([*host, make, jobs, *words], jobs, env=environment())
    assert done.stdout == f"slots {slots} 3\n"


def test_without_makeflags_nothing_of_ours_is_joined() -> None:
    """A program that clears them wants no jobserver."""
    host = [sys.executable, "-m", "jobserver", "-j", "7", "--"]
    host += ["env", "-u", "MAKEFLAGS", "-u", "CARGO_MAKEFLAGS"]
    done = run_command([*host, sys.executable, "-c", STEP], "env", env=environment())
    assert done.stdout == f"slots {usable_cpus()} 3\n"


@pytest.mark.parametrize(
    "ours", ["", "5", "5,fifo:", "5,/a", f"{'9' * 99},fifo:/a", "5,fifo:/no/such", "x,fifo:/a"]
)
def test_what_is_of_no_use_is_as_if_it_were_not_there(
    ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "--jobserver-auth=-2,-2")
    monkeypatch.setenv("JOBSERVER_POOL", ours)
    assert refusal().reason == "disabled"


# cargo's


@pytest.mark.parametrize("makeflags", [None, "", "kw -- A=b"])
def test_cargo_s_is_joined_where_there_is_no_other(
    makeflags: Any, method: str, tmp_path: Path
) -> None:
    with build(tmp_path, "pipe", b"++") as outer, pytest.MonkeyPatch.context() as patch:
        auth = outer.makeflags.rpartition("=")[2]
        cargo = f"-j --jobserver-fds={auth} --jobserver-auth={auth}"
        patch.setenv("CARGO_MAKEFLAGS", cargo)
        if makeflags is None:
            patch.delenv("MAKEFLAGS")
        else:
            patch.setenv("MAKEFLAGS", makeflags)
        with Jobserver(method) as js:
            check_slots(js, 3, tmp_path / "check")
        assert outer.tokens() == b"++"


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"MAKEFLAGS": "-j1", "CARGO_MAKEFLAGS": "--jobserver-auth=98,99"}, "not a jobserver"),
        ({"CARGO_MAKEFLAGS": "-j"}, "absent"),
        ({"MAKEFLAGS": "--jobserver-auth=-2,-2", "CARGO_MAKEFLAGS": "x"}, "disabled"),
        ({"CARGO_MAKEFLAGS": "--jobserver-auth=998,999"}, "bad descriptor"),
    ],
)
def test_of_two_make_s_counts(
    environ: Mapping[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert refusal().reason == reason
