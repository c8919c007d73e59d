"""The training loop: climb the bound on the training rows, stop on the held-out one."""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

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
    on_step: Callable[[], None] = lambda: None,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
) -> Trained:
    """Train on `split.train` until the bound of `split.validation` no longer rises, or to the last step if it is empty.

    on_step: is called before each step, and may raise to stop. on_evaluation: is told each measurement.
    The same split, settings, seed and machine give the same bits, also where a killed training goes on from its
    `checkpoints`. Raises DataError if the loss stops being a number, RunError if a checkpoint can't be read or written.
    """
    config = config.resolve(split.train.signature, rows=len(split.train))
    fabric = fabric_for(device, config.optimizer)
    _refuse_parts_of_batches(config.objective, processes=fabric.world_size)
    training = _Training(split, config, seed=seed, fabric=fabric, checkpoints=checkpoints)
    saved = time.monotonic()
    with threads_for(training.learner, training.batches.rows):
        while not training.is_over:
            on_step()
            training.climb()
            if training.step % config.optimizer.evaluate_every and training.step != config.optimizer.max_steps:
                continue
            on_evaluation(training.evaluate())
            if time.monotonic() - saved >= config.optimizer.checkpoint_seconds and training.save():
                saved = time.monotonic()
    return training.best()


def _refuse_parts_of_batches(objective: ObjectiveConfig, *, processes: int) -> None:
    if processes > 1 and (objective.contamination or objective.free_bits):
        raise ConfigError(
            f"objective.contamination and objective.free_bits go by a whole batch, of which {processes} "
            "processes see a part each; expected one process"
        )


class _Training:
    """A training under way: where it stands, and how it goes a step further.

    step: how many steps there were. here: where it stood at its last evaluation; None before the first.
    """

    def __init__(
        self, split: Split, config: TrainConfig, *, seed: int, fabric: Fabric, checkpoints: Checkpoints | None
    ) -> None:
        self._split, self._config, self._seed, self._fabric = split, config, seed, fabric
        self._checkpoints = checkpoints if fabric.is_global_zero else None
        self._ensemble = _untrained(split.train, config, seed=seed).to(fabric.device)
        memory_bytes = config.data.memory_gib * 2**30
        self._feed = Feed(split.train, self._ensemble, device=fabric.device, memory_bytes=memory_bytes)
        watched = (split.validation if len(split.validation) else split.train)[slice(VALIDATION_ROWS)]
        self._validation = Feed(watched, self._ensemble, device=fabric.device, memory_bytes=math.inf)
        self.batches = Batches(
            self._feed,
            config,
            seed=seed,
            latent_dim=self._ensemble.member.latent_dim,
            takes_noise=self._ensemble.member.features.takes_noise,
            process=fabric.global_rank,
            processes=fabric.world_size,
        )
        self.learner = learner_of(self._ensemble, config.objective)
        self._adam = torch.optim.Adam(self.learner.parameters(), lr=config.optimizer.learning_rate, fused=True)
        self._here: Checkpoint | None = fabric.broadcast(self._checkpoints.load() if self._checkpoints else None)
        self._evaluations: list[Evaluation] = []
        self.step = 0
        if self._here:
            self.learner.load_state_dict(self._here.weights)
            self._adam.load_state_dict(self._here.optimizer)
            self._evaluations = [Evaluation(**values) for values in self._here.evaluations]
            self.step = self._here.step
        self._model, self._optimizer = fabric.setup(self.learner, self._adam)
        self._losses: list[Tensor] = []
        # When it would have begun, had it never been stopped.
        self._began = time.monotonic() - (self._evaluations[-1].seconds if self._evaluations else 0.0)

    @property
    def is_over(self) -> bool:
        """Whether there are no steps left, or the held-out bound has risen for the last time."""
        if self.step >= self._config.optimizer.max_steps:
            return True
        held_out = len(self._split.validation)
        return self._here is not None and _is_over(self._here, self._evaluations, self._config, held_out=held_out)

    def climb(self) -> None:
        """Go a step further."""
        self.step += 1
        steps, objective = self._config.optimizer, self._config.objective
        rows, noise, seen = self.batches.at(self.step)
        for group in self._adam.param_groups:
            group["lr"] = steps.learning_rate * _rate(self.step, steps)
        beta = objective.beta * min(1.0, self.step / max(1.0, objective.kl_warmup * steps.max_steps))
        trim = objective.trim if self.step > TRIMMED_FROM * steps.max_steps else 0.0
        loss = self._model(rows, noise, seen, beta, trim)  # (members,)
        self._optimizer.zero_grad()
        self._fabric.backward(loss.sum())
        self.learner.clip_gradients(steps.gradient_norm)
        self._optimizer.step()
        self._losses.append(loss.detach())

    def evaluate(self) -> Evaluation:
        """Measure the held-out rows, and remember the weights if there were none better; raises DataError for NaN."""
        self.learner.copy_to(self._ensemble)
        climbed = -torch.stack(self._losses).mean(1).cpu()  # (steps,)
        self._losses.clear()
        measured, member = _evaluate(self._ensemble, self._validation, self._config.objective, seed=self._seed)
        evaluation = Evaluation(self.step, float(climbed.mean()), *measured, time.monotonic() - self._began)
        if not math.isfinite(evaluation.train_bound + evaluation.bound):
            said = _no_number(self.step, climbed, self._split.train, self._feed)
            if self._checkpoints and self._here and self.save():
                said += f"; the checkpoint of step {self._here.step} is kept at {self._checkpoints.path}"
            raise DataError(said)
        self._evaluations.append(evaluation)
        best = self._here.best if self._here and len(self._split.validation) else None
        weights = {name: value.detach().clone() for name, value in self.learner.state_dict().items()}
        if best is None or evaluation.bound > self._evaluations[best["index"]].bound:
            best = {"index": len(self._evaluations) - 1, "member": member, "weights": weights}
        evaluations = [asdict(entry) for entry in self._evaluations]
        self._here = Checkpoint(self.step, weights, copy.deepcopy(self._adam.state_dict()), evaluations, best)
        return evaluation

    def save(self) -> bool:
        """Write where it stood at its last evaluation, if that is this process's to do; tell whether it was."""
        if self._checkpoints is None or self._here is None:
            return False
        self._checkpoints.save(self._here)
        return True

    def best(self) -> Trained:
        """Return the model as it was at the best of its evaluations."""
        assert self._here is not None  # noqa: S101 - the last step is always evaluated
        ensemble, config = self._ensemble, self._config
        self.learner.load_state_dict(self._here.best["weights"])
        self.learner.copy_to(ensemble)
        ensemble.best = self._here.best["member"]
        if config.model.prior == "exemplars":
            _fit_exemplars(ensemble, self._feed, config, seed=self._seed)
        evaluation = self._evaluations[self._here.best["index"]]
        warnings = [*_masked(self._split.train, ensemble.member)]
        if not ensemble.member.point:
            warnings += warnings_of(evaluation.active_units, ensemble.member.latent_dim, config.objective)
        return Trained(config, ensemble.cpu().eval(), self._evaluations, evaluation, warnings)


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
