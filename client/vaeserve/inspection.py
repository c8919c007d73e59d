"""A bundle as a person reads it."""

from collections.abc import Mapping

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vaeserve.bundle import Bundle
from vaeserve.manifest import Manifest
from vaeserve.printable import printable
from vaeserve.scores import Bound
from vaeserve.signature import Column, Signature

# Of a table's columns the first are shown, then the last; of a graph's operators the commonest.
_MOST_COLUMNS, _LAST_COLUMNS = 24, 4
_MOST_OPERATORS = 8
_LONGEST = 22


def show(bundle: Bundle, console: Console) -> None:
    """Print what `bundle` takes, computes and promises."""
    manifest = bundle.manifest
    parts = {
        "": _facts(_model(bundle)),
        "takes": Group(_facts(_tensors(manifest.signature)), *_columns(manifest)),
        "computes": Group(_facts(_density(bundle)), _graphs(manifest)),
        "calibrated": Group(_facts(_calibration(bundle)), _quantiles(manifest)),
        "made": _facts(_provenance(manifest)),
        "files": _files(manifest),
    }
    for name, part in parts.items():
        if name:
            console.print(f"\n[bold]{name}[/]")
        console.print(part)


def _model(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    return {
        "model": f"{manifest.name}, version {bundle.version or 'none'}, format {manifest.format_version}",
        "created": f"{manifest.created:%Y-%m-%d %H:%M:%S %Z}",
        "sha256": bundle.manifest_sha256,
        **({"derived from": manifest.derived_from} if manifest.derived_from else {}),
    }


def _tensors(signature: Signature) -> dict[str, str]:
    shapes = {spec.name: " x ".join(map(str, spec.shape[1:])) for spec in signature.inputs}
    return {"inputs": "; ".join(f"{spec.name}: {spec.dtype}, rows x {shapes[spec.name]}" for spec in signature.inputs)}


def _columns(manifest: Manifest) -> list[Table]:
    signature = manifest.signature
    if not signature.columns:
        return []
    table = _table("column", "kind", "may be missing", "categories")
    columns = signature.columns
    hidden = len(columns) - _MOST_COLUMNS
    for position, column in enumerate(columns):
        if hidden > 0 and position == _MOST_COLUMNS - _LAST_COLUMNS:
            table.add_row(f"... {hidden} more", "", "", "")
        if hidden <= 0 or not 0 <= position - (_MOST_COLUMNS - _LAST_COLUMNS) < hidden:
            missing = "masked" if column.name in manifest.masked else "yes" if column.nullable else "no"
            table.add_row(_short(column.name), column.kind, missing, _categories(column))
    return [table]


def _categories(column: Column) -> Text:
    """Return a column's first categories, as many as fit in a line, one at least."""
    said = ""
    for position, name in enumerate(column.categories):
        longer = f"{said}, {_short(name)}" if said else str(_short(name))
        if said and len(longer) > _LONGEST:
            return Text(f"{said}, {len(column.categories) - position} more")
        said = longer
    return Text(said)


def _density(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    prior = manifest.prior.replace("_", " ")
    exemplars = f", {manifest.exemplars} of them" if manifest.exemplars else ""
    best = f"{manifest.members}, of which number {manifest.best_member} encodes and decodes"
    parity = manifest.parity
    worst = {output.partition("/")[0]: 0.0 for output in parity.errors}
    for output, error in parity.errors.items():
        worst[output.partition("/")[0]] = max(worst[output.partition("/")[0]], error)
    return {
        "latent": f"{manifest.latent_dim} dimensions; prior: {prior}{exemplars}",
        "likelihood": f"{', '.join(manifest.likelihoods)}; in nats of {manifest.density}",
        "members": best if manifest.members > 1 else "1",
        "noise": f"{manifest.num_samples} of {len(bundle.noise)} points",
        "parity": f"with PyTorch on {parity.rows} held-out rows: "
        + ", ".join(f"{graph} {error:.1e}" for graph, error in worst.items())
        + f"; {parity.tolerance:g} allowed",
    }


def _graphs(manifest: Manifest) -> Table:
    table = _table("graph", "operators", "the commonest")
    for graph, operators in manifest.operators.items():
        common = sorted(operators.items(), key=lambda item: -item[1])
        said = ", ".join(f"{_short(name)} {count}" for name, count in common[:_MOST_OPERATORS])
        more = f" and {len(common) - _MOST_OPERATORS} other kinds" if len(common) > _MOST_OPERATORS else ""
        table.add_row(_text(graph), str(sum(operators.values())), Text(said + more))
    table.caption = f"opset {manifest.opset}"
    table.caption_justify = "left"
    return table


def _calibration(bundle: Bundle) -> dict[str, str]:
    summary, calibration = bundle.manifest.calibration, bundle.calibration
    rate = bundle.manifest.false_positive_rate
    thresholds = ", ".join(f"{bound.value} {calibration.threshold(bound, rate):.6g}" for bound in Bound)
    return {
        "rows": f"{summary.rows}, and {summary.unscorable} that could not be scored",
        "of": f"{summary.data}, sha256 {summary.data_sha256[:16]}...",
        "anomalous": f"at p <= {rate:g}; p is at least {1 / (summary.rows + 1):.3g}",
        "threshold": f"scores above, nats: {thresholds}",
    }


def _quantiles(manifest: Manifest) -> Table:
    quantiles = manifest.calibration.quantiles
    levels = sorted({level for of_bound in quantiles.values() for level in of_bound}, key=float)
    table = _table("score's quantile", *(bound.value for bound in quantiles))
    for level in levels:
        values = (of_bound.get(level) for of_bound in quantiles.values())
        table.add_row(_text(level), *("" if value is None else f"{value:.6g}" for value in values))
    return table


def _provenance(manifest: Manifest) -> dict[str, str]:
    training = manifest.training
    return {
        "trained on": f"{training.train_rows} rows of {training.data}, sha256 {training.data_sha256[:16]}...",
        "settings": _settings(training.config),
        "held-out": ", ".join(f"{name} {value:.4g}" for name, value in training.held_out.items()),
        "trained with": _versions(training.versions),
        "exported with": _versions(manifest.exported_with),
    }


def _settings(config: Mapping[str, object]) -> str:
    """Say the model's own settings and the seed; --json has them all."""
    model = config.get("model")
    said = {**(model if isinstance(model, Mapping) else {}), **{k: v for k, v in config.items() if k == "seed"}}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _files(manifest: Manifest) -> Table:
    table = _table("file", "bytes", "sha256")
    for name, entry in manifest.files.items():
        table.add_row(_text(name), f"{entry.bytes:,}", f"{entry.sha256[:16]}...")
    table.columns[1].justify = "right"
    return table


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=13, no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(_text(name), _text(fact))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(_text(column), overflow="fold")
    return table


def _short(name: str) -> Text:
    """Return a name with its middle left out where it is long: what tells names apart is as often at their end."""
    half, said = _LONGEST // 2 - 2, printable(name)
    return Text(said if len(said) <= _LONGEST else f"{said[:half]}...{said[-half:]}")


def _text(said: str) -> Text:
    """Return what a manifest says as text: no markup, and nothing that a terminal acts on."""
    return Text(printable(said))
