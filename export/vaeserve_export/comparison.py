"""A comparison of two bundles as a person reads it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaeserve_export.compare import Changed, Comparison, Side


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison, in 80 columns but for long paths."""
    a, b = comparison.a, comparison.b
    labels = comparison.labelled_anomalous
    aside = "" if labels is None else f", {labels} labelled anomalous"
    for name, path in (("A", a.bundle), ("B", b.bundle), ("on", comparison.data)):
        console.print(f"[bold]{name:<2}[/] {escape(path)}", soft_wrap=True)
    console.print(f"   {comparison.rows} rows{aside}, {comparison.scored_by_both} scored by both\n")
    console.print(_sides(a, b), "")
    if comparison.scored_by_both:
        console.print(_shifts(comparison), "")
    facts = {
        "rank correlation": _figure(comparison.spearman),
        "newly anomalous": _rows(comparison.newly_anomalous),
        "no longer anomalous": _rows(comparison.no_longer_anomalous),
        "processor time": f"B takes {comparison.time_ratio:.2f} times A's",
    }
    for name, fact in facts.items():
        console.print(f"{name:<23}  {fact}")


def _sides(a: Side, b: Side) -> Table:
    table = _table("", "A", "B")
    table.add_row("unscorable rows", str(a.unscorable), str(b.unscorable))
    table.add_row("false-positive rate", f"{a.false_positive_rate:g}", f"{b.false_positive_rate:g}")
    table.add_row("anomalous rows", _share(a.anomalous, a.anomalous_share), _share(b.anomalous, b.anomalous_share))
    table.add_row("AUROC", _figure(a.auroc), _figure(b.auroc))
    table.add_row("average precision", _figure(a.average_precision), _figure(b.average_precision))
    table.add_row("rows a second, one core", f"{a.rows_per_second:.0f}", f"{b.rows_per_second:.0f}")
    return table


def _shifts(comparison: Comparison) -> Table:
    """Return the quantiles of the shifts, a level a row: numbers of any size fit."""
    table = _table("from A to B, quantiles", "score, nats", "p-value")
    for level, shift in comparison.score_shift.items():
        table.add_row(f"{float(level):.0%}", f"{shift:+.4g}", f"{comparison.p_value_shift[level]:+.4f}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", min_width=14 if index else 23)
    return table


def _share(count: int, share: float) -> str:
    return f"{count} ({share:.2%})"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _rows(changed: Changed) -> str:
    examples = f": rows {', '.join(map(str, changed.examples))}" if changed.examples else ""
    more = ", ..." if changed.count > len(changed.examples) else ""
    return f"{_share(changed.count, changed.share)}{examples}{more}"
