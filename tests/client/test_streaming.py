"""Large inputs and streams of batches: what comes back, in which order, from how little memory, past which faults."""

import asyncio
import shutil
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.test_coalescing import calls_of
from vaeserve import AsyncClient, Client
from vaeserve.errors import InvalidInputError, NotFoundError, OutOfRangeError
from vaeserve.local import LocalService, serve_locally
from vaeserve.parts import MOST_ROWS


def test_a_large_input_has_the_scores_of_its_rows(service: LocalService, client: Client, rows_of: Any) -> None:
    """Rows past a part go over a stream, and have the bits, attributions and order that they have by the hundred."""
    rows = rows_of("table7", 2 * MOST_ROWS + 5)
    before = [calls_of(service, rpc) for rpc in ("Score", "ScoreStream")]
    scores = client.score("table7", rows, top_features=1)
    assert [calls_of(service, rpc) - was for rpc, was in zip(("Score", "ScoreStream"), before, strict=True)] == [0, 3]
    assert len(scores) == len(scores.attributions) == len(rows)
    for start in (0, MOST_ROWS - 50, 2 * MOST_ROWS - 50):
        few = client.score("table7", rows[start : start + 100], top_features=1)
        assert few.score.tobytes() == scores.score[start : start + 100].tobytes()
        assert few.attributions == scores.attributions[start : start + 100]


async def test_both_clients_take_large_inputs(client: Client, service: LocalService, rows_of: Any) -> None:
    """Named columns, posteriors, reconstructions and latents past a part are those of both clients, bit by bit."""
    rows = rows_of("table7", MOST_ROWS + 9)
    columns = {f"c{index}": rows[:, index] for index in reversed(range(7))}
    encoded = client.encode("table7", rows)
    async with AsyncClient(service.target) as other:
        assert (await other.score("table7", columns)).score.tobytes() == client.score("table7", rows).score.tobytes()
        assert (await other.encode("table7", columns)).mean.tobytes() == encoded.mean.tobytes()
        decoded = (await other.decode("table7", encoded.mean)).outputs["numeric"]
    assert decoded.tobytes() == client.reconstruct("table7", rows).outputs["numeric"].tobytes()
    assert decoded[-20:].tobytes() == client.decode("table7", encoded.mean[-20:]).outputs["numeric"].tobytes()


@pytest.fixture(scope="module")
def small(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service that takes and gives little at once."""
    options = [
        *("--set", 'repository.models=["conv", "table7"]'),
        *("--set", "limits.response_bytes=60000", "--set", "limits.message_bytes=200000"),
    ]
    with serve_locally(models.repository, log=tmp_path_factory.mktemp("small") / "log", options=options) as service:
        yield service


@pytest.fixture(scope="module")
def tight(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service that has two requests of a stream under way."""
    options = ["--set", 'repository.models=["table7"]', "--set", "limits.stream_requests=2"]
    with serve_locally(models.repository, log=tmp_path_factory.mktemp("tight") / "log", options=options) as service:
        yield service


def test_answers_that_are_too_large_come_in_parts(small: LocalService, client: Client, rows_of: Any) -> None:
    """What the service refuses for the size of its answer is asked for in parts; what is too large anyway is told."""
    latents = client.encode("conv", rows_of("conv", 200)).mean
    with Client(small.target) as other:
        whole = other.decode("conv", latents).outputs["image"]
        assert whole.tobytes() == client.decode("conv", latents).outputs["image"].tobytes()
        with pytest.raises(OutOfRangeError, match="larger than max"):
            other.score("table7", np.zeros((4000, 70), np.float32))
        with pytest.raises(OutOfRangeError, match="num_samples: 1000"):
            other.score("table7", np.zeros((5000, 7), np.float32), num_samples=1000)
        with pytest.raises(InvalidInputError, match="numeric: 6 columns, the model takes 7"):
            other.score("table7", np.zeros((5000, 6), np.float32))


async def test_more_may_be_sent_ahead_than_the_service_takes(tight: LocalService, rows_of: Any) -> None:
    """A service that reads on only as its answers are read is sent them all, by both clients."""
    batches = [rows_of("table7", 4000)] * 200
    with Client(tight.target) as client:
        expected = client.score("table7", batches[0]).score.tobytes()
        assert sum(len(scores) for scores in client.score_stream("table7", batches, in_flight=200)) == 200 * 4000
    async with AsyncClient(tight.target, timeout=10) as other:
        async for scores in other.score_stream("table7", batches, in_flight=200):
            assert scores.score.tobytes() == expected


def test_a_stream_of_batches_is_scored_in_order(client: Client, rows_of: Any) -> None:
    """Batches of any form and size, none among them empty or past a part left out."""
    rows = rows_of("table7", MOST_ROWS + 50)
    batches = [rows[:3], rows[:0], {f"c{i}": rows[:5, i] for i in reversed(range(7))}, rows, rows[:1].tolist()]
    answers = list(client.score_stream("table7", batches, top_features=1))
    assert [len(answer) for answer in answers] == [3, 0, 5, len(rows), 1]
    for batch, answer in zip(batches, answers, strict=True):
        assert answer.score.tobytes() == client.score("table7", batch).score.tobytes()
        assert len(answer.attributions) == len(answer)
    assert list(client.score_stream("table7", [])) == []


async def test_tasks_stream_too(service: LocalService, client: Client, rows_of: Any) -> None:
    """From iterators of both kinds."""
    rows = rows_of("table7", 30)
    expected = client.score("table7", rows).score.tobytes()

    async def batches() -> AsyncIterator[Any]:
        for start in range(0, 30, 3):
            await asyncio.sleep(0)
            yield rows[start : start + 3]

    async with AsyncClient(service.target) as other:
        for source in (batches(), [rows[start : start + 3] for start in range(0, 30, 3)]):
            answers = [answer async for answer in other.score_stream("table7", source)]
            assert b"".join(answer.score.tobytes() for answer in answers) == expected


@pytest.mark.parametrize("in_flight", [1, 4])
def test_batches_are_taken_as_there_is_room(client: Client, rows_of: Any, in_flight: int) -> None:
    """Of an endless iterator no more is taken than may be under way, and who has enough may leave."""
    taken = []

    def endless() -> Iterator[Any]:
        while True:
            taken.append(1)
            yield rows_of("table7", 3)

    stream = client.score_stream("table7", endless(), in_flight=in_flight)
    for answered in range(1, 20):
        assert len(next(stream)) == 3
        assert len(taken) <= answered + in_flight - 1
    stream.close()  # type: ignore[attr-defined]
    assert len(client.score("table7", rows_of("table7", 3))) == 3


def test_a_stream_takes_the_memory_of_what_is_under_way(client: Client) -> None:
    """200 batches of 1 MB take what a few of them do."""
    batch = np.zeros((4000, 7), np.float32)

    def peak(batches: int) -> int:
        tracemalloc.start()
        for _ in client.score_stream("table7", (batch + number for number in range(batches)), in_flight=2):
            pass
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(100) < 3 * peak(5)


def test_a_bad_batch_is_named_after_the_answers_before_it(client: Client, rows_of: Any) -> None:
    """Whether this side or the service finds the fault, and whether it is the batch's or the iterator's."""
    rows = rows_of("table7", 3)

    def broken() -> Iterator[Any]:
        yield rows
        yield rows
        raise KeyError("lost")

    answers: list[Any] = []
    with pytest.raises(KeyError, match="lost"):
        answers.extend(client.score_stream("table7", broken()))
    assert list(map(len, collected(client, broken()))) == [3, 3]
    wrong = [rows, rows, rows[:, :6], rows]
    got = collected(client, iter(wrong))
    assert list(map(len, got)) == [3, 3]
    with pytest.raises(InvalidInputError, match=r"batches\[2\]: numeric: 6 columns, the model takes 7"):
        list(client.score_stream("table7", wrong))
    with pytest.raises(OutOfRangeError, match=r"batches\[0\]: .*num_samples: 1000"):
        list(client.score_stream("table7", [rows], num_samples=1000))
    with pytest.raises(NotFoundError, match="fraud"):
        list(client.score_stream("fraud", [rows]))
    with pytest.raises(InvalidInputError, match="batches: a int; expected an iterable of batches"):
        list(client.score_stream("table7", 5))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="in_flight: 0; expected a whole number from 1"):
        list(client.score_stream("table7", [rows], in_flight=0))


def collected(client: Client, batches: Iterator[Any]) -> list[Any]:
    """Return what comes before a stream fails."""
    answers = []
    with pytest.raises((KeyError, InvalidInputError)):  # noqa: PT012 - until it fails
        for answer in client.score_stream("table7", batches):
            answers.append(answer)  # noqa: PERF402 - what a comprehension had, it would lose
    return answers


def test_a_stream_goes_on_with_the_next_version(two_bundles: Any, tmp_path: Path, rows_of: Any) -> None:
    """One that isn't pinned moves on when its version is served no more; one that is, ends."""
    repository = tmp_path / "repository"
    shutil.copytree(two_bundles[0].path, repository / "table3" / "1")
    rows = rows_of("table3", 4)
    versions: list[str] = []
    seen: dict[str, set[bytes]] = {}
    options = ["--set", "repository.poll_s=0.1"]
    with serve_locally(repository, log=tmp_path / "log", options=options) as service, Client(service.target) as client:

        def batches() -> Iterator[Any]:
            yield rows
            shutil.copytree(two_bundles[1].path, tmp_path / "2")
            (tmp_path / "2").rename(repository / "table3" / "2")
            while versions[-1] == "1":
                yield rows
            yield rows

        pinned = client.score_stream("table3", iter([rows] * 3), version="1", in_flight=1)
        next(pinned)
        for scores in client.score_stream("table3", batches(), in_flight=1):
            versions.append(scores.version)
            seen.setdefault(scores.version, set()).add(scores.score.tobytes())
        with pytest.raises(NotFoundError, match=r"batches\[1\]: .*version: '1'"):
            list(pinned)
        assert seen["2"] == {client.score("table3", rows).score.tobytes()}
    assert (versions[0], len(seen["1"])) == ("1", 1)
    assert versions[-2:] == ["2", "2"]
