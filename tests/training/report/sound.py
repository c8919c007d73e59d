"""What every report must be, whatever it is of."""

import re
from html.parser import HTMLParser

LARGEST = 3_000_000
_ADDRESSES = {"href", "src", "srcset", "action", "data", "poster", "xlink:href"}


class Parsed(HTMLParser):
    """A page's pictures, addresses, ids and words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str | None] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag shows and where it points."""
        named = dict(attrs)
        if tag in ("svg", "img"):
            self.alts.append(named.get("aria-label") or named.get("alt"))
        self.scripts += tag == "script" or any(name.startswith("on") for name in named)
        self.addresses += [value or "" for name, value in attrs if name in _ADDRESSES]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        """Note what is read."""
        self.words += data.split()


def check(html: str) -> Parsed:
    """Assert that a page stands alone, is small, says what each picture shows and has no number that is none."""
    parsed = Parsed(html)
    assert len(html.encode()) < LARGEST
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses), parsed.addresses
    assert not re.search(r"url\((?!#)|@import", html)
    assert parsed.scripts == 0
    assert parsed.alts
    assert all(alt and len(alt) > 20 for alt in parsed.alts), parsed.alts
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not {"nan", "+nan"} & {word for alt in parsed.alts for word in (alt or "").split()}
    assert not {"nan", "NaN", "inf", "-inf", "nan,", "None"} & set(parsed.words)
    return parsed
