"""Numbers and names as a page says them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from vaeserve.printable import printable
from vaeserve.signature import Column, Signature

# Of a name in a drawing; tables have it whole.
LONGEST = 18


def counted(count: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def file_name(source: str) -> str:
    """Return the last part of where rows came from, a path, an address or a name."""
    return source.rstrip("/").rpartition("/")[2] or source


def listed(names: Sequence[str], *, most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def short(name: str, longest: int = LONGEST) -> str:
    """Return a name with its middle left out where it is long: what tells names apart is as often at their end."""
    said = printable(name)
    if len(said) <= longest:
        return said
    half = (longest - 1) // 2
    return f"{said[: longest - 1 - half]}…{said[-half:]}"


def shaped(shape: Sequence[int]) -> str:
    """Return `3 x 9 x 7`."""
    return " x ".join(f"{side:,}" for side in shape)


def number(value: float) -> str:
    """Return a number of four digits, without an exponent where it needs none."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def prior_words(name: str) -> str:
    """Return what the prior of a name is called on a page."""
    return "N(0, I)" if name == "standard_normal" else name.replace("_", " ")


def taken(signature: Signature) -> dict[str, str]:
    """Return what rows of a signature are, as facts."""
    if not signature.columns:
        channels, height, width = signature.inputs[0].shape[1:]
        return {"a row is": f"an image of {height} x {width} pixels and {counted(channels, 'channel')}"}
    facts = {"a row is": counted(len(signature.columns), "column")}
    for kind in ("numeric", "binary", "categorical"):
        names = [column.name for column in signature.columns if column.kind == kind]
        if names:
            facts[f"{kind}, {len(names)}"] = listed(names)
    missing = [column.name for column in signature.columns if column.nullable]
    if missing:
        facts["may be missing"] = listed(missing)
    return facts


def value(signature: Signature, inputs: Mapping[str, NDArray[Any]], row: int, column: Column) -> str:
    """Return what a row has in a column; of a decoded binary column, the probability of a 1."""
    if column.kind == "categorical":
        return printable(str(inputs["categorical"][row, signature.categorical_columns.index(column)])) or "missing"
    found = float(inputs["numeric"][row, signature.numeric_columns.index(column)])
    if math.isnan(found):
        return "missing"
    return (
        f"{found:.2g}"
        if column.kind == "binary" and found > 0.005
        else "0"
        if column.kind == "binary"
        else number(found)
    )


def versions(found: Mapping[str, str]) -> str:
    """Return names and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def settings(config: Mapping[str, object]) -> str:
    """Return settings in a line."""
    return ", ".join(f"{name} {value}" for name, value in config.items() if value is not None)
