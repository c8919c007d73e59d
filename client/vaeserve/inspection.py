"""A bundle as a person reads it."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaeserve.bundle import Bundle
from vaeserve.signature import Signature


def show(bundle: Bundle, console: Console) -> None:
    """Print what `bundle` takes, computes and promises."""
    manifest = bundle.manifest
    rate, rows = manifest.false_positive_rate, manifest.calibration.rows
    facts = {
        "model": f"{manifest.name}, version {bundle.version or 'none'}, created {manifest.created:%Y-%m-%d %H:%M} UTC",
        "takes": "; ".join(
            f"{spec.name}: {spec.dtype}, rows x {' x '.join(map(str, spec.shape[1:]))}"
            for spec in manifest.signature.inputs
        ),
        **({"columns": _columns(manifest.signature)} if manifest.signature.columns else {}),
        "latent": f"{manifest.latent_dim} dimensions, prior {manifest.prior.replace('_', ' ')}",
        "likelihood": f"{', '.join(manifest.likelihoods)}, nats of {manifest.density}",
        "scores with": f"{manifest.num_samples} of {len(bundle.noise)} noise points",
        "calibrated": f"on {rows} rows; anomalous at p <= {rate:g}, p is at least {1 / (rows + 1):.3g}",
        "parity": f"{max(manifest.parity.errors.values()):.1e} at most, on {manifest.parity.rows} held-out rows",
        "trained on": f"{manifest.training.train_rows} rows of {manifest.training.data}",
        "held-out": ", ".join(f"{name} {value:.4g}" for name, value in manifest.training.held_out.items()),
        "trained with": _versions(manifest.training.versions),
        "exported with": _versions(manifest.exported_with),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts.items():
        table.add_row(f"[bold]{name}[/]", escape(fact))
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.bytes} bytes, sha256 {entry.sha256[:16]}...")
    console.print(table)


def _columns(signature: Signature) -> str:
    """Say how many columns are of which kind, and how many of them may miss."""
    kinds = Counter(column.kind for column in signature.columns)
    categories = sum(len(column.categories) for column in signature.columns)
    said = [
        f"{count} {kind}" + (f" ({categories} categories)" if kind == "categorical" else "")
        for kind, count in kinds.items()
    ]
    nullable = sum(column.nullable for column in signature.columns)
    return ", ".join(said) + f"; {nullable or 'none'} of them may be missing"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
