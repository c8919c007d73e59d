"""What is served as versions come, change and go: a watcher in this process, with real bundles on real sessions."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.conftest import NAME, Shelf
from vaeserve.arrays import read_arrays
from vaeserve.bundle import MANIFEST
from vaeserve.errors import BundleError, NotFoundError
from vaeserve.manifest import Manifest, entries
from vaeserve.scores import ScoreOptions
from vaeserve_service.batcher import Batcher
from vaeserve_service.config import AdminConfig, BatchingConfig, RepositoryConfig, ServiceConfig
from vaeserve_service.health import LIVENESS, SERVING, Health
from vaeserve_service.loading import Loader
from vaeserve_service.metrics import Metrics
from vaeserve_service.model import Model
from vaeserve_service.repository import Repository, State
from vaeserve_service.requests import Request
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Arrays, Runtime
from vaeserve_service.watcher import Watcher

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@dataclass
class Served:
    """A service without its ports. Its one runner can be kept busy."""

    watcher: Watcher
    repository: Repository
    metrics: Metrics
    health: Health
    runners: Runners
    completed: list[bool] = field(default_factory=list)

    def versions(self, name: str = NAME) -> list[str]:
        """Return the versions that are served, newest first."""
        return [model.version for model in self.repository if model.name == name]

    def states(self, name: str = NAME) -> dict[str, tuple[State, str]]:
        """Return each version's state and reason."""
        return {state.version: (state.state, state.reason) for state in self.repository.states_of(name)}

    def keep_busy(self, until: threading.Event) -> Request:
        """Keep the runner from all other work."""

        def wait(_: str, inputs: Arrays) -> Arrays:
            until.wait()
            return inputs

        blocker = Batcher(wait, runners=self.runners, max_rows=1, max_delay_s=0, queue_rows=1, queue_bytes=100)
        return blocker.submit("", {"x": np.zeros(1)})

    def serves(self, name: str) -> bool:
        """Tell what the health service says of a name."""
        return self.health.state(name).status == SERVING

    def metric(self, series: str) -> float | None:
        """Return a metric's value, None if there is no such series."""
        lines = self.metrics.exposition().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), None)

    async def settle(self) -> None:
        """Look twice: what was copied before is loaded after."""
        await self.watcher.poll()
        await self.watcher.poll()


@asynccontextmanager
async def watching(
    shelf: Shelf, *, loader: type[Loader] = Loader, admin: bool = False, forget_s: float = 0.0, **settings: Any
) -> AsyncIterator[Served]:
    """Yield a service that has started; it looks at the folder when it is told to."""
    config = ServiceConfig(
        repository=RepositoryConfig(path=shelf.path, **settings),
        admin=AdminConfig(enabled=admin),
        batching=BatchingConfig(max_rows=8),
    )
    metrics, health, repository = Metrics(), Health(), Repository()
    with Runners(1) as runners, ThreadPoolExecutor(1) as thread:
        watcher = Watcher(
            config,
            repository=repository,
            loader=loader(config, runners=runners, metrics=metrics),
            metrics=metrics,
            health=health,
            executor=thread,
            forget_s=forget_s,
        )
        await watcher.start()
        served = Served(watcher, repository, metrics, health, runners)
        watcher.when_complete(lambda: served.completed.append(True))
        yield served


async def scored(model: Model) -> Arrays:
    """Answer a call as the service does, which holds the model until then."""
    return await model.score({"numeric": ROWS}, ScoreOptions())


async def test_a_new_version_takes_the_place_of_the_old(shelf: Shelf) -> None:
    """Once it is there as it was a look ago it serves, and the old one goes; metrics and health follow."""
    shelf.add(1)
    async with watching(shelf) as served:
        assert served.versions() == ["1"]
        shelf.add(2, bundle=1)
        await served.watcher.poll()
        assert served.versions() == ["1"]
        await served.watcher.poll()
        assert served.versions() == ["2"]
        assert served.metric('vaeserve_model_ready{model="table3",version="1"}') is None
        assert served.metric('vaeserve_model_ready{model="table3",version="2"}') == 1
        assert served.metric('vaeserve_model_loads_total{model="table3"}') == 2
        assert served.metric('vaeserve_model_load_failures_total{model="table3"}') == 0
        assert served.metric('vaeserve_model_load_seconds_count{model="table3"}') == 2
        assert served.completed == [True]


async def test_calls_in_flight_end_on_their_version_which_is_then_freed(shelf: Shelf) -> None:
    """A call that waits while its version is replaced has that version's bits; then nothing holds its sessions."""
    shelf.add(1)
    gc.collect()
    gc.disable()  # what only a collector frees would stay for minutes
    try:
        async with watching(shelf) as served:
            model: Model | None = served.repository.get(NAME)
            assert model is not None
            freed, go = weakref.ref(model), threading.Event()
            busy = served.keep_busy(go)
            call = asyncio.create_task(scored(model))
            model = None
            await asyncio.sleep(0)
            shelf.add(2, bundle=1)
            await served.settle()
            assert served.versions() == ["2"]
            assert freed() is not None  # the control: a reference that is held is seen
            go.set()
            await busy
            old = await call
            new = await served.repository.get(NAME).score({"numeric": ROWS}, ScoreOptions())
            del call
            for scores, bundle in ((old, shelf.bundles[0]), (new, shelf.bundles[1])):
                noise = bundle.noise[: bundle.manifest.num_samples]
                expected = Runtime.load(bundle).score({"numeric": ROWS}, noise)
                assert scores["records"]["elbo"].tobytes() == expected["elbo"].tobytes()
            assert old["records"].tobytes() != new["records"].tobytes()
            assert freed() is None
    finally:
        gc.enable()


async def test_a_copy_is_left_alone_while_it_grows(shelf: Shelf) -> None:
    """A folder that is being copied fails nothing; one that stops halfway fails once, and serves when it is whole."""
    shelf.add(1)
    async with watching(shelf) as served:
        source, target = shelf.bundles[1].path, shelf.path / NAME / "2"
        target.mkdir()
        for name in (MANIFEST, "encoder.onnx", "decoder.onnx"):
            shutil.copy(source / name, target)
            await served.watcher.poll()
        (target / "scorer.onnx").write_bytes((source / "scorer.onnx").read_bytes()[:1000])
        await served.watcher.poll()
        assert served.metric('vaeserve_model_load_failures_total{model="table3"}') == 0
        for _ in range(3):
            await served.watcher.poll()
        assert served.metric('vaeserve_model_load_failures_total{model="table3"}') == 1
        state, reason = served.states()["2"]
        assert (state, "missing; the manifest lists it" in reason or "1000 bytes" in reason) == (State.FAILED, True)
        shutil.copytree(source, target, dirs_exist_ok=True)
        await served.settle()
        assert served.versions() == ["2"]


def _truncate(folder: Path) -> None:
    (folder / "scorer.onnx").write_bytes((folder / "scorer.onnx").read_bytes()[:1000])


def _change_a_byte(folder: Path) -> None:
    content = bytearray((folder / "encoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "encoder.onnx").write_bytes(content)


def _change_what_pytorch_gave(folder: Path) -> None:
    """Write golden rows that the graphs don't give, in a bundle that is whole."""
    golden = read_arrays((folder / "golden.npz").read_bytes())
    with (folder / "golden.npz").open("wb") as file:
        np.savez(file, **(golden | {"scorer/elbo": golden["scorer/elbo"] + 1}))  # type: ignore[arg-type]
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    changed = Manifest.model_validate(dict(manifest) | {"files": entries(files)})
    (folder / MANIFEST).write_text(changed.model_dump_json())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_truncate, "scorer.onnx: 1000 bytes; the manifest says"),
        (_change_a_byte, "encoder.onnx: SHA-256"),
        (_change_what_pytorch_gave, "elbo of the golden rows is off by 0."),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "manifest.json: format_version: Field required"),
        (lambda folder: (folder / "noise.npy").unlink(), "noise.npy: missing; the manifest lists it"),
    ],
    ids=["truncated", "hash", "golden", "manifest", "missing"],
)
async def test_a_bad_version_changes_nothing_until_it_is_mended(
    shelf: Shelf, spoil: Callable[[Path], None], reason: str
) -> None:
    """The old version serves on, state and metric tell of the new one once, and mended in place it serves."""
    shelf.add(1)
    async with watching(shelf) as served:
        aside = shutil.copytree(shelf.bundles[1].path, shelf.path.with_name("aside"))
        spoil(aside)
        aside.rename(shelf.path / NAME / "2")
        for _ in range(3):
            await served.settle()
        assert served.versions() == ["1"]
        assert served.metric('vaeserve_model_load_failures_total{model="table3"}') == 1
        assert served.states()["1"] == (State.READY, "")
        state, said = served.states()["2"]
        assert (state, reason in said) == (State.FAILED, True), said
        assert served.serves(NAME)
        shutil.copytree(shelf.bundles[1].path, shelf.path / NAME / "2", dirs_exist_ok=True)
        await served.settle()
        assert served.states() == {"2": (State.READY, "")}


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3), RuntimeError("a defect"), OSError()])
async def test_whatever_a_load_raises_the_old_version_serves(shelf: Shelf, error: BaseException) -> None:
    """Errors of any kind are a state with a reason, and the next change is tried."""

    class Failing(Loader):
        def load(self, name: str, version: int) -> Model:
            if version == 2:
                raise error
            return super().load(name, version)

    shelf.add(1)
    async with watching(shelf, loader=Failing) as served:
        shelf.add(2)
        await served.settle()
        assert served.versions() == ["1"]
        state, reason = served.states()["2"]
        assert state is State.FAILED
        assert f"{NAME}/2: {type(error).__name__}" in reason
        shelf.add(3)
        await served.settle()
        assert served.versions() == ["3"]


async def test_files_that_change_in_place_are_loaded_again(shelf: Shelf) -> None:
    """A served version is checked and replaced like a new one, and kept as it was where that fails."""
    folder = shelf.add(1)
    async with watching(shelf) as served:
        first = served.repository.get(NAME)
        (folder / "scorer.onnx").write_bytes(b"")
        await served.settle()
        assert served.repository.get(NAME) is first
        state, reason = served.states()["1"]
        assert (state, "scorer.onnx: 0 bytes" in reason) == (State.READY, True)
        shutil.copytree(shelf.bundles[1].path, folder, dirs_exist_ok=True)
        await served.settle()
        second = served.repository.get(NAME)
        assert second is not first
        assert served.states() == {"1": (State.READY, "")}
        assert second.manifest_json == shelf.bundles[1].manifest_json.decode()


async def test_the_last_version_is_served_though_its_folder_is_gone(shelf: Shelf) -> None:
    """A model isn't lost with its volume; where another version is there the one that is gone makes way for it."""
    shelf.add(1)
    shelf.add(2)
    async with watching(shelf) as served:
        assert served.versions() == ["2"]
        shutil.rmtree(shelf.path / NAME / "2")
        await served.settle()
        assert served.versions() == ["1"]
        shelf.path.rename(shelf.path.with_name("away"))
        await served.settle()
        assert served.metric("vaeserve_repository_poll_failures_total") == 2
        shelf.path.mkdir()
        await served.settle()
        assert served.versions() == ["1"]
        shelf.add(3)
        await served.settle()
        assert served.versions() == ["3"]


async def test_a_version_that_is_gone_waits_for_one_that_is_being_copied(shelf: Shelf) -> None:
    """Who publishes and prunes at once doesn't bring an older version back for the time of a look."""
    for version in (1, 2):
        shelf.add(version)
    async with watching(shelf) as served:
        shutil.rmtree(shelf.path / NAME / "2")
        shelf.add(3)
        await served.watcher.poll()
        assert served.versions() == ["2"]
        await served.watcher.poll()
        assert served.versions() == ["3"]
        assert served.metric('vaeserve_model_loads_total{model="table3"}') == 2


async def test_an_older_version_serves_where_the_newest_does_not_load(shelf: Shelf) -> None:
    """A service that starts beside a bad version has what those that run have; and no model without one that loads."""
    for version in (1, 2, 3):
        shelf.add(version)
    _truncate(shelf.path / NAME / "3")
    async with watching(shelf) as served:
        assert served.versions() == ["2"]
        assert served.states()["3"][0] is State.FAILED
    async with watching(shelf, latest=2) as served:
        assert served.versions() == ["2", "1"]
    shelf.add(1, name="other")
    _truncate(shelf.path / "other" / "1")
    with pytest.raises(BundleError, match="other/1/scorer.onnx: 1000 bytes"):
        async with watching(shelf):
            pass


async def test_versions_and_models_are_those_of_the_settings(shelf: Shelf) -> None:
    """The newest few are served, or those that are listed, of the models that are named; 10 is newer than 9."""
    for version in (1, 9, 10):
        shelf.add(version)
    shelf.add(1, name="other")
    async with watching(shelf, latest=2) as served:
        assert (served.versions(), served.versions("other")) == (["10", "9"], ["1"])
        assert served.repository.get(NAME).version == "10"
    async with watching(shelf, versions={NAME: [1, 9]}) as served:
        assert (served.versions(), served.versions("other")) == (["9", "1"], ["1"])
        shelf.add(11)
        await served.settle()
        assert served.versions() == ["9", "1"]
    async with watching(shelf, models=["other"]) as served:
        assert served.repository.names() == ["other"]


async def test_what_is_named_is_waited_for(shelf: Shelf) -> None:
    """A named model that isn't there, or is broken, leaves the service incomplete until it is served."""
    folder = shelf.add(1)
    _truncate(folder)
    async with watching(shelf, models=[NAME, "other"]) as served:
        assert (served.repository.names(), served.completed) == ([], [])
        with pytest.raises(NotFoundError, match="the service has none yet"):
            served.repository.get(NAME)
        shelf.add(1, name="other")
        await served.settle()
        assert (served.repository.names(), served.completed) == (["other"], [])
        shutil.copytree(shelf.bundles[0].path, folder, dirs_exist_ok=True)
        await served.settle()
        assert (served.repository.names(), served.completed) == (["other", NAME], [True])
    with pytest.raises(BundleError, match="missing: can't be served, and poll_s = 0"):
        async with watching(shelf, models=["missing"], poll_s=0):
            pass


async def test_what_a_call_unloads_stays_so_until_its_files_change(shelf: Shelf) -> None:
    """Looks at the folder don't bring it back; new files do, a new version does, and a call does."""
    folder = shelf.add(1)
    async with watching(shelf) as served:
        await served.watcher.unload(NAME, "")
        await served.settle()
        assert (served.versions(), served.states()) == ([], {})
        assert not served.serves(NAME)
        assert served.serves(LIVENESS)
        with pytest.raises(NotFoundError):
            await served.watcher.unload(NAME, "")
        assert (await served.watcher.load(NAME, "")).version == "1"
        assert served.serves(NAME)
        await served.watcher.unload(NAME, "1")
        (folder / MANIFEST).touch()
        await served.settle()
        assert served.versions() == ["1"]
        await served.watcher.unload(NAME, "")
        shelf.add(2)
        await served.settle()
        assert served.versions() == ["2"]
        shelf.add(1, name="other")
        await served.watcher.load("other", "")
        await served.watcher.unload("other", "")
        await served.settle()
        assert served.versions("other") == []


async def test_what_a_call_loads_beyond_the_policy_stays(shelf: Shelf) -> None:
    """An older version serves beside the newest until it is unloaded; one that the policy has is let go by it."""
    for version in (1, 2, 3):
        shelf.add(version)
    async with watching(shelf) as served:
        await served.watcher.load(NAME, "1")
        await served.watcher.load(NAME, "3")
        shelf.add(4)
        await served.settle()
        assert served.versions() == ["4", "1"]
        await served.watcher.unload(NAME, "1")
        await served.settle()
        assert served.versions() == ["4"]


async def test_a_load_that_cannot_be_says_why(shelf: Shelf) -> None:
    """What isn't on disk is NotFoundError, what is broken BundleError, and asked again it is tried again."""
    shelf.add(1)
    async with watching(shelf) as served:
        _truncate(shelf.add(2))
        for _ in range(2):
            with pytest.raises(BundleError, match="scorer.onnx: 1000 bytes"):
                await served.watcher.load(NAME, "2")
        assert served.metric('vaeserve_model_load_failures_total{model="table3"}') == 2
        for name, version, message in (
            (NAME, "9", "version: '9'; the repository has 2, 1"),
            ("fraud", "", "model: 'fraud'; the repository has none of it"),
            (f"../{shelf.path.name}/{NAME}", "1", "the repository has none of it"),
        ):
            with pytest.raises(NotFoundError, match=message):
                await served.watcher.load(name, version)
        assert served.versions() == ["1"]


async def test_a_caller_that_goes_away_stops_no_load(shelf: Shelf) -> None:
    """What was begun is done."""
    shelf.add(1)
    async with watching(shelf) as served:
        shelf.add(2)
        call = asyncio.create_task(served.watcher.load(NAME, "2"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while served.versions() != ["2", "1"]:  # until pytest's time is up
            await asyncio.sleep(0.01)


async def test_series_go_with_their_version(shelf: Shelf) -> None:
    """A version's series stay while it answers calls, and are dropped after; of a version served again they stay."""
    folder = shelf.add(1)
    series = 'vaeserve_batch_rows_count{model="table3",version="1"}'
    async with watching(shelf) as served:
        await served.repository.get(NAME).score({"numeric": ROWS}, ScoreOptions())
        held: Model | None = served.repository.get(NAME)
        (folder / MANIFEST).touch()
        await served.settle()
        await asyncio.sleep(0.01)
        assert served.metric(series) == 1
        held = served.repository.get(NAME)
        shelf.add(2)
        await served.settle()
        await asyncio.sleep(0.01)
        assert served.metric(series) == 1
        del held
        while served.metric(series) is not None:  # until pytest's time is up
            await asyncio.sleep(0.01)


async def test_no_model_has_the_name_of_liveness(shelf: Shelf) -> None:
    """Its health would be the process's: it is refused with that reason."""
    shelf.add(1)
    async with watching(shelf) as served:
        shelf.add(1, name=LIVENESS)
        await served.settle()
        state, reason = served.states(LIVENESS)["1"]
        assert (state, "'liveness' is the health service's name" in reason) == (State.FAILED, True)
        assert served.serves(LIVENESS)
        shutil.rmtree(shelf.path / LIVENESS)
        await served.settle()
        assert set(served.repository.states()) == {NAME}
