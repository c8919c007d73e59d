"""A page: sections of words, figures and tables as one HTML file that needs nothing else, with its pictures."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from vaeserve.atomic import new_file, write_folder
from vaeserve.errors import OperatorError
from vaeserve_training.report.picture import Picture
from vaeserve_training.report.style import FONT, WIDTH, variables

FILE = "index.html"
# By which a page of ours is known, a report or a sweep's, and which pictures it came with.
GENERATOR = "vaeserve"
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?(e[+-]\d+)?%?")
_PICTURE = re.compile(r'data-picture="([a-z0-9-]+)"')

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("vaeserve_training.report", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, and a caption that says what to look for."""

    title: str
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; numbers line up at the right, also those that are text already."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Note:
    """What a reader should know, or what isn't here and how to get it."""

    text: str


Part = Figure | Table | Facts | Note


@dataclass(frozen=True)
class Section:
    """A part of a page; `anchor` is its address within it."""

    anchor: str
    title: str
    lead: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    made: a last line that says how it was made, the same whenever it is made of the same.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    facts: Facts = field(default_factory=lambda: Facts({}))
    made: str = ""

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures in order."""
        for section in self.sections:
            for part in section.parts:
                if isinstance(part, Figure):
                    yield from part.pictures

    def html(self) -> str:
        """Return the page as HTML. It takes nothing from elsewhere, and what comes from data is escaped."""
        return _TEMPLATES.get_template("page.html").render(
            page=self,
            generator=GENERATOR,
            light=variables(dark=False),
            dark=variables(dark=True),
            font=FONT,
            width=WIDTH,
            kind=lambda part: type(part).__name__,
            cell=_cell,
            number=_is_number,
        )


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: str | float) -> bool:
    return not isinstance(value, str) or _NUMBER.fullmatch(value) is not None


def write(page: Page, folder: Path) -> Path:
    """Write the page and its pictures to `folder`, new or with another page of ours; return the page's path.

    In an old one the pictures that the old page had are replaced or removed, and the page is written last, whole: it
    needs none of them. Raises OperatorError as `refuse_other` does, and where it can't be written.
    """
    refuse_other(folder)
    files = {name: content for picture in page.pictures() for name, content in picture.files.items()}
    try:
        if not folder.exists():
            write_folder(folder, {**files, FILE: page.html().encode()})
        else:
            _replace(folder, files, page.html().encode())
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}; expected a folder that can be written") from None
    return folder / FILE


def _replace(folder: Path, files: dict[str, bytes], html: bytes) -> None:
    before = _PICTURE.findall((folder / FILE).read_text())
    for name, content in (files | {FILE: html}).items():
        with new_file(folder / name) as path:
            path.write_bytes(content)
    for name in {f"{stem}{suffix}" for stem in before for suffix in (".svg", ".png")} - set(files):
        (folder / name).unlink(missing_ok=True)


def refuse_other(folder: Path) -> None:
    """Raise OperatorError if there is something at `folder` that isn't a page of ours."""
    try:
        if folder.exists() and f'content="{GENERATOR}"' not in (folder / FILE).read_text()[:1000]:
            raise FileNotFoundError
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        raise OperatorError(f"{folder}: exists, and isn't a page that vaeserve wrote; choose another --out") from None
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}; choose another --out") from None
