"""How many processors the cgroup allows."""

import os
from pathlib import Path

import pytest

from vaeserve_service.cpus import available_cpus

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, ALLOWED),
        ({"cpu.max": "99900000 100000"}, ALLOWED),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALLOWED),
        ({}, ALLOWED),
    ],
)
def test_the_quota_counts_and_not_the_host(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    """The cgroup's quota, of either version, bounds the processors; without one the affinity mask does."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cpus(tmp_path) == cpus
