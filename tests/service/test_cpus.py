"""How many processors the cgroup allows, and which thread goes first."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaeserve_service.cpus import available_cpus, yield_to_others

ALLOWED = len(os.sched_getaffinity(0))


ROOT = "0::/"
SYSTEMD = "0::/system.slice/vaeserve.service"
V1 = "4:memory:/pod/a\n3:cpu,cpuacct:/pod/a\n0::/"


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        (ROOT, {"cpu.max": "100000 100000"}, 1),
        (ROOT, {"cpu.max": "50000 100000"}, 1),
        (ROOT, {"cpu.max": "max 100000"}, ALLOWED),
        (ROOT, {"cpu.max": "99900000 100000"}, ALLOWED),
        (ROOT, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        (ROOT, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALLOWED),
        (ROOT, {}, ALLOWED),
        (SYSTEMD, {"system.slice/vaeserve.service/cpu.max": "100000 100000"}, 1),
        (SYSTEMD, {"system.slice/vaeserve.service/cpu.max": "max 100000", "system.slice/cpu.max": "99 100"}, 1),
        (SYSTEMD, {"system.slice/vaeserve.service/cpu.max": "max 100000", "cpu.max": "99 100"}, 1),
        (SYSTEMD, {"system.slice/other.service/cpu.max": "100000 100000"}, ALLOWED),
        (V1, {"cpu/pod/a/cpu.cfs_quota_us": "100000", "cpu/pod/a/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "100000", "cpu/pod/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("0::/../..", {"cpu.max": "100000 100000"}, 1),
    ],
)
def test_the_quota_counts_and_not_the_host(tmp_path: Path, own: str, files: dict[str, str], cpus: int) -> None:
    """The least quota from the process's cgroup up to the root bounds the processors; without one the mask does."""
    mount = tmp_path / "mount"
    for name, content in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(content)
    (tmp_path / "own").write_text(f"{own}\n")
    assert available_cpus(mount, tmp_path / "own") == cpus


def test_without_proc_the_root_counts(tmp_path: Path) -> None:
    """Where nothing says which cgroup is the process's, it is the mount's root."""
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert available_cpus(tmp_path, tmp_path / "none") == 1


@pytest.fixture
def policy() -> Iterator[None]:
    """Set this thread's policy back to what it was."""
    before = os.sched_getscheduler(0)
    yield
    os.sched_setscheduler(0, before, os.sched_param(0))


def policy_of_a_new_thread() -> int:
    """Return the policy of a thread that this one starts."""
    policies: list[int] = []
    thread = threading.Thread(target=lambda: policies.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return policies[0]


@pytest.mark.usefixtures("policy")
def test_threads_that_are_started_yield_to_the_one_that_starts_them() -> None:
    """Between the two calls threads are started that preempt no other; the first one is as it was."""
    prefer_this_thread = yield_to_others()
    assert policy_of_a_new_thread() == os.SCHED_BATCH
    prefer_this_thread()
    assert (os.sched_getscheduler(0), policy_of_a_new_thread()) == (os.SCHED_OTHER, os.SCHED_OTHER)


@pytest.mark.usefixtures("policy")
def test_a_policy_that_the_starter_chose_stays() -> None:
    """A service that was started as a batch job stays one."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    yield_to_others()()
    assert os.sched_getscheduler(0) == os.SCHED_BATCH
