"""The client against a running service."""

import asyncio
import inspect
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from vaeserve import AsyncClient, Bound, Client, Interpolation, RowStatus
from vaeserve.errors import (
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    OutOfRangeError,
    ServerError,
    UnavailableError,
)
from vaeserve.latents import path, prior_draws
from vaeserve.local import LocalService
from vaeserve.messages import read_model
from vaeserve.signature import Column, Signature
from vaeserve.v1 import vae_pb2 as pb

SURFACE = ("score", "encode", "decode", "reconstruct", "generate", "interpolate", "models", "model", "health")


def test_rows_score_as_arrays_and_as_tables(client: Client, rows_of: Any) -> None:
    """An array, a mapping and dataframes with their columns in any order score alike, bit by bit."""
    rows = rows_of("table7", 20)
    columns = {f"c{index}": rows[:, index] for index in (3, 1, 0, 2, 6, 5, 4)}
    expected = client.score("table7", rows)
    for table in (columns, pd.DataFrame(columns), pl.DataFrame(columns), rows.tolist(), rows.astype(np.float64)):
        assert client.score("table7", table).score.tobytes() == expected.score.tobytes()


def test_scores_are_named_arrays(client: Client, rows_of: Any) -> None:
    """A result has an entry a row in each of its arrays, in nats that add up, and its model's name and version."""
    scores = client.score("table7", rows_of("table7", 5), top_features=2)
    assert (scores.model, scores.version, len(scores)) == ("table7", "1", 5)
    np.testing.assert_allclose(scores.elbo, scores.log_likelihood - scores.kl, rtol=1e-5)
    assert (scores.score == -scores.elbo).all()
    assert ((scores.p_value > 0) & (scores.p_value <= 1)).all()
    assert (scores.status == RowStatus.OK).all()
    assert [len(row) for row in scores.attributions] == [2] * 5
    assert scores.anomalous.dtype == bool


def test_options_change_what_they_say(client: Client, rows_of: Any) -> None:
    """Samples, bound, seed and rate each have their effect, and repeated calls agree in every bit."""
    rows = rows_of("table7", 100)
    default = client.score("table7", rows)
    assert client.score("table7", rows, num_samples=2).score.tobytes() == default.score.tobytes()
    iwae = client.score("table7", rows, bound=Bound.IWAE, num_samples=256)
    elbo = client.score("table7", rows, num_samples=256)
    assert (iwae.elbo == elbo.elbo).all()
    assert (iwae.elbo != default.elbo).any()
    assert iwae.score.mean() < elbo.score.mean()
    seeded = client.score("table7", rows, seed=3)
    assert seeded.score.tobytes() == client.score("table7", rows, seed=3).score.tobytes()
    assert (seeded.score != default.score).any()
    assert np.isnan(seeded.p_value).all()
    strict, loose = (client.score("table7", rows, false_positive_rate=rate).anomalous.sum() for rate in (0.01, 0.5))
    assert strict < loose


def test_one_nan_row_harms_nobody(client: Client, rows_of: Any) -> None:
    """A row with a missing value has a status and NaN; its batch-mates keep their bits."""
    rows = rows_of("table7", 10)
    expected = client.score("table7", rows)
    rows[4, 2] = np.nan
    scores = client.score("table7", rows)
    assert scores.status.tolist() == [0] * 4 + [RowStatus.UNSCORABLE_MISSING] + [0] * 5
    assert np.isnan(scores.score[4])
    assert not scores.anomalous[4]
    others = np.arange(10) != 4
    assert scores.score[others].tobytes() == expected.score[others].tobytes()


def test_rows_that_lie_far_out_are_anomalous(client: Client, rows_of: Any) -> None:
    """Rows unlike any of training have the least p-value there is, and their odd feature is named first."""
    rows = rows_of("table7", 3)
    rows[1, 4] += 1e4
    scores = client.score("table7", rows, top_features=1)
    assert scores.p_value[1] == pytest.approx(1 / 121)
    assert scores.anomalous[1]
    assert scores.attributions[1][0].feature == "c4"


def test_encode_decode_and_reconstruct_agree(client: Client, rows_of: Any) -> None:
    """A reconstruction is the decoded posterior mean, for tables in raw units and for images in bytes."""
    for kind, output in (("table7", "numeric"), ("image", "image"), ("grey", "image"), ("binary21", "numeric")):
        rows = rows_of(kind, 6)
        encoded = client.encode(kind, rows)
        reconstructed = client.reconstruct(kind, rows)
        decoded = client.decode(kind, encoded.mean)
        assert encoded.mean.shape == encoded.log_variance.shape
        assert reconstructed.outputs[output].shape == rows.shape
        assert reconstructed.outputs[output].tobytes() == decoded.outputs[output].tobytes()
        assert (reconstructed.status == RowStatus.OK).all()


def test_generated_rows_are_decoded_draws(client: Client) -> None:
    """Rows are the decoder's for the seed's draws, the same again, others for another seed or temperature."""
    generated = client.generate("table7", 20, seed=5, temperature=0.5)
    assert (generated.model, generated.version) == ("table7", "1")
    draws = prior_draws(20, 3, seed=5, temperature=0.5)
    assert generated.outputs["numeric"].tobytes() == client.decode("table7", draws).outputs["numeric"].tobytes()
    plain, *seeded = [client.generate("table7", 20, seed=seed).outputs["numeric"] for seed in (0, 0, 1)]
    assert plain.tobytes() == client.generate("table7", 20).outputs["numeric"].tobytes()
    assert plain.tobytes() == seeded[0].tobytes()
    assert (plain != seeded[1]).any(axis=1).all()
    alike = client.generate("table7", 20, temperature=0).outputs["numeric"]
    assert (alike == alike[0]).all()


def test_interpolation_goes_from_one_row_to_the_other(client: Client, rows_of: Any) -> None:
    """Between two rows' latents lie the decoded latents of the path, and at its ends the rows' reconstructions."""
    rows = rows_of("image", 2)
    start, end = client.encode("image", rows).mean
    ends = client.reconstruct("image", rows).outputs["image"]
    for method in Interpolation:
        between = client.interpolate("image", start, end[None], steps=6, method=method)
        assert (between.model, between.version) == ("image", "1")
        assert between.latents.tobytes() == path(start, end, steps=6, method=method).tobytes()
        assert between.outputs["image"].tobytes() == client.decode("image", between.latents).outputs["image"].tobytes()
        assert between.outputs["image"][[0, -1]].tobytes() == ends.tobytes()
    assert len(client.interpolate("image", start.tolist(), end.tolist()).latents) == 11


def test_zero_rows_give_zero_rows(client: Client, rows_of: Any) -> None:
    """No rows are no error."""
    rows = rows_of("image", 0)
    assert len(client.score("image", rows)) == 0
    assert client.encode("image", rows).mean.shape == (0, 5)
    assert client.reconstruct("image", rows).outputs["image"].shape == (0, 1, 5, 6)
    assert client.generate("image", 0).outputs["image"].shape == (0, 1, 5, 6)


def test_models_tell_what_they_take(client: Client) -> None:
    """The models are listed with their versions, and each tells its signature and manifest."""
    assert {served.name: served.versions for served in client.models()}["table7"] == ("1",)
    info = client.model("table7")
    assert info.signature.features == tuple(f"c{index}" for index in range(7))
    assert info.manifest["latent_dim"] == 3
    assert client.model("image", version="1").signature.inputs[0].shape == (-1, 1, 5, 6)
    assert client.health()
    assert client.health("table7")


def test_errors_are_ours_and_say_whose_fault(client: Client) -> None:
    """Each code comes back as our exception, with the service's message, chained to gRPC's error."""
    with pytest.raises(NotFoundError, match="model: 'fraud'; the service has .*table7") as unknown:
        client.score("fraud", np.zeros((1, 7)))
    assert unknown.value.__cause__ is not None
    with pytest.raises(InvalidInputError, match="numeric: 6 columns, the model takes 7"):
        client.score("table7", np.zeros((1, 6)))
    with pytest.raises(InvalidInputError, match="column 'c1' is missing .and 5 more."):
        client.score("table7", {"c0": [1.0]})
    with pytest.raises(OutOfRangeError, match="num_samples: 1000"):
        client.score("table7", np.zeros((1, 7)), num_samples=1000)
    with pytest.raises(DeadlineError):
        client.score("table7", np.zeros((100_000, 7)), timeout=0.02)
    with pytest.raises(NotFoundError, match="service: 'fraud'"):
        client.health("fraud")


def test_a_service_that_is_not_there_is_unavailable() -> None:
    """A target where nothing listens is an UnavailableError that names it."""
    with Client("127.0.0.1:1", timeout=5) as client, pytest.raises(UnavailableError, match="127.0.0.1:1: "):
        client.score("table7", np.zeros((1, 7)))


async def test_the_async_client_gives_the_same(client: Client, service: LocalService, rows_of: Any) -> None:
    """AsyncClient answers what Client does, bit by bit, for many calls at once."""
    rows = rows_of("table33", 30)
    expected = client.score("table33", rows)
    async with AsyncClient(service.target) as other:
        answers = await asyncio.gather(*(other.score("table33", rows[i : i + 3]) for i in range(0, 30, 3)))
        assert b"".join(answer.score.tobytes() for answer in answers) == expected.score.tobytes()
        assert (await other.encode("table33", rows)).mean.shape == (30, 5)
        assert (await other.decode("table33", np.zeros((2, 5)))).outputs["numeric"].shape == (2, 33)
        assert (await other.generate("table33", 4)).outputs["numeric"].shape == (4, 33)
        assert (await other.interpolate("table33", np.zeros(5), np.ones(5), steps=3)).latents[1].tolist() == [0.5] * 5
        assert (await other.models())[0].name == "binary21"
        with pytest.raises(NotFoundError):
            await other.score("fraud", rows)


@pytest.mark.parametrize("name", SURFACE)
def test_both_clients_have_one_surface(name: str) -> None:
    """Every method has the same parameters and the same words in both clients."""
    blocking, awaited = getattr(Client, name), getattr(AsyncClient, name)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert blocking.__doc__ == awaited.__doc__
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(blocking)


def test_what_is_no_call_is_refused_before_it_is_sent(service: LocalService) -> None:
    """A closed client, a model that is no text, ragged latents and wrong options are InvalidInputErrors."""
    client = Client(service.target)
    with pytest.raises(InvalidInputError, match="expected text"):
        client.score("\udcff", np.zeros((1, 7)))
    for rows in (np.zeros((1, 7)), {"c0": [0.0]}):
        with pytest.raises(InvalidInputError, match=r"model: \['table7'\], version ''; expected text"):
            client.score(["table7"], rows)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="expected an array of numbers"):
        client.decode("table7", [[1.0], [2.0, 3.0]])
    with pytest.raises(InvalidInputError, match="expected Bound.ELBO or Bound.IWAE"):
        client.score("table7", np.zeros((1, 7)), bound="iwae")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="count: -1; expected a whole number"):
        client.generate("table7", -1)
    with pytest.raises(InvalidInputError, match="steps: 1; expected a whole number from 2"):
        client.interpolate("table7", np.zeros(3), np.ones(3), steps=1)
    with pytest.raises(InvalidInputError, match="method: 'linear'; expected Interpolation.LINEAR"):
        client.interpolate("table7", np.zeros(3), np.ones(3), method="linear")  # type: ignore[arg-type]
    client.close()
    with pytest.raises(InvalidInputError, match="expected an open client"):
        client.score("table7", np.zeros((1, 7)))


async def test_a_closed_async_client_says_so(service: LocalService) -> None:
    """A call on a closed AsyncClient is the caller's fault, not a traceback of gRPC's."""
    client = AsyncClient(service.target)
    await client.close()
    with pytest.raises(InvalidInputError, match="expected an open client"):
        await client.score("table7", np.zeros((1, 7)))


def test_long_names_are_answered_as_any_other(client: Client) -> None:
    """A name of any length gets its own error, which is clipped to what fits in the trailers."""
    with pytest.raises(NotFoundError, match="model: 'äää.*"):
        client.score("ä" * 20_000, np.zeros((1, 7)))


def model_of(*columns: pb.Column, dtype: Any = pb.STRING) -> pb.GetModelResponse:
    """Return what a service says of a model that takes categories."""
    spec = pb.TensorSpec(name="categorical", dtype=dtype, shape=[-1, len(columns)])
    return pb.GetModelResponse(model=pb.ModelSpec(name="m", version="1"), inputs=[spec], columns=columns, manifest="{}")


def test_columns_come_over_the_wire_with_their_categories() -> None:
    """A client learns each column's kind and categories, and whether it may be missing."""
    info = read_model(model_of(pb.Column(name="c", kind="categorical", categories=["x", "y"], nullable=True)))
    assert info.signature == Signature.table([Column("c", "categorical", ("x", "y"), nullable=True)])


def test_a_model_of_a_kind_to_come_is_an_error_of_versions() -> None:
    """A dtype or a kind of column that this client doesn't know, or columns that can't be, ask for an upgrade."""
    column = pb.Column(name="c", kind="categorical", categories=["x"])
    with pytest.raises(ServerError, match="model 'm': input dtype 99; this client knows .*STRING: upgrade vaeserve"):
        read_model(model_of(column, dtype=99))
    with pytest.raises(ServerError, match="column kind 'ordinal'; this client knows numeric, binary, categorical: up"):
        read_model(model_of(pb.Column(name="c", kind="ordinal")))
    with pytest.raises(ServerError, match="model 'm': inputs of shape .*: upgrade vaeserve, here or there"):
        read_model(model_of(column, dtype=pb.FLOAT32))
    with pytest.raises(ServerError, match="model 'm': column 'c': categorical with 0 categories"):
        read_model(model_of(pb.Column(name="c", kind="categorical")))
