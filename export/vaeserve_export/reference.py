"""What PyTorch gives in double precision: the reference for parity and the golden rows."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaeserve.signature import Signature
from vaeserve_export.graphs import Decoder, Encoder, Scorer
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import tensors_of

Arrays = dict[str, NDArray[Any]]

ROWS_AT_ONCE = 1024


class Reference:
    """A model's three graphs, computed by PyTorch in float64."""

    def __init__(self, ensemble: Ensemble, signature: Signature) -> None:
        # A copy, for `double` changes a module in place.
        ensemble = copy.deepcopy(ensemble).double().eval()
        self._signature = signature
        self._encoder, self._decoder, self._scorer = Encoder(ensemble), Decoder(ensemble), Scorer(ensemble)

    def encode(self, inputs: Arrays) -> Arrays:
        """Return what the encoder graph should."""
        return self._run(self._encoder, inputs)

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return what the decoder graph should."""
        with torch.no_grad():
            outputs = _named(self._decoder.outputs, self._decoder(torch.tensor(z, dtype=torch.float64)))
        return as_strings(outputs, self._signature)

    def score(self, inputs: Arrays, noise: NDArray[np.float32]) -> Arrays:
        """Return what the scorer graph should."""
        return self._run(self._scorer, inputs, torch.tensor(noise, dtype=torch.float64))

    @torch.no_grad()
    def _run(self, module: Encoder | Scorer, inputs: Arrays, *fixed: torch.Tensor) -> Arrays:
        rows = len(next(iter(inputs.values())))
        calls = []
        for start in range(0, rows, ROWS_AT_ONCE):
            some = {name: array[start : start + ROWS_AT_ONCE] for name, array in inputs.items()}
            calls.append(_named(module.outputs, module(tensors_of(self._signature, some), *fixed)))
        return {name: np.concatenate([call[name] for call in calls]) for name in module.outputs}


def as_strings(arrays: Arrays, signature: Signature) -> Arrays:
    """Return `arrays` with the categories as strings in place of codes, if they have any."""
    if "categorical" not in arrays:
        return arrays
    return arrays | {"categorical": signature.categories(arrays["categorical"])}


def _named(names: tuple[str, ...], outputs: tuple[torch.Tensor, ...]) -> Arrays:
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
