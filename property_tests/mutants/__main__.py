"""Try the mutants of the modules, one after another: a score each, and who survived.

It changes the library in the tree in which it runs: a copy, which `./ci mutants` makes. It needs
Linux, to end what a mutant leaves running.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import use_db

from .accepted import ACCEPTED
from .operators import Provider, counts

KILLED, HUNG, SURVIVED = "killed", "hung", "survived"

ENOUGH = 90  # percent of a module's mutants that must be killed
UNHURT = 600.0  # seconds that a stage may take without a mutant
MEMORY = 4 << 30  # bytes a process; a mutant may well ask for more than there is
MARK = "JOBSERVER_MUTANT"  # in the environment of all that tests start

HASTY = f"{__package__}.hasty"
QUICK = ("-p", HASTY, "-p", "no:cacheprovider", "-q", "--all", "--start-method=fork")
MACHINES = (*QUICK, "--hypothesis-profile=mutants")

# By module, the tests that find its mutants, those that are done soonest first. Each line is a run
# of pytest, with a bound of its own: a mutant that hangs costs what a stage may take.
STAGES: dict[str, list[tuple[str, ...]]] = {
    "lifecycle": [
        (*MACHINES, "property_tests/test_lifecycle.py"),
        (*QUICK, "tests/test_readme.py", "-k", "diagram"),
    ],
    "settings": [
        (*QUICK, "tests/test_settings.py"),
        (*QUICK, "tests/test_submit.py", "tests/test_future.py", "-k", "timeout"),
        (*QUICK, "tests/test_reuse.py", "-k", "max_tasks or told or fresh or handle or bad_idle"),
        (*QUICK, "tests/test_executor_arguments.py", "-k", "max_tasks or bound"),
    ],
    "tracebacks": [
        (*QUICK, "tests/test_wire.py"),
        (*QUICK, "tests/test_stubborn_errors.py"),
    ],
    "descriptors": [
        (*QUICK, "tests/test_travelling.py"),
    ],
    "pickles": [
        (*QUICK, "tests/test_wire.py"),
        (*QUICK, "tests/test_large_values.py"),
        (*QUICK, "tests/test_stubborn_errors.py"),
        (*QUICK, "tests/test_rooms.py", "-k", "next_to_nothing"),
    ],
    "wire": [
        (*QUICK, "tests/test_wire.py"),
        (*QUICK, "tests/test_executor_endings.py"),
        (*QUICK, "tests/test_large_values.py"),
        (*QUICK, "tests/test_rooms.py", "-k", "next_to_nothing"),
    ],
    "future": [
        (*QUICK, "tests/test_future.py", "tests/test_callbacks.py"),
        (*QUICK, "tests/test_public_api.py", "tests/test_signals.py"),
        (*QUICK, "tests/test_rooms.py", "-k", "type_checkers"),
        (*QUICK, "tests/test_program_fork.py", "tests/test_losses.py"),
        (*MACHINES, "property_tests/test_library.py"),
    ],
    "server": [
        (*QUICK, "tests/test_public_api.py", "tests/test_submit.py"),
        (*QUICK, "tests/test_rooms.py", "-k", "type_checkers"),
        (*QUICK, "tests/test_handles.py", "tests/test_slots.py"),
        (*QUICK, "tests/test_settings.py", "-k", "frozen or handle"),
        (*QUICK, "tests/test_callbacks.py"),
        (*QUICK, "tests/test_nesting.py", "--start-method=spawn", "-k", "spawn and among"),
        (*QUICK, "tests/test_map.py", "-k", "refuses or callable or inputs or keyword_names"),
        (*QUICK, "tests/test_reuse.py", "-k", "max_tasks or fresh or bad_idle"),
        (*QUICK, "tests/test_joined.py", "-k", "implicit_slot or without or reason or says_so"),
        (*QUICK, "tests/test_commands.py", "-k", "gives or slot or check or closed"),
        (*QUICK, "tests/test_commands.py", "-k", "killed_at or cannot_be_run or revised or style"),
    ],
    "slots": [
        (*MACHINES, "property_tests/test_slot_sources.py", "tests/test_receipts.py"),
        (
            *MACHINES,
            "property_tests/test_proof.py",
            "-k",
            "no_slot and (lent or threads or command)",
        ),
        (*QUICK, "tests/test_slots.py", "-k", "not burns"),
        (*QUICK, "tests/test_nesting.py", "tests/test_recovery.py", "-k", "not forkserver"),
        (*QUICK, "tests/test_recovery.py", "--start-method=spawn", "-k", "spawn and ofd"),
        (*QUICK, "tests/test_reuse.py", "-k", "serves or as_many or leaves"),
    ],
}


@attrs.frozen
class Mutant:
    """A module with one change."""

    module: str
    function: str
    line: int
    code: str
    was: tuple[str, ...]
    becomes: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return any(each.covers(self) for each in ACCEPTED)

    @property
    def place(self) -> str:
        return f"{self.module}.py:{self.line} in {self.function}"

    def __str__(self) -> str:
        was = (f"  - {line}" for line in self.was)
        return "\n".join([self.place, *was, *(f"  + {line}" for line in self.becomes)])


def mutants_of(module: str) -> list[Mutant]:
    """All that are tried, in the order of their places."""
    path = Path("jobserver", f"{module}.py")
    source = path.read_text()
    overloads = _lines_of_overloads(source)
    session = Path(f"mutants-{module}.sqlite")
    session.unlink(missing_ok=True)
    found: dict[str, Mutant] = {}
    with use_db(str(session)) as db:
        init([path], db, {})
        for item in db.work_items:
            (spec,) = item.mutations
            if counts(spec.operator_name) and spec.start_pos[0] not in overloads:
                operator = plugins.get_operator(spec.operator_name)()
                code = mutate_code(source, operator, spec.occurrence)
                if code is not None and code != source and _compiles(code):
                    name = spec.definition_name or "<module>"
                    was, becomes = _difference(source, code)
                    found.setdefault(
                        code, Mutant(module, name, spec.start_pos[0], code, was, becomes)
                    )
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.becomes))


def _lines_of_overloads(source: str) -> set[int]:
    """They are annotations, and do nothing."""
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
        for line in range(node.decorator_list[0].lineno, node.body[-1].lineno + 1)
    }


def _compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(source: str, code: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines that went and those that came, without indentation, comments and blank lines."""
    lines = list(difflib.unified_diff(source.split("\n"), code.split("\n"), lineterm="", n=0))[2:]
    went, came = (
        tuple(
            filter(
                None, (line[1:].partition("  # ")[0].strip() for line in lines if line[0] == sign)
            )
        )
        for sign in "-+"
    )
    return went, came


class Suite:
    """The tests of a module, which pass without mutants."""

    def __init__(self, module: str) -> None:
        self._stages: list[tuple[list[str], float]] = []
        for arguments in STAGES[module]:
            command = [sys.executable, "-m", "pytest", *arguments]
            start = time.monotonic()
            if _run(command, UNHURT) != 0:
                sys.exit(f"mutants: without any, this fails: {' '.join(command)}")
            self._stages.append((command, 10 + 2 * (time.monotonic() - start)))

    def verdict(self) -> str:
        for stage in self._stages:
            status = _run(*stage)
            if status != 0:
                # It comes first from now on: the next mutant is near, and may well be its prey.
                self._stages.remove(stage)
                self._stages.insert(0, stage)
                return HUNG if status is None else KILLED
        return SURVIVED


def _run(command: list[str], bound: float) -> int | None:
    """The exit status; None past so many seconds. Nothing of it is left running."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    process = subprocess.Popen(
        command,
        env={**os.environ, **dict([mark.split("=")])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(bound)
    except subprocess.TimeoutExpired:
        return None
    finally:
        while _kill_marked(mark.encode()):
            time.sleep(0.01)
        process.wait()


def _kill_marked(mark: bytes) -> bool:
    """Kill whatever lives and has the mark in its environment: whether there was any."""
    found = False
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                found = True
    return found


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    path = Path("jobserver", f"{mutant.module}.py")
    original = path.read_text()
    try:
        path.write_text(mutant.code)
        yield
    finally:
        path.write_text(original)


def try_all(module: str, only: str) -> bool:
    """Whether enough are killed, and who survives is accepted. Who is accepted is not tried."""
    mutants = [mutant for mutant in mutants_of(module) if only in str(mutant)]
    doubtful = [mutant for mutant in mutants if not mutant.accepted]
    suite = Suite(module)
    # What was compiled so far stays; nothing compiled of a mutant may be taken for another.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for path in Path("jobserver", "__pycache__").glob(f"{module}.*.pyc"):
        path.unlink()
    start = time.monotonic()
    verdicts: dict[Mutant, str] = {}
    for number, mutant in enumerate(doubtful, 1):
        with planted(mutant):
            verdicts[mutant] = suite.verdict()
        shown = mutant if verdicts[mutant] == SURVIVED else mutant.place
        print(f"{number}/{len(doubtful)} {verdicts[mutant]}: {shown}", flush=True)
    del os.environ["PYTHONDONTWRITEBYTECODE"]
    outcomes = Counter(verdicts.values())
    survivors = [mutant for mutant, verdict in verdicts.items() if verdict == SURVIVED]
    score = 100 * (outcomes[KILLED] + outcomes[HUNG]) / len(mutants)
    print(
        f"{module}: {len(mutants)} mutants, {score:.1f} % killed ({outcomes[HUNG]} hung), "
        f"{len(mutants) - len(doubtful)} accepted, {len(survivors)} survived; "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    for mutant in survivors:
        print(f"survived: {mutant}", flush=True)
    gone = [] if only else [each for each in ACCEPTED if each.module == module]
    gone = [each for each in gone if not any(map(each.covers, mutants))]
    for each in gone:
        print(f"accepted, but there is no such mutant: {each}", flush=True)
    return score >= ENOUGH and not survivors and not gone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *STAGES], help="default: all")
    parser.add_argument("--only", default="", help="those with this in their description")
    options = parser.parse_args()
    plugins.OPERATOR_PROVIDERS["jobserver"] = Provider()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    results = [try_all(module, options.only) for module in options.modules or STAGES]
    if not all(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
