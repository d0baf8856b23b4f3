"""How many processors this process may use."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional


def usable_cpus() -> int:
    """The processors that affinity and a container's CPU quota leave to this process; at least 1.

    A quota of 1.5 processors counts as 2: rounded down, half a processor would stay idle.
    """
    if sys.version_info >= (3, 13):
        count = os.process_cpu_count() or 1  # affinity, and what -X cpu_count says
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(1, count)


def cgroup_quota(membership: Path, mount: Path) -> Optional[float]:
    """The tightest quota, in processors, of the control groups above this process.

    Formats: cgroups(7); `cpu.max` and `cpu.cfs_quota_us` in the kernel's admin guide.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas: list[Optional[float]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [_quota_v2(group) for group in _and_parents(mount, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(group) for group in _and_parents(mount / "cpu", path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _and_parents(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.lstrip("/")
    yield group
    while group != mount:
        group = group.parent
        yield group


def _quota_v2(group: Path) -> Optional[float]:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> Optional[float]:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period
