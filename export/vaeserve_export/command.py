"""`vaeserve export`: from a run to a bundle, said as it goes."""

from pathlib import Path

from rich.console import Console

from vaeserve_export.export import export as export_run
from vaeserve_training.run import Run


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
