"""Bringing what is served to what is on disk and to what the policy and the operator's calls say.

What is decided and switched is so on the event loop, one thing at a time; a thread of its own reads folders and loads.
"""

import asyncio
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from vaeserve.errors import BundleError, NotFoundError, VaeserveError, first_line
from vaeserve_service import catalog
from vaeserve_service.catalog import Fingerprint
from vaeserve_service.config import ServiceConfig
from vaeserve_service.health import Health
from vaeserve_service.loading import Loader
from vaeserve_service.metrics import Metrics
from vaeserve_service.model import Model
from vaeserve_service.policy import Policy
from vaeserve_service.repository import Repository, State

P = ParamSpec("P")
T = TypeVar("T")
Key = tuple[str, int]

log = structlog.get_logger()

# Seconds for which a version's series outlive it, so that its last counts are read.
FORGET_S = 600.0


class Watcher:
    """Loads new and changed versions, switches to those that can be served, and lets the others go.

    A version whose load fails takes nothing away: what was served still is. It is tried again once its files change.
    """

    def __init__(
        self,
        config: ServiceConfig,
        *,
        repository: Repository,
        loader: Loader,
        metrics: Metrics,
        health: Health,
        executor: Executor,
        forget_s: float = FORGET_S,
    ) -> None:
        """Watch by `executor`, which has one thread."""
        self._path = config.repository.path
        self._poll_s = config.repository.poll_s
        self._can_wait = config.repository.poll_s > 0 or config.admin.enabled
        self._policy = Policy(config.repository)
        self._repository = repository
        self._loader = loader
        self._metrics = metrics
        self._health = health
        self._executor = executor
        self._forget_s = forget_s
        self._one_at_a_time = asyncio.Lock()
        self._seen: dict[str, dict[int, Fingerprint]] = {}
        # The files that needn't be tried again: they are served, failed, or were unloaded by a call.
        self._done: dict[Key, Fingerprint] = {}
        # Versions that were loaded by a call, and that the policy wouldn't serve.
        self._extra: set[Key] = set()
        self._problems: dict[Path, str] = {}
        self._calls: set[asyncio.Task[Model]] = set()
        self._when_complete: Callable[[], None] | None = None

    async def start(self) -> None:
        """Load what is on disk, and say for which of the named models the service waits.

        Raises BundleError if there is nothing, for a model that isn't named and has no version that loads, and for one
        that is named where nothing could load it later.
        """
        if not await self._on_thread(self._path.is_dir):
            raise BundleError(f"{self._path}: no such folder; expected a repository: NAME/VERSION/manifest.json")
        await self.poll(at_once=True)
        for path, problem in self._problems.items():
            raise BundleError(f"{path}: {problem}")
        states = self._repository.states()
        for name, versions in states.items():
            if name not in self._repository and name not in self._policy.named:
                raise BundleError(versions[0].reason)
        if missing := self._missing():
            if not self._can_wait:
                raise BundleError(
                    f"{self._path / missing[0]}: can't be served, and poll_s = 0; expected it at the start"
                )
            log.warning("not ready: waiting for models", models=missing)
        elif not states:
            raise BundleError(f"{self._path}: no bundles; expected NAME/VERSION/manifest.json")

    def when_complete(self, callback: Callable[[], None]) -> None:
        """Call back once all that the settings name is served: now, if it is."""
        self._when_complete = callback
        self._call_if_complete()

    async def watch(self) -> None:
        """Look at the folder now and then, for ever, unless the settings say never."""
        while self._poll_s:
            await asyncio.sleep(self._poll_s)
            try:
                await self.poll()
            except Exception as error:  # a defect of ours, which mustn't end the watch
                self._metrics.poll_failed()
                log.error("internal error", exc_info=error)

    async def poll(self, *, at_once: bool = False) -> None:
        """Look at the folder once; files that have just changed wait for the next look, unless `at_once`."""
        try:
            names = await self._on_thread(catalog.names, self._path)
        except OSError as error:
            self._cannot_read(self._path, error)
            return
        self._say(self._path, "")
        for name in sorted({*names, *self._seen}):
            async with self._one_at_a_time:
                await self._bring(name, at_once=at_once)

    async def load(self, name: str, version: str) -> Model:
        """Load a version, or for "" the newest on disk, unless it is served as it is there; return it.

        Beyond the policy it is served until it is unloaded. A caller that goes away doesn't stop it. Raises
        NotFoundError for what isn't on disk, BundleError for what can't be loaded.
        """
        call = asyncio.create_task(self._load(name, version))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard of, even if nobody waits
        return await asyncio.shield(call)

    async def unload(self, name: str, version: str) -> None:
        """Stop serving a version, or for "" the model, until it is loaded by a call or its files change.

        Calls in flight are answered. Raises NotFoundError for what isn't served.
        """
        async with self._one_at_a_time:
            self._repository.get(name, version)
            on_disk, served = self._seen.get(name, {}), self._repository.served(name)
            for number in {int(version)} if version else {*on_disk, *served}:
                self._extra.discard((name, number))
                if number in served:
                    self._retire(name, number)
                if number in on_disk:
                    self._done[name, number] = on_disk[number]

    async def _load(self, name: str, version: str) -> Model:
        async with self._one_at_a_time:
            try:
                found = await self._on_thread(catalog.versions, self._path, name)
            except OSError as error:
                raise BundleError(
                    f"{self._path / name}: {error.strerror}; expected a folder that can be read"
                ) from None
            number = _pick(name, version, found)
            self._seen[name] = found
            candidates, count = self._policy.candidates(name, found)
            served = self._repository.served(name)
            if number not in served or self._done.get((name, number)) != found[number]:
                if reason := await self._try(name, number, found[number]):
                    raise BundleError(reason)
                if number not in served and number not in candidates[:count]:
                    self._extra.add((name, number))
            return self._repository.get(name, str(number))

    async def _bring(self, name: str, *, at_once: bool) -> None:
        """Load of a model what is to be served and isn't, and then let go what isn't to be.

        Files that have changed since the last look may still be on their way: they wait for the next, unless `at_once`,
        and until they have come, what is gone from disk still counts.
        """
        try:
            found = await self._on_thread(catalog.versions, self._path, name)
        except OSError as error:
            self._cannot_read(self._path / name, error)
            return
        before, self._seen[name] = self._seen.get(name, {}), found
        settled = {number: files for number, files in found.items() if at_once or before.get(number) == files}
        present = {*found} if settled == found else {*found, *self._repository.served(name)}
        extra = [number for number in present if (name, number) in self._extra]
        wanted = await self._serve(name, extra, len(extra), settled)
        wanted |= await self._serve(name, *self._policy.candidates(name, present), settled)
        self._let_go(name, wanted, found)

    async def _serve(self, name: str, numbers: list[int], count: int, settled: dict[int, Fingerprint]) -> set[int]:
        """Return the first `count` of some versions that are served, once those are tried whose files are new."""
        serving: set[int] = set()
        for number in numbers:
            if len(serving) == count:
                break
            if number in settled and self._done.get((name, number)) != settled[number]:
                await self._try(name, number, settled[number])
            if number in self._repository.served(name):
                serving.add(number)
        return serving

    def _let_go(self, name: str, wanted: set[int], found: dict[int, Fingerprint]) -> None:
        """Retire the versions that aren't wanted, but never the last of a model, whose volume may only be away."""
        served = self._repository.served(name)
        if wanted:
            for number in served - wanted:
                self._retire(name, number)
        for number in [number for of, number in self._done if of == name and number not in {*found, *served}]:
            del self._done[name, number]
            self._repository.forget(name, str(number))
        if served and not served & {*found}:
            self._say(self._path / name, "gone from disk; served until it is unloaded or another version is there")
        else:
            self._say(self._path / name, "")
        if not found and not served:
            del self._seen[name]

    async def _try(self, name: str, number: int, files: Fingerprint) -> str:
        """Load a version and switch to it; return why it can't be served, or nothing."""
        version = str(number)
        self._repository.note(name, version, State.LOADING)
        started = time.perf_counter()
        loaded = await self._on_thread(self._attempt, name, number)
        self._done[name, number] = files
        if isinstance(loaded, str):
            self._metrics.load_failed(name)
            self._repository.note(name, version, State.FAILED, loaded)
            still = sorted(self._repository.served(name))
            log.error("model not loaded", model=name, version=version, reason=loaded, still_served=still)
            return loaded
        self._metrics.loaded(name, time.perf_counter() - started)
        self._switch_to(loaded)
        log.info("model loaded", model=name, version=version, seconds=round(time.perf_counter() - started, 3))
        return ""

    def _attempt(self, name: str, number: int) -> Model | str:
        """Load a version, on the thread; return why not, in words, for an error would keep what it passed through."""
        try:
            return self._loader.load(name, number)
        except VaeserveError as error:
            return str(error)
        except BaseException as error:  # whatever it is, what is served goes on
            return f"{self._path / name / str(number)}: {type(error).__name__}: {first_line(error)}"

    def _switch_to(self, model: Model) -> None:
        self._repository.put(model)
        self._metrics.watch(model.name, model.version, _rows_waiting_for(model))
        self._health.set(model.name, serving=True)
        self._call_if_complete()

    def _retire(self, name: str, number: int) -> None:
        """Serve a version no more; those that it still answers hold it."""
        version = str(number)
        model = weakref.ref(self._repository.remove(name, version))
        self._done.pop((name, number), None)
        self._metrics.retire(name, version)
        self._health.set(name, serving=name in self._repository)
        self._forget_later(model, name, version)
        log.info("model unloaded", model=name, version=version)

    def _forget_later(self, model: "weakref.ref[Model]", name: str, version: str) -> None:
        asyncio.get_running_loop().call_later(self._forget_s, self._forget, model, name, version)

    def _forget(self, model: "weakref.ref[Model]", name: str, version: str) -> None:
        """Let go of a version's series, unless it still answers calls, or is served again."""
        if model() is not None:
            self._forget_later(model, name, version)
        elif int(version) not in self._repository.served(name):
            self._metrics.forget(name, version)

    def _call_if_complete(self) -> None:
        if self._when_complete is not None and not self._missing():
            self._when_complete()
            self._when_complete = None

    def _missing(self) -> list[str]:
        return self._policy.missing({name: self._repository.served(name) for name in self._repository.names()})

    def _cannot_read(self, path: Path, error: OSError) -> None:
        self._metrics.poll_failed()
        self._say(path, f"{error.strerror}; expected a folder that can be read")

    def _say(self, path: Path, problem: str) -> None:
        """Log what is wrong with a folder, once for as long as it lasts; "" says that nothing is."""
        if not problem:
            self._problems.pop(path, None)
        elif self._problems.get(path) != problem:
            self._problems[path] = problem
            log.error("repository", path=str(path), problem=problem)

    async def _on_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))


def _pick(name: str, version: str, found: dict[int, Fingerprint]) -> int:
    """Return the version that a call asks for, of those on disk."""
    if not found:
        raise NotFoundError(f"model: {name!r}; the repository has none of it; expected NAME/VERSION/manifest.json")
    if not version:
        return max(found)
    for number in found:
        if str(number) == version:
            return number
    known = ", ".join(map(str, sorted(found, reverse=True)))
    raise NotFoundError(f"model {name!r}, version: {version!r}; the repository has {known}")


def _rows_waiting_for(model: Model) -> Callable[[], int]:
    """Return what counts a model's waiting rows, and doesn't keep it."""
    served = weakref.ref(model)

    def rows() -> int:
        model = served()
        return 0 if model is None else model.waiting_rows

    return rows
