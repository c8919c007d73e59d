"""What tells rows from other rows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.signature import Signature


class Fingerprint:
    """A SHA-256 of a model's input rows, in order, however they are cut into batches."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._inputs = {spec.name: hashlib.sha256() for spec in signature.inputs}

    def update(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows."""
        for name, digest in self._inputs.items():
            # Strings have no bytes of a fixed width; what the model makes of them has.
            array = self._signature.codes(inputs[name]) if name == "categorical" else inputs[name]
            digest.update(np.ascontiguousarray(array).tobytes())

    def hexdigest(self) -> str:
        """Return the fingerprint of the rows so far."""
        # Spelled out, so that what a signature may say one day changes no fingerprint of today.
        columns = [[column.name, column.kind, column.categories] for column in self._signature.columns]
        inputs = [[spec.name, spec.dtype, spec.shape] for spec in self._signature.inputs]
        whole = hashlib.sha256(json.dumps([inputs, columns]).encode())
        for digest in self._inputs.values():
            whole.update(digest.digest())
        return whole.hexdigest()
