"""A bar for what takes a while: on a terminal it moves, elsewhere its last state is printed once."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console, *columns: str) -> Progress:
    """Return a bar that counts, with further `columns` of rich's text."""
    shown = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns)]
    return Progress(*shown, TimeRemainingColumn(), console=console)
