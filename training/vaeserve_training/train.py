"""The training loop, top to bottom: climb the bound on the training rows, stop on the held-out one."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from vaeserve.errors import ConfigError, DataError
from vaeserve_training.config import OptimizerConfig, TrainConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.features import Inputs
from vaeserve_training.likelihoods import Bernoulli
from vaeserve_training.objective import bounds
from vaeserve_training.vae import VAE

EVALUATION_ROWS = 4096


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured, in nats a row, after `seconds` of training.

    train_bound: the objective over the batches since the last evaluation; the rest are means over the validation rows.
    """

    step: int
    train_bound: float
    elbo: float
    log_likelihood: float
    kl: float
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """Return the evaluation by name."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """A trained model, as it was at the best of its evaluations."""

    vae: VAE
    evaluations: list[Evaluation]
    best: Evaluation


def train(
    split: Split,
    config: TrainConfig,
    *,
    seed: int,
    device: str = "cpu",
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
) -> Trained:
    """Train a VAE on `split.train` until the bound of `split.validation` no longer rises.

    The same split, settings, seed and machine give the same bits. Raises DataError if the loss stops being a number.
    """
    optimizer_config = config.optimizer
    torch.manual_seed(seed)
    vae = VAE.build(split.train.signature, config.model)
    if isinstance(vae.likelihood, Bernoulli):
        _refuse_outside_unit_range(split.train)
    vae.fit_features(_tensors(split.train, torch.device("cpu")))
    torch_device = pick_device(device)
    vae.to(torch_device)
    generator = torch.Generator(torch_device).manual_seed(seed)
    with torch.no_grad():  # data that fits lives on the device, scaled once
        x_train = vae.features(_tensors(split.train, torch_device))
        x_validation = vae.features(_tensors(split.validation, torch_device))
    # One fixed draw for all evaluations, so that they differ by the model alone.
    validation_noise = torch.randn(len(x_validation), 1, vae.latent_dim, generator=generator, device=torch_device)

    optimizer = torch.optim.Adam(vae.parameters(), lr=optimizer_config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(optimizer_config))
    batch_rows = min(optimizer_config.batch_rows, len(x_train))
    evaluations: list[Evaluation] = []
    best: Evaluation | None = None
    best_state: dict[str, Tensor] = {}
    order, position = torch.empty(0, dtype=torch.long), 0
    climbed, started = torch.zeros((), device=torch_device), time.monotonic()

    for step in range(1, optimizer_config.max_steps + 1):
        if position + batch_rows > len(order):
            order, position = torch.randperm(len(x_train), generator=generator, device=torch_device), 0
        x = x_train[order[position : position + batch_rows]]
        position += batch_rows

        noise = torch.randn(len(x), 1, vae.latent_dim, generator=generator, device=torch_device)
        parts = bounds(vae, x, noise)
        objective = (parts.log_likelihood - optimizer_config.beta * parts.kl).mean()
        optimizer.zero_grad()
        (-objective).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), optimizer_config.gradient_norm)
        optimizer.step()
        schedule.step()
        climbed += objective.detach()

        if step % optimizer_config.evaluate_every and step != optimizer_config.max_steps:
            continue
        since = step - (evaluations[-1].step if evaluations else 0)
        evaluation = Evaluation(
            step,
            float(climbed) / since,
            *_evaluate(vae, x_validation, validation_noise),
            time.monotonic() - started,
        )
        climbed.zero_()
        if not math.isfinite(evaluation.train_bound + evaluation.elbo):
            raise DataError(
                f"{split.train.name}: the bound is no number at step {step}; expected a finite one: lower "
                "optimizer.learning_rate, or look for columns of enormous range"
            )
        evaluations.append(evaluation)
        on_evaluation(evaluation)
        if best is None or _objective(evaluation, optimizer_config) > _objective(best, optimizer_config):
            best = evaluation
            best_state = {name: value.clone() for name, value in vae.state_dict().items()}
        if step - best.step >= optimizer_config.patience * optimizer_config.evaluate_every:
            break

    assert best is not None  # noqa: S101 - the last step is always evaluated
    vae.load_state_dict(best_state)
    return Trained(vae.cpu().eval(), evaluations, best)


def _refuse_outside_unit_range(dataset: Dataset) -> None:
    """Raise DataError, naming the column, for a table that holds what Bernoulli has no density for."""
    numeric = dataset.inputs.get("numeric")
    if numeric is None:  # pixels are intensities in [0, 1]
        return
    outside = (numeric < 0) | (numeric > 1)
    if outside.any():
        column = int(np.flatnonzero(outside.any(axis=0))[0])
        value = numeric[outside[:, column], column][0]
        raise DataError(
            f"{dataset.name}: column {dataset.signature.features[column]!r} holds {value:g}; "
            "model.likelihood = bernoulli expects values from 0 to 1"
        )


def pick_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu or cuda.

    Raises ConfigError for a device that isn't there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; expected one, or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _tensors(dataset: Dataset, device: torch.device) -> Inputs:
    return {name: torch.tensor(array, device=device) for name, array in dataset.inputs.items()}


def _schedule(config: OptimizerConfig) -> Callable[[int], float]:
    """Return the learning rate's factor at a step: up linearly, then down a cosine to a hundredth."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


@torch.no_grad()
def _evaluate(vae: VAE, x: Tensor, noise: Tensor) -> tuple[float, float, float]:
    """Return the mean ELBO, log-likelihood and KL of rows `x`, in nats."""
    totals = torch.zeros(3, dtype=torch.float64)
    for some_x, some_noise in zip(x.split(EVALUATION_ROWS), noise.split(EVALUATION_ROWS), strict=True):
        parts = bounds(vae, some_x, some_noise)
        totals += torch.stack([parts.elbo, parts.log_likelihood, parts.kl]).double().sum(1).cpu()
    elbo, log_likelihood, kl = (totals / len(x)).tolist()
    return elbo, log_likelihood, kl


def _objective(evaluation: Evaluation, config: OptimizerConfig) -> float:
    return evaluation.log_likelihood - config.beta * evaluation.kl
