"""How many processors this process may use, the cgroup's limit and not the host's count, and who of it goes first."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available_cpus(cgroup: Path = CGROUP, own: Path = OWN) -> int:
    """Return the processors that the affinity mask and the quotas of this process's cgroups allow, at least 1.

    cgroup: where they are mounted. own: the file that says which of them are this process's.
    """
    return max(1, min(len(os.sched_getaffinity(0)), *map(_quota, _folders(cgroup, own))))


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


def _folders(cgroup: Path, own: Path) -> Iterator[Path]:
    """Yield the folders whose quotas bound this process: its cgroup's, and those above it up to the mount's root.

    Its own is the root only in a namespace of cgroups. Where the mount shows less than the path says, the root counts.
    """
    yield from (cgroup, cgroup / "cpu")
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            folder = (cgroup / "cpu" if controllers else cgroup) / path.lstrip("/")
            yield from (folder, *(above for above in folder.parents if above.is_relative_to(cgroup)))


def _quota(folder: Path) -> int:
    """Return the whole processors of a cgroup's quota, rounded up: v2's `cpu.max`, else v1's; without one, all."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        limit, period = _v1(folder)
    if limit in ("max", "-1"):
        return os.cpu_count() or 1
    return math.ceil(int(limit) / int(period))


def _v1(folder: Path) -> tuple[str, str]:
    try:
        return (folder / "cpu.cfs_quota_us").read_text().strip(), (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return "max", "1"
