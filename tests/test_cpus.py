"""How many processors this process may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from jobserver import cpus


def test_it_is_at_least_one_and_at_most_the_affinity() -> None:
    assert 1 <= cpus.usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, 3.0),
        ({"a/b/cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_above_counts(
    files: dict[str, str], quota: Optional[float], tmp_path: Path
) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    mount = tmp_path / "mount"
    (mount / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        (mount / name).write_text(text + "\n")
    assert cpus.cgroup_quota(str(membership), str(mount)) == quota


@pytest.mark.parametrize(("microseconds", "quota"), [("-1", None), ("250000", 2.5)])
def test_the_older_hierarchy_counts_as_well(
    microseconds: str, quota: Optional[float], tmp_path: Path
) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("7:memory:/x\n4:cpu,cpuacct:/a\n")
    group = tmp_path / "mount" / "cpu" / "a"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(microseconds)
    (group / "cpu.cfs_period_us").write_text("100000")
    assert cpus.cgroup_quota(str(membership), str(tmp_path / "mount")) == quota


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert cpus.cgroup_quota(str(tmp_path / "absent"), str(tmp_path)) is None
