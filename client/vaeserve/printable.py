"""Text of others, as a terminal may have it."""


def printable(text: str) -> str:
    """Return `text` on one line, with what a terminal would act on, or not show, as the escape that `repr` writes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
