"""A picture: one drawing, to be seen on a page or in a file, in light or in dark, and to be told in words."""

import io
import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from xml.etree import ElementTree

from matplotlib.figure import Figure

from vaeserve_training.report.style import COLOURS, FONT, UNITS_PER_INCH, styled, variables

PNG_DPI = 2 * UNITS_PER_INCH
_XMLNS = 'xmlns="http://www.w3.org/2000/svg"'


@dataclass(frozen=True)
class Picture:
    """A drawing.

    name: of its files, without their suffix. alt: what it shows, for who can't see it. svg: an element for a page that
    has the colours' variables. figure: what it is drawn from.
    """

    name: str
    alt: str
    svg: str
    figure: Figure = field(compare=False, repr=False)

    @cached_property
    @styled
    def png(self) -> bytes:
        """The same as pixels, in light colours."""
        return _saved(self.figure, "png", dpi=PNG_DPI)

    @property
    def svg_file(self) -> str:
        """The SVG as a file of its own, which is dark where its viewer asks for that."""
        dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(dark=True)} }} }}"
        style = f"<style>:root {{ {variables(dark=False)} font-family: {FONT} }} {dark}</style>"
        head, _, body = self.svg.partition(">")
        return f"{head.replace('<svg', f'<svg {_XMLNS}', 1)}>{style}{body}\n"

    @property
    def files(self) -> dict[str, bytes]:
        """The picture's files by name."""
        return {f"{self.name}.svg": self.svg_file.encode(), f"{self.name}.png": self.png}


@styled
def picture(figure: Figure, name: str, *, alt: str) -> Picture:
    """Return a figure, made by a `styled` function, as a picture."""
    svg = _saved(figure, "svg", metadata={"Date": None}).decode()
    figure.set_layout_engine("none")  # it stays as it is arranged
    return Picture(name, alt, _element(svg, name, alt), figure)


def _saved(figure: Figure, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure.savefig(file, format=suffix, **options)
    return file.getvalue()


def _element(file: str, name: str, alt: str) -> str:
    """Return matplotlib's SVG file as an element for a page: its ids its own, its colours variables."""
    root = ElementTree.fromstring(file)  # noqa: S314 - just written by matplotlib
    for unwanted in ("metadata", "defs/{*}style"):  # that style would be the whole page's
        for parent in root.findall(f".//{{*}}{unwanted}/.."):
            parent.remove(parent.find(f"{{*}}{unwanted.rpartition('}')[2]}"))  # type: ignore[arg-type]
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _own(_local(key), value, name) for key, value in element.items()}
    _, _, width, height = root.attrib["viewBox"].split()
    shape = {"viewBox": root.attrib["viewBox"], "width": width, "height": height}
    _keep_ids(root)
    root.attrib = {"role": "img", "aria-label": alt, **shape, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")).strip()


def _keep_ids(root: ElementTree.Element) -> None:
    """Remove the ids that nothing refers to, for matplotlib gives two equal images one."""
    values = [value for element in root.iter() for key, value in element.items() if key in ("href", "clip-path")]
    kept = {value.partition("#")[2].removesuffix(")") for value in values}
    for element in root.iter():
        if element.attrib.get("id") not in kept:
            element.attrib.pop("id", None)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _own(attribute: str, value: str, name: str) -> str:
    """Return an attribute's value as this picture's own, for a page has several."""
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if attribute == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if attribute == "style":
        for role, colour in COLOURS.items():
            value = value.replace(colour.light, f"var(--{role})")
        return re.sub(r"font-family: [^;]*;\s*", "", value)
    return re.sub(r"\s*\n\s*", " ", value).strip() if attribute == "d" else value
