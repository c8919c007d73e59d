"""Settings from a file, the environment and flags."""

from pathlib import Path

import pytest

from vaeserve.config import load, parse_overrides
from vaeserve.errors import ConfigError
from vaeserve_training.config import TrainConfig


def write(path: Path, text: str) -> Path:
    """Write a file of settings."""
    path.write_text(text)
    return path


def test_flags_beat_the_environment_and_the_environment_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three is taken where no stronger one speaks."""
    file = write(tmp_path / "c.toml", "[optimizer]\nmax_steps = 1\nbatch_rows = 2\nlearning_rate = 0.5\n")
    monkeypatch.setenv("VAESERVE_OPTIMIZER_MAX_STEPS", "10")
    monkeypatch.setenv("VAESERVE_OPTIMIZER_BATCH_ROWS", "20")
    config = load(TrainConfig, file=file, overrides=parse_overrides(["optimizer.max_steps=100"]))
    assert config.optimizer.max_steps == 100
    assert config.optimizer.batch_rows == 20
    assert config.optimizer.learning_rate == 0.5
    assert config.optimizer.patience == TrainConfig().optimizer.patience


def test_a_preset_is_below_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a preset sets holds where neither a file, the environment nor a flag speaks."""
    preset = {"optimizer": {"max_steps": 7, "batch_rows": 8, "patience": 9, "warmup_steps": 6}}
    file = write(tmp_path / "c.toml", "[optimizer]\nmax_steps = 1\n")
    monkeypatch.setenv("VAESERVE_OPTIMIZER_BATCH_ROWS", "20")
    overrides = parse_overrides(["optimizer.patience=100"])
    optimizer = load(TrainConfig, file=file, overrides=overrides, defaults=preset).optimizer
    assert (optimizer.max_steps, optimizer.batch_rows, optimizer.patience, optimizer.warmup_steps) == (1, 20, 100, 6)


def test_values_of_flags_are_toml_or_text() -> None:
    """A flag's value is a number, a list or a word."""
    overrides = parse_overrides(["model.hidden=[8, 4]", "model.likelihood=bernoulli", "objective.beta = 0.5"])
    config = load(TrainConfig, overrides=overrides)
    assert config.model.hidden == (8, 4)
    assert config.model.likelihood == "bernoulli"
    assert config.objective.beta == 0.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("optimizer.max_step=1", "optimizer.max_step: no such setting; did you mean max_steps?"),
        ("optimiser.max_steps=1", "optimiser: no such setting; did you mean optimizer?"),
        ("optimizer.max_steps=many", "optimizer.max_steps: 'many'; Input should be a valid integer"),
        ("optimizer.max_steps=0", "optimizer.max_steps: 0; Input should be greater than or equal to 1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: nan; Input should be"),
        ("model.likelihood=poisson", "model.likelihood: 'poisson'; Input should be 'auto', 'gaussian', .* or"),
        ("data.test=0.9", "validation [+] calibration [+] test are 1.2; expected less than 1"),
        ("max_steps=1", "expected section.key=value"),
        ("optimizer.max_steps", "expected section.key=value"),
    ],
)
def test_a_setting_that_cannot_be_is_named(flag: str, message: str) -> None:
    """An unknown setting is answered with the nearest, a wrong value with what was expected."""
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, overrides=parse_overrides([flag]))


def test_an_environment_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is no JSON, and a word where a section is, are refused with what was expected."""
    monkeypatch.setenv("VAESERVE_MODEL_SCALING", "[64")
    with pytest.raises(ConfigError, match="environment: .*expected VAESERVE_SECTION_KEY, lists as JSON"):
        load(TrainConfig)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, and one that is no TOML, are refused by name; unknown settings say which file they are in."""
    with pytest.raises(ConfigError, match=r"none\.toml: not found; expected a TOML file"):
        load(TrainConfig, file=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load(TrainConfig, file=write(tmp_path / "bad.toml", "[optimizer\n"))
    with pytest.raises(ConfigError, match=r"model\.sizes: no such setting \(from .*odd\.toml\)"):
        load(TrainConfig, file=write(tmp_path / "odd.toml", "[model]\nsizes = 3\n"))
