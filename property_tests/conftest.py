"""The subject and the start methods, as options; hypothesis profiles; what was reached, as a table.

pytest property_tests --start-method=spawn --subject=acme._vendor.jobserver
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter, defaultdict
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests import conftest as base
from tests.conftest import (
    _helpers_started,
    nothing_left,
    pytest_collection_modifyitems,
    pytest_generate_tests,
)

__all__ = (
    "_helpers_started",
    "nothing_left",
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
)

# Processes take the time they take: no deadline, and slow is healthy. A test multiplies the number
# of examples by what its machine can do in a second.
settings.register_profile(
    "quick",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# As many as it takes to meet every rule and invariant.
settings.register_profile("brief", settings.get_profile("quick"), max_examples=8)
settings.register_profile(
    "deep",
    settings.get_profile("quick"),
    max_examples=400,
    derandomize=False,
    print_blob=True,
)
# Whether there is a failure is all that counts, not the shortest program that shows it.
settings.register_profile("mutants", settings.get_profile("quick"), phases=[Phase.generate])


def pytest_configure(config: pytest.Config) -> None:
    base.pytest_configure()
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick" if config.getoption("--all") else "brief")


# What the machines have tried, in whichever process: (machine, rule, what came of it).
_tried: Counter[tuple[str, str, str]] = Counter()

# The planted faults that were found: name, tier, and in which rule by what.
found: list[tuple[str, str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    base.pytest_addoption(parser)
    parser.addoption(
        "--subject",
        default="jobserver",
        help="the package that is tested, by the name under which it is imported",
    )
    parser.addoption(
        "--tables",
        action="store_true",
        help="end with what the machines tried, and which planted fault was found by whom",
    )


@pytest.fixture(scope="session")
def hang() -> float:
    """Seconds after which a test hangs: longer than hypothesis may shrink what it has found."""
    return 600.0


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> ModuleType:
    """The package that is tested."""
    return importlib.import_module(pytestconfig.getoption("--subject"))


@pytest.fixture(scope="session")
def machines(subject: ModuleType) -> ModuleType:
    """The machines that the subject brings."""
    return importlib.import_module(f"{subject.__name__}.testing.machines")


@pytest.fixture(scope="session")
def executors(subject: ModuleType) -> ModuleType:
    """The machine over executors, likewise."""
    return importlib.import_module(f"{subject.__name__}.testing.executors")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist ends: its counts are part of the table."""
    output = getattr(node, "workeroutput", {})  # one that has crashed has none
    for key, count in output.get("tried", []):
        _tried[tuple(key)] += count
    found.extend(tuple(each) for each in output.get("found", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    name = session.config.getoption("--subject") + ".testing.machines"
    tried = sys.modules[name].tally if name in sys.modules else {}
    output = getattr(session.config, "workeroutput", None)
    if output is None:
        _tried.update(tried)
    else:
        output["tried"] = list(tried.items())
        output["found"] = found


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus or not config.getoption("--tables"):
        return  # a failure is what is last on the screen
    rows: defaultdict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for (machine, rule, outcome), count in _tried.items():
        rows[machine, rule].append((count, outcome))
    if rows:
        terminalreporter.section("what the machines tried, and what came of it")
    for (machine, rule), outcomes in sorted(rows.items()):
        text = ", ".join(f"{count} {outcome}" for count, outcome in sorted(outcomes, reverse=True))
        terminalreporter.line(f"{machine:8} {rule:24} {text}")
    if found:
        terminalreporter.section("planted faults, and who found them")
    for name, tier, text in sorted(found):
        terminalreporter.line(f"{name}: {tier}, {text.splitlines()[0][:120]}")
