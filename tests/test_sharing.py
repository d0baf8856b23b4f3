"""What "auto" tells a command, by the tools that the command can find."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Optional

import pytest

from jobserver import Jobserver
from jobserver.make import Fifo, find_auth
from tests import sites, tools
from tests.processes import check_slots
from tests.work import PATIENCE


def fake(folder: Path, name: str, shown: str) -> Path:
    """A program that tells its version, and otherwise what it has in its environment."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    show = 'echo "$MAKEFLAGS"; echo "$CARGO_MAKEFLAGS"'
    program.write_text(f'#!/bin/sh\n[ "$*" = --version ] && echo "{shown}" || {{ {show}; }}\n')
    program.chmod(0o755)
    return program


def told(command: list[str], env: dict[str, str]) -> tuple[list[str], str]:
    with Jobserver("fork", 1) as js:
        done = js.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    makeflags, cargo = done.stdout.splitlines()
    return makeflags.split(), cargo


def check_told(words: list[str], cargo: str, *, old: bool, gcc: Optional[str] = None) -> None:
    auths = [word for word in words if word.startswith("--jobserver-auth=")]
    assert isinstance(find_auth(auths[-1]), Fifo)
    pipe = next(word for word in words if "fifo:" not in word).rpartition("=")[2]
    if old:
        assert words == [f"--jobserver-auth={pipe}", *auths[1:], f"--jobserver-au={pipe}"]
        assert str(find_auth(cargo)) == pipe
    elif gcc is not None and int(gcc.split(".")[0]) < 13:
        assert words == [f"-I--jobserver-auth={pipe}", *auths]
        assert not cargo
    else:
        assert words == [f"--jobserver-auth={pipe}", *auths[1:]]
        assert not cargo


SHOW = ["/bin/sh", "-c", 'echo "$MAKEFLAGS"; echo "$CARGO_MAKEFLAGS"']


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("GNU Make 4.3", True),
        ("GNU Make 4.4", False),
        ("GNU Make 4.4.1", False),
        ("GNU Make 10.0", False),
        ("bmake", True),
    ],
)
@pytest.mark.parametrize("place", ["first", "later", "gmake", "$MAKE", "the command"])
def test_every_make_is_asked_what_it_understands(
    version: str, old: bool, place: str, tmp_path: Path
) -> None:
    name = {"gmake": "gmake", "$MAKE": "odd", "the command": "make-4"}.get(place, "make")
    if place != "first":
        fake(tmp_path / "first", "make", "GNU Make 4.4.1")
    folder = "elsewhere" if place in ("$MAKE", "the command") else "second"
    make = fake(tmp_path / folder, name, version)
    env = {"PATH": f"{tmp_path / 'first'}:{tmp_path / 'second'}:/nowhere"}
    if place == "$MAKE":
        env["MAKE"] = f"'{make}' --silent"
    words, cargo = told([str(make)] if place == "the command" else SHOW, env)
    check_told(words, cargo, old=old)


def test_one_that_has_taken_the_place_of_another_is_asked_again(tmp_path: Path) -> None:
    for version, old in ("GNU Make 4.3", True), ("GNU Make 4.4", False):
        (tmp_path / "bin" / "make").unlink(missing_ok=True)
        fake(tmp_path / "bin", "make", version)
        check_told(*told(SHOW, {"PATH": str(tmp_path / "bin")}), old=old)


@pytest.mark.parametrize(
    ("shown", "gcc"),
    [
        ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "12.2"),
        ("x86_64-linux-gnu-gcc-11 (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", "11.4"),
        ("gcc (GCC) 13.1.0", "13.1"),
        ("Debian clang version 14.0.6", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("name", ["gcc", "$CC"])
def test_an_old_gcc_has_its_own(shown: str, gcc: Optional[str], name: str, tmp_path: Path) -> None:
    fake(tmp_path / "bin", "make", "GNU Make 4.4.1")
    compiler = fake(tmp_path / ("bin" if name == "gcc" else "cc"), "gcc", shown)
    env = {"PATH": str(tmp_path / "bin")}
    if name == "$CC":
        env["CC"] = f"{compiler} -m32"
    check_told(*told(SHOW, env), old=False, gcc=gcc)


def test_what_one_jobserver_has_said_another_replaces(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "make", "GNU Make 4.4.1")
    fake(tmp_path / "bin", "gcc", "gcc (GCC) 12.2.0")
    env = {"PATH": str(tmp_path / "bin"), "MAKEFLAGS": "k -I--jobserver-auth=98,99 -Ia"}
    words, _ = told(SHOW, env)
    assert words[:2] == ["k", "-Ia"]
    assert not any("98,99" in word for word in words)


# With the real ones, of which one is too old or another would leave the pool.


def only(folder: Path, **names: Optional[str]) -> str:
    """A PATH with these programs only."""
    folder.mkdir()
    for name, program in names.items():
        found = program or shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    return str(folder)


def run_build(command: list[str], env: dict[str, str], jobs: int, site: sites.Site) -> None:
    with Jobserver("fork", 3) as js:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            options: Any = {"env": {**os.environ, **env}, "capture_output": True, "text": True}
            run = threads.submit(lambda: js.run(command, **options))
            try:
                site.await_jobs(3)
            finally:
                site.gate.open()
            done = run.result(PATIENCE)
        assert done.returncode == 0, done.stderr
        assert "jobserver" not in done.stderr
        assert (site.peak(), site.done()) == (3, jobs)
        check_slots(js, 3, site.directory / "check")


def test_cmake_prefers_an_older_gmake(tmp_path: Path) -> None:
    """The make that is run, of 4.4, has recipes that run a gmake of 4.3."""
    old, new = tools.need("make 4.3"), tools.need("make 4.4")
    path = only(tmp_path / "bin", make=new, gmake=old)
    with sites.site(tmp_path) as site:
        inner = site.build("make 4.3", 5)
        command = sites.steps("make 4.4", tmp_path / "outer", [["gmake", *inner[1:]]])
        run_build(command, {"PATH": path}, 5, site)


def test_an_old_gcc_below_a_new_make_stays_in_the_pool(tmp_path: Path) -> None:
    gcc = tools.need("gcc")
    helpers: dict[str, Optional[str]] = dict.fromkeys(["as", "ld", "env", "sh", "rm"])
    path = only(tmp_path / "bin", make=tools.need("make 4.4"), gcc=gcc, **helpers)
    with sites.site(tmp_path) as site:
        command = sites.steps("make 4.4", tmp_path / "outer", [site.build("gcc", 5)])
        run_build(command, {"PATH": path}, 5, site)


# A build script in Rust, as the crate cmake or openssl-src has it.
BUILD_RS = """
fn main() {
    let make = std::process::Command::new("make").args(["-f", "native.mk"])
        .env("MAKEFLAGS", std::env::var("CARGO_MAKEFLAGS").unwrap()).status().unwrap();
    assert!(make.success());
}
"""


def test_cargo_gives_its_build_scripts_what_their_make_understands(tmp_path: Path) -> None:
    cargo, old = tools.need("cargo"), tools.need("make 4.3")
    crate = tmp_path / "x"
    (crate / "src").mkdir(parents=True)
    (crate / "src" / "lib.rs").touch()
    (crate / "build.rs").write_text(BUILD_RS)
    (crate / "native.mk").write_text("all:\n\t@: > native\n")
    manifest = '[package]\nname = "x"\nversion = "0.1.0"\nedition = "2021"\nbuild = "build.rs"\n'
    (crate / "Cargo.toml").write_text(manifest)
    path = f"{only(tmp_path / 'bin', make=old)}:{os.environ['PATH']}"
    with Jobserver("fork", 3) as js:
        done = js.run(
            [cargo, "build", "--offline", "--quiet"],
            cwd=crate,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (crate / "native").exists()
        check_slots(js, 3, tmp_path / "check")
