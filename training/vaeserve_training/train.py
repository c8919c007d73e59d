"""The training loop, top to bottom: climb the bound on the training rows, stop on the held-out one."""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vaeserve.errors import ConfigError, DataError
from vaeserve_training.batches import Batches
from vaeserve_training.checkpoint import Checkpoint, Checkpoints
from vaeserve_training.collapse import usage, warnings_of
from vaeserve_training.config import ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Rows, tensors_of
from vaeserve_training.feed import Feed
from vaeserve_training.learner import Learner, learner_of
from vaeserve_training.objective import bounds
from vaeserve_training.prior import Exemplars
from vaeserve_training.randomness import generator_of, seed_of
from vaeserve_training.vae import UNIT, VAE, Posterior

# How many rows tell the scales, and how many the held-out bound.
FIT_ROWS = 200_000
VALIDATION_ROWS = 10_000
ROWS_AT_ONCE = 4096
# The share of the steps after which the worst rows are known, and not yet learned.
TRIMMED_FROM = 0.03
# Weights x rows of a step that one thread does as fast as two.
WORK_OF_ONE_THREAD = 3e7
# The scaled value that makes a column suspect.
OUTLIER = 1e6


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured, in nats a row, after `seconds` of training.

    train_bound: the objective over the batches since the last evaluation; the others are of the validation rows, means
    over the members. bound: by which to stop, the objective with beta whole, or the IWAE bound. active_units, latent_kl
    and mutual_information are those of the best member; see `Usage`.
    """

    step: int
    train_bound: float
    bound: float
    elbo: float
    log_likelihood: float
    kl: float
    active_units: int
    latent_kl: list[float]
    mutual_information: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained model, as it was at the best of its evaluations, and what a person should know of it.

    config: its settings, with what was left open decided.
    """

    config: TrainConfig
    ensemble: Ensemble
    evaluations: list[Evaluation]
    best: Evaluation
    warnings: list[str]


def train(
    split: Split,
    config: TrainConfig,
    *,
    seed: int,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
) -> Trained:
    """Train on `split.train` until the bound of `split.validation` no longer rises, or to the last step if it is empty.

    The same split, settings, seed and machine give the same bits, also where a killed training goes on from its
    `checkpoints`. Raises DataError if the loss stops being a number, RunError if a checkpoint can't be read or written.
    """
    config = config.resolve(split.train.signature, rows=len(split.train))
    steps, objective = config.optimizer, config.objective
    fabric = fabric_for(device, steps)
    if fabric.world_size > 1 and (objective.contamination or objective.free_bits):
        raise ConfigError(
            f"objective.contamination and objective.free_bits go by a whole batch, of which {fabric.world_size} "
            "processes see a part each; expected one process"
        )
    ensemble = _untrained(split.train, config, seed=seed).to(fabric.device)
    memory_bytes = config.data.memory_gib * 2**30
    feed = Feed(split.train, ensemble, device=fabric.device, memory_bytes=memory_bytes)
    watched = (split.validation if len(split.validation) else split.train)[slice(VALIDATION_ROWS)]
    validation = Feed(watched, ensemble, device=fabric.device, memory_bytes=math.inf)
    batches = Batches(
        feed,
        config,
        seed=seed,
        latent_dim=ensemble.member.latent_dim,
        takes_noise=ensemble.member.features.takes_noise,
        process=fabric.global_rank,
        processes=fabric.world_size,
    )
    learner = learner_of(ensemble, objective)
    adam = torch.optim.Adam(learner.parameters(), lr=steps.learning_rate, fused=True)
    here = fabric.broadcast(checkpoints.load() if checkpoints and fabric.is_global_zero else None)
    if here:
        learner.load_state_dict(here.weights)
        adam.load_state_dict(here.optimizer)
    model, optimizer = fabric.setup(learner, adam)
    evaluations = [Evaluation(**values) for values in here.evaluations] if here else []
    started = saved = time.monotonic()
    before = evaluations[-1].seconds if evaluations else 0.0
    losses = []

    with threads_for(learner, batches.rows):
        for step in range(here.step + 1 if here else 1, steps.max_steps + 1):
            if here and _is_over(here, evaluations, config, held_out=len(split.validation)):
                break
            rows, noise, seen = batches.at(step)
            for group in adam.param_groups:
                group["lr"] = steps.learning_rate * _rate(step, steps)
            beta = objective.beta * min(1.0, step / max(1.0, objective.kl_warmup * steps.max_steps))
            trim = objective.trim if step > TRIMMED_FROM * steps.max_steps else 0.0
            loss = model(rows, noise, seen, beta, trim)  # (members,)
            optimizer.zero_grad()
            fabric.backward(loss.sum())
            learner.clip_gradients(steps.gradient_norm)
            optimizer.step()
            losses.append(loss.detach())

            if step % steps.evaluate_every and step != steps.max_steps:
                continue
            learner.copy_to(ensemble)
            climbed = -torch.stack(losses).mean(1).cpu()  # (steps,)
            measured, ensemble.best = _evaluate(ensemble, validation, objective, seed=seed)
            evaluation = Evaluation(step, float(climbed.mean()), *measured, before + time.monotonic() - started)
            if not math.isfinite(evaluation.train_bound + evaluation.bound):
                raise DataError(_no_number(step, climbed, split.train, feed) + _kept(here, checkpoints))
            losses.clear()
            evaluations.append(evaluation)
            on_evaluation(evaluation)
            best = here.best if here and len(split.validation) else None
            weights = {name: value.detach().clone() for name, value in learner.state_dict().items()}
            if best is None or evaluation.bound > evaluations[best["index"]].bound:
                best = {"index": len(evaluations) - 1, "member": ensemble.best, "weights": weights}
            here = Checkpoint(step, weights, _copy(adam.state_dict()), [asdict(entry) for entry in evaluations], best)
            if checkpoints and fabric.is_global_zero and time.monotonic() - saved >= steps.checkpoint_seconds:
                checkpoints.save(here)
                saved = time.monotonic()

    assert here is not None  # noqa: S101 - the last step is always evaluated
    learner.load_state_dict(here.best["weights"])
    learner.copy_to(ensemble)
    ensemble.best = here.best["member"]
    if config.model.prior == "exemplars":
        _fit_exemplars(ensemble, feed, config, seed=seed)
    best_evaluation = evaluations[here.best["index"]]
    warnings = [*_masked(split.train, ensemble.member)]
    if not ensemble.member.point:
        warnings += warnings_of(best_evaluation.active_units, ensemble.member.latent_dim, objective)
    return Trained(config, ensemble.cpu().eval(), evaluations, best_evaluation, warnings)


def fabric_for(device: str, config: OptimizerConfig) -> Fabric:
    """Return the launched Fabric for `device`: this process alone, or one of those that torchrun started.

    Raises ConfigError for a device that isn't there.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the command says what there is to say
    accelerator = pick_device(device).type
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if accelerator == "cuda":  # the same seed gives the same bits there too
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    fabric = Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def threads_for(learner: Learner, batch_rows: int) -> Iterator[None]:
    """Let PyTorch have one thread while a step has little work: more would mostly wait for each other."""
    before = torch.get_num_threads()
    if batch_rows * sum(parameter.numel() for parameter in learner.parameters()) < WORK_OF_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu or cuda.

    Raises ConfigError for a device that isn't there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; expected one, or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _untrained(dataset: Dataset, config: TrainConfig, *, seed: int) -> Ensemble:
    """Return the ensemble whose weights the seed draws, on the CPU so that they are the same on any device."""
    _refuse_outside_unit_range(dataset, config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed))
        ensemble = Ensemble.build(dataset.signature, config.model, size=config.ensemble.size or 1)
    rows = np.random.default_rng(seed).permutation(len(dataset))[:FIT_ROWS]
    inputs = tensors_of(dataset.signature, dataset.take(np.sort(rows)))
    for vae in ensemble:
        vae.features.fit(inputs)
    if len(ensemble.member.features.constant) == ensemble.member.features.count:
        raise DataError(f"{dataset.name}: no column varies over the training rows; expected one or more that does")
    return ensemble


def _masked(dataset: Dataset, vae: VAE) -> Iterator[str]:
    """Yield a warning where columns are neither seen nor scored."""
    if vae.features.constant:
        names = ", ".join(dataset.signature.features[index] for index in vae.features.constant)
        yield f"hardly varying in the training rows, so nothing to learn from, and masked: {names}"


def _refuse_outside_unit_range(dataset: Dataset, config: ModelConfig) -> None:
    """Raise DataError, naming the column, for a table that holds what the likelihood has no density for."""
    if config.likelihood not in UNIT or not dataset.signature.numeric_columns:
        return
    columns = [column.name for column in dataset.signature.numeric_columns]
    for start in range(0, len(dataset), FIT_ROWS):
        numeric = dataset.take(np.arange(start, min(start + FIT_ROWS, len(dataset))))["numeric"]
        outside = (numeric < 0) | (numeric > 1)
        if outside.any():
            column = int(np.flatnonzero(outside.any(axis=0))[0])
            raise DataError(
                f"{dataset.name}: column {columns[column]!r} holds {numeric[outside[:, column], column][0]:g}; "
                f"model.likelihood = {config.likelihood} expects values from 0 to 1"
            )


def _rate(step: int, config: OptimizerConfig) -> float:
    """Return the learning rate's factor at a step: up linearly, then down a cosine to a two-hundredth."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return 0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def _evaluate(
    ensemble: Ensemble, validation: Feed, objective: ObjectiveConfig, *, seed: int
) -> tuple[tuple[float, float, float, float, int, list[float], float], int]:
    """Return the mean objective, ELBO, log-likelihood and KL, the best member's usage, and which member that is."""
    # One fixed draw for all evaluations, so that they differ by the model alone.
    latent_dim, device = ensemble.member.latent_dim, ensemble.member.features.takes_noise.device
    samples = objective.samples if objective.bound == "iwae" else 1
    rows_at_once = max(1, ROWS_AT_ONCE // samples)
    figures = []
    for index, vae in enumerate(ensemble):
        generator = generator_of(device, seed, len(validation))
        totals = torch.zeros(4, dtype=torch.float64)
        for rows in _chunks(validation.all_of(index), rows_at_once):
            noise = torch.randn(len(rows.x), samples, latent_dim, generator=generator, device=device)
            some = bounds(vae, rows, noise)
            climbed = some.iwae if objective.bound == "iwae" else some.log_likelihood - objective.beta * some.kl
            totals += torch.stack([climbed, some.elbo, some.log_likelihood, some.kl]).double().sum(1).cpu()
        figures.append((totals / len(validation)).tolist())
    best = max(range(len(ensemble)), key=lambda index: figures[index][0])
    bound, elbo, log_likelihood, kl = np.mean(figures, axis=0).tolist()
    posterior = list(ensemble)[best].encode(next(_chunks(validation.all_of(best), ROWS_AT_ONCE)))
    points = torch.randn(posterior.mean.shape, generator=generator_of(device, seed), device=device)
    return (bound, elbo, log_likelihood, kl, *usage(posterior, points)), best


def _is_over(here: Checkpoint, evaluations: list[Evaluation], config: TrainConfig, *, held_out: int) -> bool:
    """Tell whether the held-out bound has risen for the last time, as far as patience goes."""
    # What the bound was before beta was whole says nothing of when to stop.
    since = max(evaluations[here.best["index"]].step, config.objective.kl_warmup * config.optimizer.max_steps)
    return held_out > 0 and here.step - since >= config.optimizer.patience * config.optimizer.evaluate_every


@torch.no_grad()
def _fit_exemplars(ensemble: Ensemble, feed: Feed, config: TrainConfig, *, seed: int) -> None:
    """Replace the members' prior by a mixture of the posteriors of training rows, the worst explained left out."""
    device, exemplars = ensemble.member.features.takes_noise.device, config.model.exemplars
    positions = torch.randperm(len(feed), generator=generator_of(device, seed), device=device)
    positions = positions[: math.ceil(exemplars / (1 - config.objective.trim))]
    rows = feed.take(positions.expand(len(ensemble), -1))
    of_members = [rows.pick(index) for index in range(len(ensemble))]
    if config.objective.trim:
        elbos = [_elbos(vae, mine) for vae, mine in zip(ensemble, of_members, strict=True)]
        best = torch.stack(elbos).mean(0).argsort(descending=True)[:exemplars]
        of_members = [mine.pick(best) for mine in of_members]
    for vae, mine in zip(ensemble, of_members, strict=True):
        vae.prior = Exemplars.of(*_posteriors(vae, mine))


def _elbos(vae: VAE, rows: Rows) -> Tensor:
    """Return the ELBO of each row at its posterior's mean."""
    noise = torch.zeros(1, vae.latent_dim, device=rows.x.device)
    return torch.cat([bounds(vae, some, noise).elbo for some in _chunks(rows, ROWS_AT_ONCE)])


def _posteriors(vae: VAE, rows: Rows) -> Posterior:
    parts = [vae.encode(some) for some in _chunks(rows, ROWS_AT_ONCE)]
    return Posterior(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows.pick(slice(start, start + size)) for start in range(0, len(rows.x), size))


def _no_number(step: int, climbed: Tensor, dataset: Dataset, feed: Feed) -> str:
    """Say at which step the loss stopped being a number, and what it most likely comes from.

    climbed: the objectives of the steps up to `step`, [steps].
    """
    finite = torch.isfinite(climbed).tolist()
    at = step - len(finite) + 1 + (finite.index(False) if False in finite else len(finite) - 1)
    positions = torch.arange(min(len(feed), VALIDATION_ROWS))
    rows = feed.take(positions.expand(feed.members, -1)).pick(0)
    largest, feature = rows.x.abs().amax(0).max(0)
    cause = "lower optimizer.learning_rate"
    if largest > OUTLIER:
        name = dataset.signature.features[int(feature)]
        cause += f", or --drop {name!r}, which has values {float(largest):.3g} times its usual deviation"
    return f"{dataset.name}: the loss is no number at step {at}; expected a finite one: {cause}"


def _kept(here: Checkpoint | None, checkpoints: Checkpoints | None) -> str:
    """Keep the last good checkpoint, and say where."""
    if not (here and checkpoints):
        return ""
    checkpoints.save(here)
    return f"; the checkpoint of step {here.step} is kept at {checkpoints.path}"


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state as it is now."""
    copied: dict[str, Any] = copy.deepcopy(state)
    return copied
