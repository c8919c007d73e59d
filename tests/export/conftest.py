"""Rows in files, and bundles to make versions of."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.signature import Signature


def write_rows(
    path: Path, signature: Signature, inputs: dict[str, NDArray[Any]], anomalous: NDArray[np.bool_] | None = None
) -> Path:
    """Write inputs, and labels, to a file that is read again as they are: a table to .parquet, images to .npz."""
    labels = {} if anomalous is None else {"label": anomalous.astype(np.int8)}
    if not signature.columns:
        path = path.with_suffix(".npz")
        np.savez(path, X=inputs["image"], **({} if anomalous is None else {"y": labels["label"]}))  # type: ignore[arg-type]
        return path
    parts = {"numeric": signature.numeric_columns, "categorical": signature.categorical_columns}
    columns = {column.name: inputs[name][:, index] for name, part in parts.items() for index, column in enumerate(part)}
    pq.write_table(pa.table({"id": np.arange(len(next(iter(columns.values())))), **columns, **labels}), path)
    return path


@pytest.fixture
def rows_file(models: Any, inputs_of: Any, tmp_path: Path) -> Callable[..., Path]:
    """A file of fresh rows: `rows_file(kind, count, seed=..., anomalous=...)`, with labels in `label` or `y`."""

    def file(kind: str, count: int, *, seed: int = 1, anomalous: NDArray[np.bool_] | None = None) -> Path:
        path = tmp_path / f"{kind}-{count}-{seed}.parquet"
        return write_rows(path, models.bundles[kind].manifest.signature, inputs_of(kind, count, seed=seed), anomalous)

    return file


@pytest.fixture
def bundle_of(models: Any, tmp_path: Path) -> Callable[[str], Bundle]:
    """A kind's bundle in a repository of the test's own."""

    def bundle(kind: str) -> Bundle:
        return Bundle.open(shutil.copytree(models.bundles[kind].path, tmp_path / "models" / kind / "1"))

    return bundle
