"""What training can be told: sections of settings, with defaults that serve most tables and images."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vaeserve.config import Config, Section
from vaeserve.errors import ConfigError
from vaeserve.signature import Kind, Signature

HeldOut = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Nats = Annotated[float, Field(ge=0)]

Scaling = Literal["standard", "robust", "quantile"]
LikelihoodName = Literal[
    "auto", "gaussian", "gaussian_fixed", "student_t", "bernoulli", "continuous_bernoulli", "discretized_logistic"
]


# Less can't be halved twice.
SMALLEST_CONV_SIDE = 4


class DataConfig(Section):
    """What the columns are, and which shares of the normal rows are held out.

    validation: for stopping; 0 is to train on these rows too, to the last step.
    calibration, test: for the export's p-values, and for figures.
    kinds: columns' kinds, where they are not to be inferred.
    memory_gib: rows of more than this are kept in a file, and read as they are trained on.
    """

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    calibration: HeldOut = 0.2
    test: HeldOut = 0.1
    kinds: dict[str, Kind] = Field(default_factory=dict)
    memory_gib: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        held_out = self.validation + self.calibration + self.test
        if held_out >= 1:
            raise ValueError(f"validation + calibration + test are {held_out:g}; expected less than 1")
        return self


class ModelConfig(Section):
    """The networks, the likelihood and the prior.

    likelihood: of a table's numbers or of pixels; auto is Student-t for a table and Gaussian for images, both with a
    learned scale. Binary columns are Bernoulli and categories categorical, whatever this says.
    scaling: of a table's numbers; the members of an ensemble take several in turn.
    network: auto is mlp.
    latent_dim: None is three quarters of the features, at least 4 and at most 32.
    hidden: the widths of the encoder's layers, or the channels of conv's stages; the decoder mirrors them. None is
    128, 128 for a table, 512, 512 for images of more than 256 values, and 32, 64 for conv.
    posterior: point makes a deterministic autoencoder, to compare with; its score is no bound.
    prior: what rows are scored under; training is always under N(0, I). exemplars is a mixture of the posteriors of as
    many training rows. auto is exemplars for a table and standard_normal for images.
    score_sigma: the posterior's standard deviation in scoring, whatever the encoder says; 0 takes the encoder's.
    num_samples: noise points of a score, unless it is asked for with others.
    """

    likelihood: LikelihoodName = "auto"
    scaling: Annotated[tuple[Scaling, ...], Field(min_length=1)] = ("standard", "quantile")
    network: Literal["auto", "mlp", "residual", "conv"] = "auto"
    latent_dim: Annotated[int, Field(ge=1, le=1024)] | None = None
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] | None = None
    posterior: Literal["gaussian", "point"] = "gaussian"
    prior: Literal["auto", "standard_normal", "exemplars"] = "auto"
    exemplars: Annotated[int, Field(ge=1, le=100_000)] = 2000
    score_sigma: Annotated[float, Field(ge=0)] = 0.1
    num_samples: Annotated[int, Field(ge=1, le=256)] = 2

    @field_validator("scaling", mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and not value.startswith("[") else value

    @model_validator(mode="after")
    def _has_a_density(self) -> Self:
        if self.posterior == "point" and self.prior == "exemplars":
            raise ValueError("prior = exemplars with posterior = point, which has no density; expected standard_normal")
        return self

    def resolve(self, signature: Signature, *, rows: int) -> Self:
        """Return the settings with what was left open decided for a signature and a number of training rows.

        Raises ConfigError for a network or likelihood that isn't for such rows.
        """
        image = not signature.columns
        features = len(signature.features)
        for name, for_images in (("network", {"conv"}), ("likelihood", {"discretized_logistic"})):
            if not image and getattr(self, name) in for_images:
                raise ConfigError(f"model.{name} = {getattr(self, name)}: is for images; {_FOR_TABLES[name]}")
        smallest = min(signature.inputs[0].shape[2:], default=0)
        if self.network == "conv" and smallest < SMALLEST_CONV_SIDE:
            raise ConfigError(
                f"model.network = conv: images of {smallest} pixels on a side; expected {SMALLEST_CONV_SIDE} or more"
            )
        return self.model_copy(
            update={
                "likelihood": ("gaussian" if image else "student_t") if self.likelihood == "auto" else self.likelihood,
                "network": "mlp" if self.network == "auto" else self.network,
                "latent_dim": self.latent_dim or min(max(round(0.75 * features), 4), 32),
                "hidden": self.hidden or self._hidden(image=image, features=features),
                "prior": self._prior(image=image),
                "exemplars": min(self.exemplars, rows),
            }
        )

    def _prior(self, *, image: bool) -> str:
        if self.prior != "auto":
            return self.prior
        return "standard_normal" if image or self.posterior == "point" else "exemplars"

    def _hidden(self, *, image: bool, features: int) -> tuple[int, ...]:
        if self.network == "conv":
            return (32, 64)
        return (512, 512) if image and features > 256 else (128, 128)


_FOR_TABLES = {"network": "expected mlp or residual", "likelihood": "expected student_t or gaussian"}


class EnsembleConfig(Section):
    """How many members are trained side by side; a row's bound is the mean of theirs.

    size: None is one for each of a table's scalings, and one for images.
    """

    size: Annotated[int, Field(ge=1, le=64)] | None = None


class ObjectiveConfig(Section):
    """What is climbed.

    bound: elbo is `log_likelihood - beta * kl`; iwae is the importance-weighted bound of `samples` points.
    kl_warmup: the share of the steps over which beta rises from 0.
    free_bits: nats of KL that each latent dimension has for nothing.
    samples: noise points a row.
    input_noise: the standard deviation of what is added to the encoder's scaled input (denoising); None is 0.1 for a
    table and none for images.
    binarize: draw each training pixel as a bit with its grey level as the probability, anew each time; held-out rows
    are taken as they are.
    contamination: the share of the training rows that may be anomalous, though nobody labelled them. Twice as many of
    each batch's rows, those that are explained worst, teach nothing once training has begun, nor become exemplars.
    """

    bound: Literal["elbo", "iwae"] = "elbo"
    beta: Nats = 1.0
    kl_warmup: Annotated[float, Field(ge=0, le=1)] = 0.3
    free_bits: Nats = 0.0
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    input_noise: Annotated[float, Field(ge=0)] | None = None
    binarize: bool = False
    contamination: Annotated[float, Field(ge=0, le=0.25)] = 0.0

    @property
    def trim(self) -> float:
        """The share of rows that teach nothing."""
        return 2 * self.contamination

    @model_validator(mode="after")
    def _bound_has_what_it_takes(self) -> Self:
        if self.bound == "iwae" and self.free_bits:
            raise ValueError(
                f"free_bits = {self.free_bits:g} with bound = iwae, which has no KL; expected bound = elbo"
            )
        return self


class OptimizerConfig(Section):
    """How it is climbed.

    patience: how many evaluations without a better held-out bound, once beta is whole, end the training.
    precision: bfloat16 runs the networks in it, and keeps weights and bounds in float32.
    checkpoint_seconds: the least time between two checkpoints.
    """

    max_steps: Count = 3000
    batch_rows: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    gradient_norm: Annotated[float, Field(gt=0)] = 5.0
    evaluate_every: Count = 100
    patience: Count = 8
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10.0


class TrainConfig(Config):
    """All of training's settings."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def resolve(self, signature: Signature, *, rows: int) -> Self:
        """Return the settings with what was left open decided for a signature and a number of training rows.

        Raises ConfigError for what isn't for such rows.
        """
        if self.objective.binarize and signature.columns:
            raise ConfigError("objective.binarize = true: is for images; a table's binary columns are bits already")
        size = self.ensemble.size or (len(self.model.scaling) if signature.numeric_columns else 1)
        ensemble = self.ensemble.model_copy(update={"size": size})
        noise = self.objective.input_noise
        noise = (0.1 if signature.columns else 0.0) if noise is None else noise
        objective = self.objective.model_copy(update={"input_noise": noise})
        # Rows that teach nothing are no exemplars either.
        model = self.model.resolve(signature, rows=max(1, int(rows * (1 - self.objective.trim))))
        return self.model_copy(update={"model": model, "ensemble": ensemble, "objective": objective})


Preset = Literal["textbook", "fast", "default", "quality"]

# What `--preset` sets, below a file, the environment and flags. How they compare: docs/results.md.
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    # What every introduction describes: a Gaussian of fixed scale or Bernoulli, N(0, I), and nothing else.
    "textbook": {
        "model": {
            "likelihood": "gaussian_fixed",
            "scaling": ["standard"],
            "prior": "standard_normal",
            "score_sigma": 0.0,
            "num_samples": 8,
        },
        "ensemble": {"size": 1},
        "objective": {"kl_warmup": 0.0, "input_noise": 0.0},
    },
    "fast": {
        "objective": {"beta": 0.5},
        "optimizer": {"max_steps": 1000},
    },
    "default": {},
    "quality": {"model": {"exemplars": 4000}, "ensemble": {"size": 4}},
}
