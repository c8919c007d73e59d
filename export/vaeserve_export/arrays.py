"""Arrays as the bytes of a bundle's files; `vaeserve.arrays` reads them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def npy(array: NDArray[Any]) -> bytes:
    """Return a `.npy` file; raises ValueError for objects, which would be pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Return a compressed `.npz` file; raises ValueError for objects, which would be pickled."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
