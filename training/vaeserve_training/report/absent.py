"""What isn't on a page for want of something, and how to get it."""

from vaeserve_training.report.page import Note
from vaeserve_training.report.subject import Subject


def absent(subject: Subject, what: str) -> tuple[Note, ...]:
    """Return the note on what a subject lacks, if it says so."""
    said = subject.absent.get(what, "None of the rows can be scored." if what == "rows" else "")
    return (Note(said),) if said else ()
