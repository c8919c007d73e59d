"""How many processors this process may use, the cgroup's limit and not the host's count, and who of it goes first."""

import math
import os
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the processors that the affinity mask and the cgroup's quota allow, at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(cgroup)))


def yield_to_others() -> Callable[[], None]:
    """Let this thread, and those that it and they start from now on, not preempt others as they wake.

    What is returned sets this thread back. The event loop wakes gRPC's poller and the runners many times a call, and on
    the processor that it runs on each of them would take its place at once, for a moment's work. Where the system has
    no such policy, or its starter chose another for this process, nothing changes.
    """
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return lambda: None
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        return lambda: None
    return lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


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
