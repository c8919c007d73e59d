"""`vaeserve export`, `report`, `verify`, `calibrate` and `compare`: from a run to a bundle, and what comes after."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vaeserve.bundle import Bundle
from vaeserve.errors import RefusedError
from vaeserve.printable import printable
from vaeserve.progress import progress_bar
from vaeserve.source import open_source
from vaeserve_export.recalibrate import NormalRows, recalibrate


def export(
    run: Path,
    repository: Path,
    *,
    name: str,
    version: int | None,
    false_positive_rate: float | None,
    console: Console,
) -> None:
    """Export the run at `run`, and print the bundle's path on stdout. Raises as `vaeserve_export.export` does."""
    # Here, for it takes PyTorch, and what is done with a bundle doesn't.
    from vaeserve_export.export import export as export_run
    from vaeserve_training.run import Run

    with console.status("exporting") as status:
        bundle = export_run(
            Run.open(run),
            repository,
            name=name,
            version=version,
            false_positive_rate=false_positive_rate,
            say=status.update,
        )
    manifest = bundle.manifest
    worst = max(manifest.parity.errors.values())
    console.print(f"parity with PyTorch on {manifest.parity.rows} held-out rows: {worst:.1e} at most")
    console.print(
        f"calibrated on {manifest.calibration.rows} rows; a row is anomalous at p <= {manifest.false_positive_rate:g}"
    )
    print(bundle.path)


def report(
    bundle: Path, out: Path, *, data: str | None, label: str | None, normal: str | None, console: Console
) -> None:
    """Write the page of the bundle at `bundle` to the folder `out`. Raises as `Bundle.open` and `write_report` do."""
    # Here, for nothing else draws.
    from vaeserve_export.of_bundle import subject_of
    from vaeserve_training.report.command import write_report

    opened = Bundle.open(bundle)
    write_report(
        lambda rows: subject_of(opened, rows),
        opened.manifest.signature,
        out,
        data=data,
        label=label,
        normal=normal,
        console=console,
    )


def verify(bundle: Path, *, device: str, as_json: bool) -> None:
    """Check the bundle at `bundle`, and print on stdout what holds.

    Raises RefusedError with the first thing that is wrong, ConfigError where there is nothing to check.
    """
    # Here, for nothing else takes ONNX's checker.
    from vaeserve_export.verify import Check, verify

    def show(check: Check) -> None:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        terminal.print(f"{mark} {check.name}: {escape(printable(check.detail))}")

    terminal = Console(highlight=False, soft_wrap=True, quiet=as_json)
    verification = verify(bundle, device=device, say=show)
    if as_json:
        print(json.dumps(verification.as_json(), indent=2))
    if not verification.passed:
        failed = verification.checks[-1]
        raise RefusedError(f"{bundle}: {failed.name}: {failed.detail.removeprefix(f'{bundle}: ')}")


def calibrate(
    bundle: Path,
    data: str,
    *,
    label: str | None,
    normal: str | None,
    version: int | None,
    false_positive_rate: float | None,
    console: Console,
    as_json: bool,
) -> None:
    """Calibrate the bundle at `bundle` on `data`, and print the new version's path on stdout.

    Raises as `recalibrate` does, with nothing written.
    """
    before, source = Bundle.open(bundle), open_source(data)
    with progress_bar(console, "rows") as progress:
        task = progress.add_task("calibrating", total=source.rows)
        seen: list[NormalRows] = []

        def show(rows: NormalRows) -> None:
            seen[:] = [rows]
            progress.update(task, completed=rows.count)

        after = recalibrate(
            before,
            source,
            label=label,
            normal=normal,
            version=version,
            false_positive_rate=false_positive_rate,
            on_batch=show,
        )
        (rows,) = seen
        progress.update(task, completed=rows.count, total=rows.count)
    if as_json:
        print(json.dumps(_calibrated(after, rows)))
        return
    manifest = after.manifest
    aside = f", {rows.anomalous} labelled anomalous and set aside" if rows.anomalous else ""
    console.print(
        f"{escape(source.name)}: {rows.count} rows: {manifest.calibration.rows} calibrate"
        f"{aside}, {manifest.calibration.unscorable} unscorable"
    )
    console.print(f"a row is anomalous at p <= {manifest.false_positive_rate:g}{_changed(before, after)}")
    print(after.path)


def _calibrated(after: Bundle, rows: NormalRows) -> dict[str, object]:
    return {
        "bundle": str(after.path),
        "data": rows.name,
        "rows": rows.count,
        "calibrating": after.manifest.calibration.rows,
        "labelled_anomalous": rows.anomalous,
        "unscorable": after.manifest.calibration.unscorable,
        "false_positive_rate": after.manifest.false_positive_rate,
        "derived_from": after.manifest.derived_from,
    }


def _changed(before: Bundle, after: Bundle) -> str:
    rate = before.manifest.false_positive_rate
    return "" if after.manifest.false_positive_rate == rate else f"; it was {rate:g}"


def compare(
    a: Path, b: Path, data: str, *, label: str | None, normal: str | None, console: Console, as_json: bool
) -> None:
    """Print on stdout what changes from the bundle at `a` to that at `b` on `data`. Raises as its parts do."""
    # Here, for SciPy and scikit-learn take seconds to load.
    from vaeserve_export.compare import compare as compare_bundles
    from vaeserve_export.comparison import show

    bundles, source = (Bundle.open(a), Bundle.open(b)), open_source(data)
    with progress_bar(console, "rows") as progress:
        task = progress.add_task("comparing", total=source.rows)
        comparison = compare_bundles(
            *bundles,
            source,
            label=label,
            normal=normal,
            on_batch=lambda rows: progress.update(task, completed=rows),
        )
        progress.update(task, completed=comparison.rows, total=comparison.rows)
    if as_json:
        print(json.dumps(asdict(comparison)))
    else:
        show(comparison, Console(highlight=False))
