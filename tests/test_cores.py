"""How many cores there are: a container's quota counts."""

import os
from pathlib import Path

import pytest

from probes.engine.cores import cores


def test_a_quota_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    groups, memberships = tmp_path / "groups", tmp_path / "memberships"
    assert cores(groups, memberships) == 8
    memberships.write_text("0::/pod/container\n")
    (groups / "pod/container").mkdir(parents=True)
    (groups / "pod/container/cpu.max").write_text("max 100000\n")
    assert cores(groups, memberships) == 8
    (groups / "pod/cpu.max").write_text("250000 100000\n")
    assert cores(groups, memberships) == 3
    (groups / "cpu.max").write_text("50000 100000\n")
    assert cores(groups, memberships) == 1


def test_quotas_of_the_older_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu,cpuacct/cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000\n")
    memberships = tmp_path / "memberships"
    memberships.write_text("4:cpu,cpuacct:/\n1:memory:/\n")
    assert cores(tmp_path, memberships) == 2
