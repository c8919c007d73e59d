"""What `vaeserve report` does, be it of a run or of a bundle."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vaeserve.errors import ConfigError
from vaeserve.signature import Signature
from vaeserve.source import open_source
from vaeserve_training.data import Dataset, read_dataset
from vaeserve_training.report.page import refuse_other, write
from vaeserve_training.report.report import report
from vaeserve_training.report.subject import Subject


def write_report(
    subject_of: Callable[[Dataset | None], Subject],
    signature: Signature,
    out: Path,
    *,
    data: str | None,
    label: str | None,
    normal: str | None,
    console: Console,
) -> None:
    """Write the page of a subject, on the rows of `data` if that is given, and print the page's path on stdout.

    Raises, having written nothing, OperatorError where `out` is something else, ConfigError for labels without `data`,
    and as reading it does.
    """
    refuse_other(out)
    if data is None and (label or normal):
        raise ConfigError("--label and --normal are of the rows that --data gives, and none are given; expected --data")
    with console.status("drawing"):
        rows = None
        if data is not None:
            rows = read_dataset(open_source(data), signature, label=label, normal=normal)
        page = report(subject_of(rows))
    print(write(page, out))
