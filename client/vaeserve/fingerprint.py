"""What tells rows from other rows."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.signature import Signature


class Fingerprint:
    """A SHA-256 of a model's input rows, in order, and of their labels, however they are cut into batches."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._inputs = {spec.name: hashlib.sha256() for spec in signature.inputs}
        self._labels = hashlib.sha256()

    def update(self, inputs: Mapping[str, NDArray[Any]], anomalous: NDArray[np.bool_] | None = None) -> None:
        """Take the next rows."""
        for name, digest in self._inputs.items():
            # Strings have no bytes of a fixed width; what the model makes of them has.
            array = self._signature.codes(inputs[name]) if name == "categorical" else inputs[name]
            digest.update(np.ascontiguousarray(array).tobytes())
        if anomalous is not None:
            self._labels.update(anomalous.tobytes())

    def hexdigest(self) -> str:
        """Return the fingerprint of the rows so far."""
        whole = hashlib.sha256(repr(self._signature).encode())
        for digest in (*self._inputs.values(), self._labels):
            whole.update(digest.digest())
        return whole.hexdigest()
