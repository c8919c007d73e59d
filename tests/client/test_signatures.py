"""Columns matched by name, while versions come and go: never in another's order, and no call more than it takes."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.test_coalescing import calls_of
from vaeserve import Client
from vaeserve.client import _run
from vaeserve.errors import InvalidInputError, NotFoundError
from vaeserve.local import LocalService, serve_locally
from vaeserve.messages import ModelInfo
from vaeserve.signature import Signature
from vaeserve.signatures import Signatures


@dataclass(frozen=True)
class Answer:
    """What a version made of rows."""

    version: str
    seen: dict[str, float]


class Service:
    """Versions of a model with their columns' order; the newest answers where none is asked for."""

    def __init__(self, **versions: list[str]) -> None:
        self.versions = {name.removeprefix("v"): columns for name, columns in versions.items()}
        self.asked = self.sent = 0

    def _get(self, version: str) -> tuple[str, list[str]]:
        version = version or max(self.versions)
        if version not in self.versions:
            raise NotFoundError(version)
        return version, self.versions[version]

    async def ask(self, model: str, version: str) -> ModelInfo:
        """Answer GetModel."""
        self.asked += 1
        found, columns = self._get(version)
        return ModelInfo(model, found, Signature.numbers(columns), {}, "")

    async def send(self, version: str, inputs: Any) -> Answer:
        """Take the tensor's columns for those of the version that answers."""
        self.sent += 1
        found, columns = self._get(version)
        (row,) = inputs["numeric"].tolist()
        if len(row) != len(columns):
            raise InvalidInputError("columns")
        return Answer(found, dict(zip(columns, row, strict=True)))


def call(signatures: Signatures, service: Service, version: str = "", **columns: float) -> Answer:
    """Make a call with a row of named columns."""
    rows = {name: [value] for name, value in columns.items()}
    return _run(signatures.call("m", version, rows, send=service.send, ask=service.ask))


def test_the_signature_is_asked_for_once() -> None:
    """Not again for a call more, by the newest or by a version."""
    signatures, service = Signatures(), Service(v1=["a", "b"])
    for version in ("", "1"):
        for _ in range(5):
            assert call(signatures, service, version, b=2, a=1).seen == {"a": 1, "b": 2}
    assert (service.asked, service.sent) == (2, 10)


def test_a_version_with_another_order_is_never_given_the_old_one() -> None:
    """Whatever the new version's columns are, what it answers is for the right ones."""
    for columns in (["b", "a"], ["a", "b"], ["b"], ["b", "a", "c"]):
        for gone in (True, False):
            signatures, service = Signatures(), Service(v1=["a", "b"])
            call(signatures, service, a=1, b=2, c=3)
            service.versions["2"] = columns
            if gone:
                del service.versions["1"]
            answer = call(signatures, service, a=1, b=2, c=3)
            assert answer.version == "2"
            assert answer.seen == {name: {"a": 1, "b": 2, "c": 3}[name] for name in columns}
            before = service.asked, service.sent
            assert call(signatures, service, a=1, b=2, c=3) == answer
            assert (service.asked, service.sent) == (before[0], before[1] + 1)


def test_the_same_columns_cost_no_second_call() -> None:
    """A version trained anew on them is asked what it takes, and its answer stands."""
    signatures, service = Signatures(), Service(v1=["a", "b"])
    call(signatures, service, a=1, b=2)
    service.versions["2"] = ["a", "b"]
    assert call(signatures, service, a=1, b=2) == Answer("2", {"a": 1, "b": 2})
    assert (service.asked, service.sent) == (2, 2)


def test_what_no_version_takes_is_the_callers_fault() -> None:
    """A missing column and a version that is gone are told, and remembered by nobody."""
    signatures, service = Signatures(), Service(v1=["a", "b"])
    call(signatures, service, "1", a=1, b=2)
    with pytest.raises(InvalidInputError, match="column 'b' is missing"):
        call(signatures, service, "1", a=1)
    service.versions = {"2": ["a", "b"]}
    with pytest.raises(NotFoundError):
        call(signatures, service, "1", a=1, b=2)


def test_named_columns_cost_one_look_up(service: LocalService, rows_of: Any) -> None:
    """Against a real service: twenty calls with columns ask GetModel once."""
    rows = rows_of("table7", 20)
    with Client(service.target) as client:
        before = calls_of(service, "GetModel")
        expected = client.score("table7", rows)
        for number in range(20):
            columns = {f"c{i}": rows[[number], i] for i in reversed(range(7))}
            assert client.score("table7", columns).score.tobytes() == expected.score[[number]].tobytes()
        assert calls_of(service, "GetModel") - before == 1


def test_a_reload_is_followed(two_bundles: Any, tmp_path: Path, rows_of: Any) -> None:
    """Calls with columns go to the new version as soon as those without do, and give its scores."""
    repository, rows = tmp_path / "repository", rows_of("table3", 4)
    columns = {f"c{i}": rows[:, i] for i in reversed(range(3))}
    shutil.copytree(two_bundles[0].path, repository / "table3" / "1")
    options = ["--set", "repository.poll_s=0.1"]
    with serve_locally(repository, log=tmp_path / "log", options=options) as service, Client(service.target) as client:
        old = client.score("table3", columns)
        shutil.copytree(two_bundles[1].path, tmp_path / "2")
        (tmp_path / "2").rename(repository / "table3" / "2")
        while (scores := client.score("table3", rows)).version == "1":
            assert client.score("table3", columns).version in ("1", "2")
        named = client.score("table3", columns)
        assert (old.version, named.version) == ("1", "2")
        assert named.score.tobytes() == scores.score.tobytes() != old.score.tobytes()
        assert np.isfinite(named.score).all()
