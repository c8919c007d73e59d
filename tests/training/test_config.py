"""Training's settings and presets."""

from pathlib import Path
from typing import Any, get_args

import pytest

from vaeserve.config import load
from vaeserve.errors import ConfigError
from vaeserve.signature import Column, Signature
from vaeserve_training.config import PRESETS, Preset, TrainConfig

TABLE = Signature.numbers([*"abcdefgh"])
IMAGE = Signature.image((1, 28, 28))


def preset(name: str) -> TrainConfig:
    """Return a preset's settings."""
    return load(TrainConfig, defaults=PRESETS[name])  # type: ignore[index]


def test_every_preset_is_there_and_loads() -> None:
    """The presets are those that are named, and each is a whole set of settings."""
    assert set(PRESETS) == set(get_args(Preset)) == {"textbook", "fast", "default", "quality"}
    loaded = [preset(name) for name in PRESETS]
    assert all(one != other for one in loaded for other in loaded if one is not other)


def test_the_default_preset_is_the_defaults() -> None:
    """Nothing is hidden in the preset that is taken where none is named."""
    assert preset("default") == load(TrainConfig)


def test_textbook_is_what_every_introduction_describes() -> None:
    """A Gaussian of fixed scale under N(0, I), one member, one scaling, the plain ELBO without noise or warm-up."""
    textbook = preset("textbook")
    assert (textbook.model.likelihood, textbook.model.prior) == ("gaussian_fixed", "standard_normal")
    assert (textbook.model.scaling, textbook.model.score_sigma) == (("standard",), 0)
    assert textbook.ensemble.size == 1
    objective = textbook.objective
    assert (objective.bound, objective.beta, objective.samples) == ("elbo", 1, 1)
    assert (objective.kl_warmup, objective.free_bits, objective.input_noise, objective.binarize) == (0, 0, 0, False)


def test_file_environment_and_flags_lie_above_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset is below a file, that below the environment, and flags above all; each sets only what it names."""
    file = tmp_path / "config.toml"
    file.write_text("[objective]\nkl_warmup = 0.2\nbeta = 2.0\nsamples = 2\n")
    monkeypatch.setenv("VAESERVE_OBJECTIVE_BETA", "3.0")
    monkeypatch.setenv("VAESERVE_OBJECTIVE_SAMPLES", "3")
    settings = load(TrainConfig, file=file, defaults=PRESETS["textbook"], overrides={"objective": {"samples": 4}})
    assert settings.objective.input_noise == 0.0  # the preset's
    assert settings.objective.kl_warmup == 0.2  # the file's
    assert settings.objective.beta == 3.0  # the environment's
    assert settings.objective.samples == 4  # the flag's
    assert settings.model.likelihood == "gaussian_fixed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective": {"betta": 1}}, "objective.betta: no such setting; did you mean beta"),
        ({"objectve": {"beta": 1}}, "objectve: no such setting; did you mean objective"),
        ({"optimizer": {"lr": 1}}, "optimizer.lr: no such setting; expected one of max_steps"),
        ({"model": {"likelihood": "normal"}}, "model.likelihood.*'normal'"),
        ({"model": {"scaling": []}}, "model.scaling"),
        ({"ensemble": {"size": 0}}, "ensemble.size: 0"),
        ({"objective": {"beta": float("nan")}}, "objective.beta"),
        ({"objective": {"bound": "iwae", "free_bits": 0.1}}, "free_bits = 0.1 with bound = iwae, which has no KL"),
        ({"model": {"posterior": "point", "prior": "exemplars"}}, "expected standard_normal"),
        ({"data": {"validation": 0.5, "calibration": 0.3, "test": 0.2}}, "are 1; expected less than 1"),
        ({"data": {"kinds": {"a": "number"}}}, "data.kinds.a: 'number'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: dict[str, dict[str, Any]], message: str) -> None:
    """An unknown setting, with the nearest right one, and values that can't be are refused by name."""
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, overrides=overrides)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    """The message says which file holds a key that isn't known."""
    file = tmp_path / "config.toml"
    file.write_text("[model]\nlatent_dims = 3\n")
    with pytest.raises(
        ConfigError, match=r"model.latent_dims: no such setting \(from .*config.toml\); did you mean la"
    ):
        load(TrainConfig, file=file)


def test_what_is_left_open_is_decided_by_the_rows() -> None:
    """Likelihood, network, widths and latent dimensions follow the signature; exemplars are at most the rows."""
    model = load(TrainConfig).model
    table, image = model.resolve(TABLE, rows=50), model.resolve(IMAGE, rows=100_000)
    assert (table.likelihood, table.network, table.latent_dim, table.exemplars) == ("student_t", "mlp", 6, 50)
    assert image.likelihood == "gaussian"
    assert image.latent_dim == 32
    assert image.exemplars == model.exemplars
    assert None not in (table.hidden, image.hidden)
    assert model.resolve(Signature.numbers(["a"]), rows=50).latent_dim == 4
    stated = load(TrainConfig, overrides={"model": {"latent_dim": 2, "hidden": [5], "likelihood": "gaussian"}}).model
    resolved = stated.resolve(TABLE, rows=50)
    assert (resolved.latent_dim, resolved.hidden, resolved.likelihood) == (2, (5,), "gaussian")
    assert resolved.resolve(TABLE, rows=50) == resolved


@pytest.mark.parametrize(("name", "value"), [("network", "conv"), ("likelihood", "discretized_logistic")])
def test_what_is_for_images_is_refused_for_tables(name: str, value: str) -> None:
    """Convolutions and pixel likelihoods take no table, and are told what does."""
    model = load(TrainConfig, overrides={"model": {name: value}}).model
    assert getattr(model.resolve(IMAGE, rows=50), name) == value
    with pytest.raises(ConfigError, match=f"model.{name} = {value}: is for images; expected"):
        model.resolve(Signature.table([Column("a", "binary")]), rows=50)
