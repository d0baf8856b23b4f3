"""For pytest (`-p`): the test that failed last comes first, and the first failure ends it all.

A failed test is not torn down: what it leaves behind is killed anyway, and would be waited for.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FAILED = Path("mutants-failed.txt")  # the tests that failed so far, the latest at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    failed = FAILED.read_text().splitlines() if FAILED.exists() else []
    latest = {name: number for number, name in enumerate(failed)}
    items.sort(key=lambda item: -latest.get(item.nodeid, -1))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        with FAILED.open("a") as file:
            file.write(f"{report.nodeid}\n")
        os._exit(1)
