"""A running service whose versions come, change and go: what its callers and its probes see."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.service.conftest import NAME, Shelf
from tests.service.test_server import get, metric
from vaeserve import Client
from vaeserve.errors import NotFoundError
from vaeserve.local import LocalService, serve_locally
from vaeserve.signature import Rows
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import ModelAdminStub, VaeServiceStub

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
ADMIN = ("--set", "admin.enabled=true")


@contextmanager
def serving(shelf: Shelf, *options: str) -> Iterator[tuple[LocalService, Client]]:
    """Start a service that looks at its folder often, and a client of it."""
    often = ("--set", "repository.poll_s=0.05")
    with (
        serve_locally(shelf.path, log=shelf.path.with_name("log"), options=[*often, *options]) as service,
        Client(service.target) as client,
    ):
        yield service, client


def wait_until(true: Callable[[], bool], service: LocalService) -> None:
    """Wait, until pytest's time is up, for what a running service should come to."""
    while not true():
        assert service.process.poll() is None, service.log.read_text()
        time.sleep(0.01)


def is_serving(service: LocalService, name: str) -> bool:
    """Tell what the health service says of a name."""
    with Client(service.target) as client:
        return client.health(name)


def test_a_hot_reload_under_load_loses_no_call(shelf: Shelf) -> None:
    """While 20 versions follow one another, every call is answered, by the old version and from then on by the new.

    Rows of named columns too, though they are made for one version.
    """
    shelf.add(1)
    answers: list[list[tuple[int, bytes]]] = [[], [], []]
    done = threading.Event()
    named = {column.name: ROWS[:, index] for index, column in enumerate(shelf.bundles[0].manifest.signature.columns)}

    def call(target: str, rows: Rows, answered: list[tuple[int, bytes]]) -> None:
        with Client(target) as client:
            while not done.is_set():
                scores = client.score(NAME, rows)
                answered.append((int(scores.version), scores.elbo.tobytes()))

    with serving(shelf) as (service, client):
        callers = [
            threading.Thread(target=call, args=(service.target, rows, answered))
            for rows, answered in zip((ROWS, ROWS, named), answers, strict=True)
        ]
        for caller in callers:
            caller.start()
        try:
            for version in range(2, 22):
                shelf.add(version, bundle=1 - version % 2)
                wait_until(lambda version=version: client.score(NAME, ROWS).version == str(version), service)  # type: ignore[misc]
        finally:
            done.set()
            for caller in callers:
                caller.join()
    bits = {version % 2: elbo for version, elbo in answers[0]}
    for answered in answers:
        versions = [version for version, _ in answered]
        assert versions == sorted(versions)
        assert versions[0] < versions[-1]
        assert all(elbo == bits[version % 2] for version, elbo in answered)
        assert sum(old != new for old, new in pairwise(versions)) == len(set(versions)) - 1
    assert bits[0] != bits[1]


def test_a_bad_version_is_told_of_and_mended(shelf: Shelf) -> None:
    """A truncated version leaves the old one serving, and models, metric and log say so; mended it serves."""
    shelf.add(1)
    with serving(shelf) as (service, client):
        aside = shutil.copytree(shelf.bundles[1].path, shelf.path.with_name("aside"))
        (aside / "scorer.onnx").write_bytes((aside / "scorer.onnx").read_bytes()[:1000])
        aside.rename(shelf.path / NAME / "2")
        wait_until(lambda: metric(service, 'vaeserve_model_load_failures_total{model="table3"}') == 1, service)
        with grpc.insecure_channel(service.target) as channel:
            stub = VaeServiceStub(channel)
            (model,) = stub.ListModels(pb.ListModelsRequest(), timeout=20).models
            shown = stub.GetModel(pb.GetModelRequest(model=pb.ModelSpec(name=NAME)), timeout=20)
        assert [(each.version, each.state) for each in model.versions] == [("2", pb.FAILED), ("1", pb.READY)]
        assert "scorer.onnx: 1000 bytes; the manifest says" in model.versions[0].reason
        assert (shown.model.version, list(shown.versions)) == ("1", list(model.versions))
        assert client.models()[0].versions == ("1",)
        assert client.score(NAME, ROWS).version == "1"
        assert is_serving(service, NAME)
        shutil.copytree(shelf.bundles[1].path, shelf.path / NAME / "2", dirs_exist_ok=True)
        wait_until(lambda: client.score(NAME, ROWS).version == "2", service)
        assert metric(service, 'vaeserve_model_ready{model="table3",version="2"}') == 1
    events = [json.loads(line) for line in service.log.read_text().splitlines()]
    (failure,) = [event for event in events if event["event"] == "model not loaded"]
    assert (failure["model"], failure["version"], failure["still_served"]) == (NAME, "2", [1])


def test_a_named_model_makes_the_service_wait(shelf: Shelf) -> None:
    """Until it is there the service is alive and not ready, by either port, and then it is."""
    with serving(shelf, "--set", f'repository.models=["{NAME}"]') as (service, client):
        assert (get(f"{service.http}/livez")[0], get(f"{service.http}/readyz")[0]) == (200, 503)
        assert (is_serving(service, "liveness"), is_serving(service, "")) == (True, False)
        with pytest.raises(NotFoundError, match="the service has none yet"):
            client.score(NAME, ROWS)
        assert "not ready: waiting for models" in service.log.read_text()
        shelf.add(1)
        wait_until(lambda: get(f"{service.http}/readyz")[0] == 200, service)
        assert is_serving(service, "")
        assert is_serving(service, NAME)
        assert client.score(NAME, ROWS).version == "1"


def test_an_operator_loads_and_unloads(shelf: Shelf) -> None:
    """Load answers once the version serves, Unload once no call reaches it; the model's health follows."""
    shelf.add(1)
    spec = pb.ModelSpec(name=NAME)
    with (
        serving(shelf, *ADMIN, "--set", "repository.poll_s=0") as (service, client),
        grpc.insecure_channel(service.target) as channel,
    ):
        admin: Any = ModelAdminStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=60)
        states = [next(watch).status]
        shelf.add(2)
        loaded = admin.Load(pb.LoadRequest(model=spec), timeout=60)
        assert (loaded.model.version, loaded.state) == ("2", pb.READY)
        assert client.score(NAME, ROWS).version == "2"
        left = admin.Unload(pb.UnloadRequest(model=pb.ModelSpec(name=NAME, version="2")), timeout=60)
        assert [(each.version, each.state) for each in left.versions] == [("1", pb.READY)]
        assert client.score(NAME, ROWS).version == "1"
        admin.Unload(pb.UnloadRequest(model=spec), timeout=60)
        states.append(next(watch).status)
        with pytest.raises(NotFoundError):
            client.score(NAME, ROWS)
        assert is_serving(service, "liveness")
        admin.Load(pb.LoadRequest(model=spec), timeout=60)
        states.append(next(watch).status)
        watch.cancel()
        serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert states == [serving_, not_serving, serving_]
        assert is_serving(service, "vaeserve.v1.ModelAdmin")
        assert "vaeserve.v1.ModelAdmin" in reflected(channel)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        (pb.ModelSpec(name=NAME, version="2"), "FAILED_PRECONDITION", "scorer.onnx: 1000 bytes; the manifest says"),
        (pb.ModelSpec(name=NAME, version="7"), "NOT_FOUND", "version: '7'; the repository has 2, 1"),
        (pb.ModelSpec(name="../shelf/table3", version="1"), "NOT_FOUND", "the repository has none of it"),
        (pb.ModelSpec(), "INVALID_ARGUMENT", "model.name: empty"),
    ],
)
def test_a_load_that_cannot_be_has_its_code(broken: grpc.Channel, model: pb.ModelSpec, code: str, message: str) -> None:
    """What is broken, what isn't there and what isn't named are told apart."""
    admin: Any = ModelAdminStub(broken)
    with pytest.raises(grpc.RpcError) as refusal:
        admin.Load(pb.LoadRequest(model=model), timeout=60)
    assert refusal.value.code().name == code
    assert message in str(refusal.value.details())


@pytest.fixture(scope="module")
def broken(two_bundles: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A channel to a service whose second version is truncated."""
    shelf = Shelf(tmp_path_factory.mktemp("broken") / "shelf", two_bundles)
    shelf.add(1)
    scorer = shelf.add(2) / "scorer.onnx"
    scorer.write_bytes(scorer.read_bytes()[:1000])
    with serving(shelf, *ADMIN) as (service, _), grpc.insecure_channel(service.target) as channel:
        yield channel


def reflected(channel: grpc.Channel) -> set[str]:
    """Return the services that reflection lists."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    return {service.name for service in answer.list_services_response.service}


def test_nobody_loads_unless_it_is_enabled(shelf: Shelf) -> None:
    """By default there is no such service, nor any word of it."""
    shelf.add(1)
    with serving(shelf) as (service, _), grpc.insecure_channel(service.target) as channel:
        admin: Any = ModelAdminStub(channel)
        for call, request in ((admin.Load, pb.LoadRequest()), (admin.Unload, pb.UnloadRequest())):
            with pytest.raises(grpc.RpcError) as refusal:
                call(request, timeout=20)
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "vaeserve.v1.ModelAdmin" not in reflected(channel)
        with pytest.raises(NotFoundError):
            is_serving(service, "vaeserve.v1.ModelAdmin")


def resident_mib(service: LocalService) -> float:
    """Return how much memory a service's process has."""
    status = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.slow
def test_memory_returns_to_its_level_after_50_reloads(shelf: Shelf) -> None:
    """After 60 of them there is as much as after 10, though a version that stayed would take 26 MiB."""
    shelf.add(1)
    levels = []
    # Warmed with large batches, for that much memory.
    with serving(shelf, "--set", "batching.max_rows=4096") as (service, client):
        for version in range(2, 62):
            shelf.add(version)
            wait_until(lambda version=version: client.score(NAME, ROWS).version == str(version), service)  # type: ignore[misc]
            shutil.rmtree(shelf.path / NAME / str(version - 1))
            levels.append(resident_mib(service))
    assert levels[59] - levels[9] < 50 * 26 / 8
