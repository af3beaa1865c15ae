"""How many processor cores this process may use. Imports no torch."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores(cgroups: Path = CGROUPS, memberships: Path = Path("/proc/self/cgroup")) -> int:
    """Cores of the process's affinity, or of its control group's quota, whichever is less; at least 1.

    A container with half of a machine's time sees all of its cores; more threads than the quota only wait for it.
    """
    bounds = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    try:
        groups = [line.split(":", 2) for line in memberships.read_text().splitlines()]
    except OSError:
        return bounds[0]
    for _, controllers, path in groups:
        if not controllers:
            bounds += _quotas(cgroups, path, "cpu.max")
        elif "cpu" in controllers.split(","):
            for mounted in (controllers, "cpu"):
                bounds += _quotas(cgroups / mounted, path, "cpu.cfs_quota_us")
    return max(1, min(bounds))


def _quotas(root: Path, path: str, name: str) -> list[int]:
    """Of a group and those above it; a container sees its own as the root."""
    found = []
    group = root / path.lstrip("/")
    for folder in {root, group, *(parent for parent in group.parents if parent.is_relative_to(root))}:
        try:
            words = (folder / name).read_text().split()
            period = words[1] if name == "cpu.max" else (folder / "cpu.cfs_period_us").read_text()
            if words[0] not in ("max", "-1"):
                found.append(math.ceil(int(words[0]) / int(period)))
        except (OSError, ValueError, IndexError):
            continue
    return found
