"""A step's rows and noise."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve.config import load
from vaeserve.signature import Column, Signature
from vaeserve_training.batches import Batch, Batches
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.feed import Feed

CPU = torch.device("cpu")
MEMBERS = 2


def batches(
    rows: int = 60,
    *,
    batch_rows: int = 20,
    seed: int = 3,
    process: int = 0,
    processes: int = 1,
    samples: int = 2,
    members: int = MEMBERS,
    **objective: Any,
) -> Batches:
    """Return the batches of a table whose first column counts the rows, and whose second is a bit."""
    signature = Signature.table([Column("row", "numeric"), Column("bit", "binary")])
    numbers = np.stack([np.arange(rows), np.arange(rows) % 2], 1).astype(np.float32)
    dataset = Dataset("rows", signature, {"numeric": numbers})
    config = load(TrainConfig, overrides={
        "ensemble": {"size": members},
        "objective": {"samples": samples} | objective,
        "optimizer": {"batch_rows": batch_rows},
    })  # fmt: skip
    model = config.model.resolve(signature, rows=rows)
    ensemble = Ensemble.build(signature, model, size=members)
    feed = Feed(dataset, ensemble, device=CPU, memory_bytes=1e9)
    return Batches(
        feed, config, seed=seed, latent_dim=4, takes_noise=ensemble.member.features.takes_noise,
        process=process, processes=processes,
    )  # fmt: skip


def same(one: Batch, other: Batch) -> bool:
    """Tell whether two batches agree in every bit."""
    return all(
        torch.equal(a, b) for a, b in ((one.rows.x, other.rows.x), (one.seen.x, other.seen.x), (one.noise, other.noise))
    )


def ids(batch: Batch, member: int = 0) -> list[int]:
    """Return which rows a member's batch has."""
    return [int(row) for row in batch.rows.x[member, :, 0].tolist()]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 40))
def test_a_step_has_the_same_batch_whatever_was_asked_before(before: list[int], step: int) -> None:
    """Rows and noise of a step depend on the seed and the step alone, so that a killed training can go on."""
    asked = batches()
    for earlier in before:
        asked.at(earlier)
    assert same(asked.at(step), batches().at(step))


def test_seeds_steps_and_members_differ() -> None:
    """Another seed, step or member has other rows in another order, and other noise."""
    one = batches().at(1)
    for other in (batches(seed=4).at(1), batches().at(2), batches().at(4)):
        assert ids(one) != ids(other)
        assert not torch.equal(one.noise, other.noise)
    assert ids(one, 0) != ids(one, 1)
    assert not torch.equal(one.noise[0], one.noise[1])


@pytest.mark.parametrize(("rows", "batch_rows"), [(60, 20), (60, 60), (60, 7), (61, 20)])
def test_an_epoch_visits_no_row_twice(rows: int, batch_rows: int) -> None:
    """Within an epoch each row comes once, but for those that make no whole batch; the next has another order."""
    asked = batches(rows, batch_rows=batch_rows)
    steps = rows // batch_rows
    for member in range(MEMBERS):
        epochs = [
            [row for step in range(steps) for row in ids(asked.at(1 + epoch * steps + step), member)]
            for epoch in range(3)
        ]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch) == steps * batch_rows
        assert epochs[0] != epochs[1] != epochs[2]
    if rows == 61:  # what one epoch leaves out is another's
        seen = {row for step in range(1, 200) for row in ids(asked.at(step))}
        assert seen == set(range(rows))


def test_fewer_rows_than_a_batch_make_one() -> None:
    """A set smaller than a batch is a batch."""
    asked = batches(13, batch_rows=128)
    assert asked.rows == 13
    assert sorted(ids(asked.at(1))) == sorted(ids(asked.at(2))) == list(range(13))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("step", [1, 4])
def test_the_processes_shares_are_the_batch(processes: int, step: int) -> None:
    """Several processes' rows and noise, put together, are those of one process, each in as many rows."""
    objective: dict[str, Any] = {"input_noise": 0.3}
    whole = batches(batch_rows=12, **objective).at(step)
    shares = [
        batches(batch_rows=12, process=process, processes=processes, **objective).at(step)
        for process in range(processes)
    ]
    for process, share in enumerate(shares):
        mine = slice(process, None, processes)
        assert share.noise.shape[1] == 12 // processes
        assert torch.equal(share.rows.x, whole.rows.x[:, mine])
        assert torch.equal(share.seen.x, whole.seen.x[:, mine])
        assert torch.equal(share.noise, whole.noise[:, mine])


def test_every_process_has_as_many_rows() -> None:
    """Rows that can't be shared out evenly are fewer, and processes that outnumber them begin again."""
    for rows, batch_rows, processes in ((60, 20, 3), (3, 20, 2), (2, 20, 5)):
        shares = [
            batches(rows, batch_rows=batch_rows, process=process, processes=processes).at(1)
            for process in range(processes)
        ]
        assert len({share.rows.x.shape for share in shares}) == 1
        assert {row for share in shares for row in ids(share)} <= set(range(rows))


def test_noise_is_standard_normal_in_each_dimension() -> None:
    """Noise has a point for each row, sample and latent dimension, with mean 0 and variance 1."""
    noise = batches(4000, batch_rows=4000, samples=3, members=1).at(1).noise
    assert noise.shape == (1, 4000, 3, 4)
    torch.testing.assert_close(noise.mean((0, 1)), torch.zeros(3, 4), atol=0.08, rtol=0)
    torch.testing.assert_close(noise.std((0, 1)), torch.ones(3, 4), atol=0.08, rtol=0)


def test_input_noise_is_added_to_what_the_encoder_sees_of_numbers() -> None:
    """Numbers that the encoder sees are off by noise of the size asked for; bits and the rows themselves aren't."""
    batch = batches(4000, batch_rows=4000, input_noise=0.3).at(1)
    added = batch.seen.x - batch.rows.x
    assert float(added[..., 0].std()) == pytest.approx(0.3, rel=0.05)
    assert float(added[..., 0].mean()) == pytest.approx(0, abs=0.02)
    assert (added[..., 1] == 0).all()
    assert sorted(ids(batch)) == list(range(4000))


def test_without_input_noise_the_encoder_sees_the_rows() -> None:
    """At 0 nothing is added, and the noise points stay what they were."""
    plain, noisy = batches(input_noise=0.0).at(2), batches(input_noise=0.3).at(2)
    assert torch.equal(plain.seen.x, plain.rows.x)
    assert torch.equal(plain.noise, noisy.noise)
    assert torch.equal(plain.rows.x, noisy.rows.x)


def test_pixels_are_drawn_as_bits_anew_each_time() -> None:
    """With `binarize`, a pixel is white as often as its grey level says, and differs from step to step."""
    signature = Signature.image((1, 2, 2))
    images = np.tile(np.array([0, 64, 191, 255], np.uint8).reshape(1, 1, 2, 2), (1000, 1, 1, 1))
    config = load(TrainConfig, overrides={
        "ensemble": {"size": 1}, "objective": {"binarize": True, "input_noise": 0.0}
    })  # fmt: skip
    model = config.model.resolve(signature, rows=1000)
    ensemble = Ensemble.build(signature, model, size=1)
    feed = Feed(Dataset("grey", signature, {"image": images}), ensemble, device=CPU, memory_bytes=1e9)
    asked = Batches(feed, config, seed=0, latent_dim=4, takes_noise=ensemble.member.features.takes_noise)
    bits = torch.cat([asked.at(step).rows.x[0] for step in range(1, 41)])
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(bits.mean(0), torch.tensor([0, 64 / 255, 191 / 255, 1]), atol=0.03, rtol=0)
    assert torch.equal(asked.at(1).seen.x, asked.at(1).rows.x)
    assert not torch.equal(asked.at(1).rows.x, asked.at(8).rows.x)
