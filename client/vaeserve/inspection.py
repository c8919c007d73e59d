"""A bundle as a person reads it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaeserve.bundle import Bundle


def show(bundle: Bundle, console: Console) -> None:
    """Print what `bundle` takes, computes and promises."""
    manifest = bundle.manifest
    spec = manifest.signature.inputs[0]
    shape = " x ".join(map(str, spec.shape[1:]))
    rate, rows = manifest.false_positive_rate, manifest.calibration.rows
    facts = {
        "model": f"{manifest.name}, version {bundle.version or 'none'}, created {manifest.created:%Y-%m-%d %H:%M} UTC",
        "takes": f"{spec.name}: {spec.dtype}, rows x {shape}",
        "latent": f"{manifest.latent_dim} dimensions, prior {manifest.prior.replace('_', ' ')}",
        "likelihood": f"{manifest.likelihood}, nats of {manifest.density}",
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


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
