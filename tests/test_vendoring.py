"""The package works when it is copied under another name into somebody else's package."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import attr
import attrs
import pytest

import jobserver

PACKAGE = Path(jobserver.__file__).resolve().parent
SECONDS = 120.0  # a type check with a cold cache takes ten

WORK = """
from __future__ import annotations

import importlib.util
import os

from acme._vendor.slots_of_acme import Jobserver


def original() -> bool:
    return importlib.util.find_spec("jobserver") is not None


def nest(js: Jobserver, depth: int) -> tuple[int, ...]:
    # No worker of the copy may find the original either: it would hide a mistake.
    assert not original()
    below = js.submit(nest, args=(js, depth - 1)).result() if depth else ()
    return (os.getpid(), *below)
"""

PROGRAM = """
import sys

sys.path[:0] = sys.argv[2:]

from acme._vendor.slots_of_acme import Jobserver, JobserverExecutor, __version__
from acme.work import nest, original


def main(method):
    assert not original()
    with Jobserver(method, 3) as js:
        pids = js.submit(nest, args=(js, 2)).result(timeout=60)
        assert len(set(pids)) == 3, pids
        with JobserverExecutor(js) as executor:
            pids = executor.submit(nest, js, 1).result(timeout=60)
            assert len(set(pids)) == 2, pids
    assert Jobserver.__module__.startswith("acme._vendor.slots_of_acme.")
    assert "jobserver" not in sys.modules
    print("done", __version__)


if __name__ == "__main__":
    main(sys.argv[1])
"""

TYPED_USER = """
from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

from typing_extensions import assert_type

from acme._vendor.slots_of_acme import Future, Jobserver, JobserverExecutor

# Strict checking reports an ignore that is not needed: the original must not be found.
import jobserver  # type: ignore[import-not-found]


def double(number: int) -> int:
    return 2 * number


js = Jobserver("spawn", 2)
assert_type(js(double, 1), Future[int])
assert_type(js.submit(double, args=(1,)).result(), int)
assert_type(js.map(double, [(1,), (2,)]), Iterator[int])
js(double, "1")  # type: ignore[arg-type]
executor: concurrent.futures.Executor = JobserverExecutor(js)
assert_type(executor.submit(double, 1), "concurrent.futures.Future[int]")
"""

STRICT = """
[mypy]
strict = True
mypy_path = {path}

[mypy-attr.*,attrs.*,acme._vendor.*]
ignore_errors = True
"""


def run(*command: str, cwd: Path) -> str:
    """What a command prints, which must succeed and leave nobody behind to hold its output."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")
    }
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {SECONDS} s:\n{output}")
    assert process.returncode == 0, output
    return output


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A folder that holds the package acme with its copy of us."""
    vendor = tmp_path / "acme" / "_vendor"
    shutil.copytree(PACKAGE, vendor / "slots_of_acme", ignore=shutil.ignore_patterns("__pycache__"))
    (vendor / "__init__.py").touch()
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "work.py").write_text(WORK)
    return tmp_path


@pytest.fixture
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds attrs and nothing else: site-packages may hold the original, too."""
    folder = tmp_path_factory.mktemp("dependencies")
    for package in (attr, attrs):
        source = Path(package.__path__[0])
        shutil.copytree(source, folder / source.name)
    return folder


def test_the_copy_works_under_another_name(method: str, acme: Path, dependencies: Path) -> None:
    program = acme / "program.py"
    program.write_text(PROGRAM)
    # -I -S: nothing can be imported but the standard library and what the program adds.
    output = run(
        sys.executable,
        "-I",
        "-S",
        *("-W", "error"),
        str(program),
        method,
        str(acme),
        str(dependencies),
        cwd=acme,
    )
    assert output == f"done {jobserver.__version__}\n"


def test_a_user_of_the_copy_is_type_checked(acme: Path, dependencies: Path) -> None:
    user = acme / "user.py"
    user.write_text(TYPED_USER)
    settings = acme / "mypy.ini"
    settings.write_text(STRICT.format(path=os.pathsep.join([str(acme), str(dependencies)])))
    run(
        sys.executable,
        *("-m", "mypy", "--no-site-packages", "--cache-dir", str(acme / "cache")),
        *("--config-file", str(settings), str(user)),
        cwd=acme,
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda path: path.stem)
def test_names_itself_nowhere(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    tops = {name.partition(".")[0] for name in imported}
    assert not tops & {"jobserver", "importlib_metadata", "pkg_resources"}
    assert not [name for name in imported if name.startswith("importlib.metadata")]
