"""What training can be told: sections of settings, with defaults that serve most tables and images."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vaeserve.config import Config, Section

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class DataConfig(Section):
    """Which shares of the normal rows are held out, for stopping, for calibration and for the test."""

    validation: Share = 0.1
    calibration: Share = 0.2
    test: Share = 0.1

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        held_out = self.validation + self.calibration + self.test
        if held_out >= 1:
            raise ValueError(f"validation + calibration + test are {held_out:g}; expected less than 1")
        return self


class ModelConfig(Section):
    """The networks and the likelihood.

    likelihood: auto is Gaussian with a learned scale, one for each column of a table, one for all pixels of an image.
    latent_dim: None is three quarters of the features, at least 4 and at most 32.
    hidden: the widths of the encoder's layers; the decoder mirrors them.
    """

    likelihood: Literal["auto", "gaussian", "bernoulli"] = "auto"
    latent_dim: Annotated[int, Field(ge=1, le=1024)] | None = None
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=1)] = (128, 128)


class OptimizerConfig(Section):
    """How the objective `log_likelihood - beta * kl` is climbed.

    patience: how many evaluations without a better held-out bound end the training.
    """

    beta: Annotated[float, Field(ge=0)] = 1.0
    max_steps: Count = 3000
    batch_rows: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    gradient_norm: Annotated[float, Field(gt=0)] = 5.0
    evaluate_every: Count = 100
    patience: Count = 8


class TrainConfig(Config):
    """All of training's settings."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
