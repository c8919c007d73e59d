"""From raw inputs to what the networks and the likelihood see, and back.

A part of the model, so that the export puts it in the graphs, and training and serving can't differ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from vaeserve.scores import RowStatus
from vaeserve.signature import Signature
from vaeserve_training.config import Scaling
from vaeserve_training.scaling import scaling_of

# What the encoder sees of a scaled value: past this, an outlier is far enough.
INPUT_RANGE = 10.0

Inputs = Mapping[str, Tensor]


class Rows(NamedTuple):
    """Rows as the likelihood sees them, each [rows, features].

    x: scaled numbers, bits, codes of categories, or pixel intensities; finite.
    observed: 1 where there is a value to explain, else 0; None where there always is one.
    log_jacobian: what turns the density of `x` into that of standard-scaled values, nats; None where it is 0.
    """

    x: Tensor
    observed: Tensor | None = None
    log_jacobian: Tensor | None = None

    def explained(self, density: Tensor) -> Tensor:
        """Return the log-density of standard-scaled values, nats, 0 where there is nothing to explain.

        density: of `x`, nats, [rows, features] or [rows, samples, features].
        """
        if self.log_jacobian is not None:
            density = density + (self.log_jacobian[:, None] if density.ndim == 3 else self.log_jacobian)
        if self.observed is not None:
            density = density * (self.observed[:, None] if density.ndim == 3 else self.observed)
        return density

    def pick(self, index: int | slice | Tensor) -> "Rows":
        """Return the rows at `index` of the first axis."""
        return Rows.joined([self], lambda parts: parts[0][index])

    @staticmethod
    def joined(rows: "Sequence[Rows]", how: Callable[[list[Tensor]], Tensor]) -> "Rows":
        """Return the rows whose parts are `how` those of several go together; all have the same parts."""
        observed = [part.observed for part in rows if part.observed is not None]
        log_jacobian = [part.log_jacobian for part in rows if part.log_jacobian is not None]
        return Rows(
            how([part.x for part in rows]),
            how(observed) if observed else None,
            how(log_jacobian) if log_jacobian else None,
        )


class Features(nn.Module, ABC):
    """The map between raw inputs and rows.

    count: the features.
    width: what the encoder sees of them.
    takes_noise: 1 for the features whose input can be noisy, [features].
    """

    count: int
    width: int
    takes_noise: Tensor

    @property
    def constant(self) -> list[int]:
        """The features that are masked, for they had one value only."""
        return []

    @abstractmethod
    def fit(self, inputs: Inputs) -> None:
        """Learn scales from training rows."""

    @abstractmethod
    def forward(self, inputs: Inputs) -> Rows:
        """Return the rows; a value that can't be taken counts as missing, and the status tells."""

    @abstractmethod
    def network_input(self, rows: Rows) -> Tensor:
        """Return what the encoder sees, [rows, width]."""

    @abstractmethod
    def status(self, inputs: Inputs) -> Tensor:
        """Return each row's `RowStatus`, int32 [rows]."""

    @abstractmethod
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        """Return scaled features [rows, features] in raw units, by input name; categories as codes."""


class TableFeatures(Features):
    """A table's columns: numbers scaled, bits as they are, categories as codes; what is missing is masked.

    inputs: `numeric` [rows, n], NaN for missing, and `categorical` [rows, m], codes of int64 as `Signature.codes`
    gives them, -1 for missing. as_is: numbers aren't scaled.
    """

    learned: Tensor
    nullable: Tensor

    def __init__(self, signature: Signature, scaling: Scaling, *, as_is: bool = False) -> None:
        super().__init__()
        columns = signature.columns
        self.as_is = as_is
        self.count = len(columns)
        self.numbers = [index for index, column in enumerate(columns) if column.kind != "categorical"]
        self.codes = [index for index, column in enumerate(columns) if column.kind == "categorical"]
        self.sizes = [len(columns[index].categories) for index in self.codes]
        scaled = [columns[index].kind == "numeric" and not as_is for index in self.numbers]
        self.scaling = scaling_of(scaling, torch.tensor(scaled))
        self.width = len(self.numbers) + sum(self.sizes) + sum(column.nullable for column in columns)
        # Where each feature lies among the numbers followed by the codes.
        self.order = [(self.numbers + self.codes).index(index) for index in range(self.count)]
        nullable = torch.tensor([column.nullable for column in columns])
        self.nullable_columns = [index for index, column in enumerate(columns) if column.nullable]
        noisy = torch.tensor([column.kind == "numeric" for column in columns], dtype=torch.float32)
        self.register_buffer("takes_noise", noisy, persistent=False)
        self.register_buffer("nullable", nullable.float(), persistent=False)
        # A column of one value tells nothing: it is neither seen nor scored.
        self.register_buffer("learned", torch.ones(self.count))

    @override
    def fit(self, inputs: Inputs) -> None:
        learned = torch.ones(self.count)
        if self.numbers:
            numeric = inputs["numeric"].double()
            constant = self.scaling.fit(numeric)
            learned[self.numbers] = (~constant).float()
        if self.codes:
            codes = inputs["categorical"]
            same = torch.tensor([column[column >= 0].unique().numel() <= 1 for column in codes.T])
            learned[self.codes] = (~same).float()
        self.learned.copy_(learned)

    @override
    def forward(self, inputs: Inputs) -> Rows:
        observed = self._present(inputs) * self.learned  # (rows, features)
        parts, log_jacobian = [], None
        if self.numbers:
            raw = inputs["numeric"].to(self.learned.dtype)
            numbers, log_jacobian = self.scaling(torch.where(torch.isfinite(raw), raw, self.scaling.center))
            parts.append(numbers)
        if self.codes:
            parts.append(inputs["categorical"].clamp(min=0).to(self.learned.dtype))
            if log_jacobian is not None:
                log_jacobian = self._arranged([log_jacobian, torch.zeros_like(parts[-1])])
        return Rows(self._arranged(parts), observed, log_jacobian)

    @override
    def network_input(self, rows: Rows) -> Tensor:
        assert rows.observed is not None  # noqa: S101 - a table's rows have it
        parts = []
        if self.numbers:
            seen = rows.x.clamp(-INPUT_RANGE, INPUT_RANGE) * rows.observed
            parts.append(_columns(seen, self.numbers) if self.codes else seen)
        for index, size in zip(self.codes, self.sizes, strict=True):
            one_hot = rows.x[:, index : index + 1] == torch.arange(size, device=rows.x.device)
            parts.append(one_hot.to(rows.x.dtype) * rows.observed[:, index : index + 1])
        if self.nullable_columns:
            parts.append(_columns(rows.observed, self.nullable_columns))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # (rows, width)

    @override
    def status(self, inputs: Inputs) -> Tensor:
        required = self.learned * (1 - self.nullable)
        present = self._present(inputs)
        missing = ((1 - present) * required).amax(1)  # (rows,)
        some = (present * self.learned).amax(1)
        infinite = torch.zeros_like(missing)
        if self.numbers:
            infinite = torch.isinf(inputs["numeric"]).to(missing.dtype).amax(1)
        unscorable = torch.where((missing > 0) | (some == 0), int(RowStatus.UNSCORABLE_MISSING), int(RowStatus.OK))
        return torch.where(infinite > 0, int(RowStatus.UNSCORABLE_NOT_FINITE), unscorable).to(torch.int32)

    @override
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        raw = {}
        if self.numbers:
            raw["numeric"] = self.scaling.inverse(_columns(x, self.numbers) if self.codes else x)
        if self.codes:
            raw["categorical"] = _columns(x, self.codes).round().to(torch.int64)
        return raw

    @property
    @override
    def constant(self) -> list[int]:
        return [index for index, learned in enumerate(self.learned.tolist()) if not learned]

    def _present(self, inputs: Inputs) -> Tensor:
        """Return 1 where there is a value and 0 where it is missing, [rows, features]."""
        parts = []
        if self.numbers:
            parts.append(torch.isfinite(inputs["numeric"]))
        if self.codes:
            parts.append(inputs["categorical"] >= 0)
        return self._arranged([part.to(self.learned.dtype) for part in parts])

    def _arranged(self, parts: list[Tensor]) -> Tensor:
        """Return the numbers' and the codes' columns in the features' order."""
        if len(parts) == 1:
            return parts[0]
        together = torch.cat(parts, dim=1)
        return together if self.order == sorted(self.order) else _columns(together, self.order)


class ImageFeatures(Features):
    """Pixels of 0 to 255 as intensities in [0, 1], flattened; shape is [channels, height, width]."""

    white: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.count = self.width = math.prod(shape)
        self.register_buffer("takes_noise", torch.ones(1), persistent=False)
        # Carries the model's precision, which the integers that come in don't.
        self.register_buffer("white", torch.tensor(255.0))

    @override
    def fit(self, inputs: Inputs) -> None:
        """Learn nothing: what white is, is known."""

    @override
    def forward(self, inputs: Inputs) -> Rows:
        return Rows(inputs["image"].to(self.white.dtype).flatten(1) / self.white)  # (rows, features)

    @override
    def network_input(self, rows: Rows) -> Tensor:
        return rows.x

    @override
    def status(self, inputs: Inputs) -> Tensor:
        return torch.zeros_like(inputs["image"][:, 0, 0, 0], dtype=torch.int32)

    @override
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        pixels = (x * self.white).round().clamp(0, 255).to(torch.uint8)
        return {"image": pixels.reshape(-1, *self.shape)}


def _columns(x: Tensor, columns: list[int]) -> Tensor:
    """Return some columns, in that order, by the operator that the graphs may have."""
    return x.index_select(1, torch.tensor(columns, device=x.device))


def features_of(signature: Signature, scaling: Scaling, *, as_is: bool = False) -> Features:
    """Return the features that a signature's inputs make; a table's numbers are scaled, unless they stay `as_is`."""
    if signature.columns:
        return TableFeatures(signature, scaling, as_is=as_is)
    return ImageFeatures(signature.inputs[0].shape[1:])


def tensors_of(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Return raw inputs as tensors, categories as codes."""
    arrays = {name: signature.codes(array) if name == "categorical" else array for name, array in inputs.items()}
    return {name: torch.tensor(array) for name, array in arrays.items()}
