"""Work side by side, in real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vaeserve.errors import DataError, OperatorError
from vaeserve_training.sweep.processes import PROCESS_BYTES, Report, jobs_for, side_by_side


def square(number: int, report: Report) -> None:
    """Say twice what a number is, from a process of its own."""
    report(os.getpid())
    report(number * number)


def meet(folder: Path, others: int, number: int, report: Report) -> None:
    """Wait until as many are at work at once, say how many were seen, and stay until all have seen as many."""
    (folder / str(number)).touch()
    until(lambda: len(list(folder.glob("[0-9]"))) >= others)
    report(len(list(folder.glob("[0-9]"))))
    (folder / f"{number}.seen").touch()
    until(lambda: len(list(folder.glob("*.seen"))) >= others)
    (folder / str(number)).unlink()


def fail(number: int, _: Report) -> None:
    """Fail in several ways, or else wait for an end that doesn't come."""
    if number == 1:
        raise DataError("rows.csv: no rows")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    until(lambda: False)


def wait_beside(folder: Path, number: int, report: Report) -> None:
    """Write down this process's number, and wait to be ended."""
    (folder / f"{number}").write_text(str(os.getpid()))
    report(number)
    until(lambda: False)


@pytest.fixture(autouse=True)
def _known_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes import this module, wherever pytest was started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


def until(there: Callable[[], bool]) -> None:
    """Wait for something, two minutes at most."""
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(process: int) -> bool:
    """Tell whether a process has ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_each_task_is_done_in_a_process_of_its_own() -> None:
    """Every task is done once, in another process, and what it says comes in its order."""
    said: dict[int, list[int]] = {}
    side_by_side(square, [3, 4, 5], jobs=2, on_report=lambda task, value: said.setdefault(task, []).append(value))
    assert {number: values[1] for number, values in said.items()} == {3: 9, 4: 16, 5: 25}
    assert len({values[0] for values in said.values()} | {os.getpid()}) == 4


def test_no_more_run_than_may(tmp_path: Path) -> None:
    """Two tasks are at work at once where two may be, and never a third."""
    seen: list[int] = []
    side_by_side(partial(meet, tmp_path, 2), [0, 1], jobs=2, on_report=lambda _, value: seen.append(value))
    assert max(seen) == 2
    seen.clear()
    side_by_side(partial(meet, tmp_path, 1), [0, 1, 2], jobs=1, on_report=lambda _, value: seen.append(value))
    assert seen == [1, 1, 1]


def test_nothing_to_do_is_done() -> None:
    """No task takes no process, and none is told of."""
    seen: list[int] = []
    side_by_side(square, [], jobs=2, on_report=lambda _, value: seen.append(value))
    assert not seen


def test_an_error_comes_back_as_it_was() -> None:
    """What a task raises is raised here, and the tasks beside it are ended."""
    with pytest.raises(DataError, match=r"^rows.csv: no rows$"):
        side_by_side(fail, [0, 1], jobs=2)


def test_a_killed_process_is_told() -> None:
    """A process that something kills, as a kernel without memory does, is named, with what to do."""
    with pytest.raises(OperatorError, match=r"2: its process ended with -9, .* --resume goes on, with fewer --jobs"):
        side_by_side(fail, [2], jobs=1)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Where the one that started them is killed, and can do nothing more, they end by themselves."""
    script = (
        "import functools, pathlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "import tests.training.sweep.test_processes as t\n"
        "from vaeserve_training.sweep.processes import side_by_side\n"
        "if __name__ == '__main__':\n"
        "    side_by_side(functools.partial(t.wait_beside, pathlib.Path(sys.argv[2])), [0, 1], jobs=2)\n"
    )
    path = tmp_path / "start.py"
    path.write_text(script)
    folder = tmp_path / "there"
    folder.mkdir()
    with subprocess.Popen([sys.executable, str(path), str(Path(__file__).parents[3]), str(folder)]) as started:
        until(lambda: all((folder / name).exists() and (folder / name).read_text() for name in ("0", "1")))
        started.kill()
    until(lambda: all(gone(int((folder / name).read_text())) for name in ("0", "1")))


def test_as_many_run_as_cores_and_memory_allow() -> None:
    """There is one job at least, no more than tasks or cores, and fewer where each takes much memory."""
    cores = len(os.sched_getaffinity(0))
    assert 1 <= jobs_for(100, bytes_each=0) <= cores
    assert jobs_for(1, bytes_each=0) == 1
    assert jobs_for(100, bytes_each=2**50) == 1
    assert PROCESS_BYTES > 0
