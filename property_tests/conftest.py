"""The start methods and the proof that nothing is left, as in `tests`; hypothesis profiles."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.conftest import (
    _helpers_started,
    nothing_left,
    pytest_addoption,
    pytest_generate_tests,
)

__all__ = ("_helpers_started", "nothing_left", "pytest_addoption", "pytest_generate_tests")

# Processes take the time they take: no deadline, and slow is healthy.
settings.register_profile(
    "quick",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=500, derandomize=False
)
settings.load_profile("quick")
