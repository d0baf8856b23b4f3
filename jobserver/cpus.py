"""How many processors this process may use."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
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
    quota = cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup")
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(1, count)


def cgroup_quota(membership: str, mount: str) -> Optional[float]:
    """The tightest quota, in processors, of the control groups above this process.

    Formats: cgroups(7); `cpu.max` and `cpu.cfs_quota_us` in the kernel's admin guide.
    """
    quotas: list[Optional[float]] = []
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [_quota_v2(group) for group in _and_parents(mount, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(group) for group in _and_parents(mount + "/cpu", path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _and_parents(mount: str, path: str) -> Iterator[str]:
    names = path.strip("/").split("/")
    for depth in range(len(names), -1, -1):
        yield "/".join((mount, *names[:depth]))


def _quota_v2(group: str) -> Optional[float]:
    words = (_read(group + "/cpu.max") or "max").split()
    if len(words) != 2 or not words[0].isdigit():
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(group: str) -> Optional[float]:
    quota = _read(group + "/cpu.cfs_quota_us")
    period = _read(group + "/cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: str) -> Optional[str]:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
