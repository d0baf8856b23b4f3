"""What the package exports, and what its exceptions promise besides being raised."""

from __future__ import annotations

import ast
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional

import pytest

import jobserver
from jobserver import Blocked, CallbackRaised, Future, Jobserver, JobserverExecutor, LostResult

NAMES = [
    "Blocked",
    "CallbackRaised",
    "Future",
    "Jobserver",
    "JobserverExecutor",
    "LostResult",
    "NoJobserver",
    "__version__",
]
ERRORS = [Blocked(), CallbackRaised(3), LostResult(4711, -9)]
TYPES = [Blocked, CallbackRaised, LostResult]

# Parameters as a caller sees them; the annotations are asserted in tests/typing.
SIGNATURES = [
    (Jobserver, "(context=None, slots=None)"),
    (Jobserver.__call__, "(self, fn, /, *args, **kwargs)"),
    (Jobserver.submit, "(self, fn, *, args=(), kwargs={}, consume=1, timeout=None)"),
    (
        Jobserver.map,
        "(self, fn, argses=None, kwargses=None, *, timeout=None, chunksize=1, buffersize=None)",
    ),
    (
        Jobserver.run,
        (
            "(self, args, *, style='auto', input=None, capture_output=False, timeout=None, "
            "check=False, **options)"
        ),
    ),
    (Jobserver.share, "(self, style='auto')"),
    (Jobserver.from_environ, "(context=None)"),
    (Jobserver.drain, "(self, timeout=None)"),
    (Jobserver.reclaim_resources, "(self)"),
    (Jobserver.waiting, "(self)"),
    (Jobserver.replace_preexec, "(self, fn, /, *args, **kwargs)"),
    (Jobserver.replace_workers, "(self, max_tasks=None, idle=10.0)"),
    (Future.done, "(self, timeout=0)"),
    (Future.wait, "(self, timeout=None, *, signal=None)"),
    (Future.result, "(self, timeout=None)"),
    (Future.when_done, "(self, fn, /, *args, **kwargs)"),
    (JobserverExecutor.submit, "(self, fn, /, *args, **kwargs)"),
    (
        JobserverExecutor.map,
        "(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None)",
    ),
    (JobserverExecutor.waiting, "(self)"),
    (JobserverExecutor.shutdown, "(self, wait=True, *, cancel_futures=False)"),
]


def bare(function: Callable[..., object]) -> str:
    """A signature without its annotations."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters)).replace("mappingproxy({})", "{}")


def test_exports_exactly_these_names() -> None:
    assert sorted(jobserver.__all__) == NAMES
    assert sorted(dir(jobserver)) == NAMES
    namespace: dict[str, object] = {}
    exec("from jobserver import *", namespace)
    assert sorted(namespace.keys() - {"__builtins__"}) == NAMES


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'jobserver' has no attribute 'Jobservant'"):
        _ = jobserver.Jobservant  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="Jobservant"):
        exec("from jobserver import Jobservant")


def test_the_version_is_a_literal() -> None:
    module = ast.parse(Path(jobserver.__file__).read_text(encoding="utf-8"))
    literals = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign)
        and [target.id for target in node.targets if isinstance(target, ast.Name)]
        == ["__version__"]
    ]
    assert literals == [jobserver.__version__]


@pytest.mark.parametrize(("function", "signature"), SIGNATURES)
def test_signatures_are_the_contract(function: Callable[..., object], signature: str) -> None:
    assert bare(function) == signature


@pytest.mark.parametrize("error", TYPES)
def test_errors_refuse_subclassing(error: type[Exception]) -> None:
    with pytest.raises(TypeError, match=f"{error.__name__} is final"):
        type("Derived", (error,), {})


def test_checkers_know_that_the_errors_are_final(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = [f"class {error.__name__}Derived({error.__name__}): ..." for error in TYPES]
    names = ", ".join(error.__name__ for error in TYPES)
    program.write_text("\n".join([f"from jobserver import {names}", *lines, ""]))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={tmp_path}", str(program)],
        cwd=Path(jobserver.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    complaints = [line for line in checked.stdout.splitlines() if "final" in line]
    assert len(complaints) == len(TYPES), checked.stdout + checked.stderr


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS)
def test_errors_survive_pickling(error: Exception, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert (repr(again), str(again)) == (repr(error), str(error))
    assert vars(again) == vars(error)


def test_callback_raised_tells_the_number() -> None:
    error = CallbackRaised(seqno=0)
    assert error.seqno == 0
    assert repr(error) == str(error) == "CallbackRaised(seqno=0)"


def test_blocked_names_itself() -> None:
    assert repr(Blocked()) == "Blocked()"


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-9, "worker 4711 was killed by SIGKILL; out of memory is a common cause"),
        (-15, "worker 4711 was killed by SIGTERM"),
        (3, "worker 4711 exited with status 3"),
        (None, "worker 4711"),
    ],
)
def test_lost_result_says_in_words_what_is_known(exitcode: Optional[int], words: str) -> None:
    error = LostResult(4711, exitcode)
    assert (error.pid, error.exitcode) == (4711, exitcode)
    assert words in str(error)
    assert repr(error) == f"LostResult(pid=4711, exitcode={exitcode})"


@pytest.mark.parametrize("kind", [Jobserver, Future, JobserverExecutor])
def test_help_shows_no_private_machinery(kind: type) -> None:
    shown = pydoc.plain(pydoc.render_doc(kind))
    assert kind.__name__ in shown
    assert "__attrs_init__" not in shown
    assert not re.search(r"'s\.\w+", shown)  # an annotation through a module's short name
