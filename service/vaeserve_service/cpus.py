"""How many processors this process may use: the cgroup's limit, not the host's count."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the processors that the affinity mask and the cgroup's quota allow, at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """Return the whole processors of a CPU quota, rounded up: cgroup v2's `cpu.max`, else v1's."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        limit, period = _v1(cgroup / "cpu")
    if limit in ("max", "-1"):
        return os.cpu_count() or 1
    return math.ceil(int(limit) / int(period))


def _v1(folder: Path) -> tuple[str, str]:
    try:
        return (folder / "cpu.cfs_quota_us").read_text().strip(), (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return "max", "1"
