"""Pictures: the same bytes for the same drawing, in light and dark, with their words."""

from xml.etree import ElementTree

import pytest

from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import COLOURS, NORMAL, legend_above, nats, panel, styled

HOSTILE = '<b>"&\' $x$ id="a" #0f4c8a 漢'


def parsed(svg: str | bytes) -> ElementTree.Element:
    """Return the root of an SVG of ours."""
    return ElementTree.fromstring(svg)  # noqa: S314 - just drawn


@styled
def drawn(name: str = "bars", alt: str = HOSTILE) -> Picture:
    """Return a picture with a hostile label."""
    figure, axes = panel()
    axes.bar([0, 1], [1, 2], color=NORMAL, label=HOSTILE)
    axes.set_xlabel(nats("score"))
    legend_above(axes)
    return picture(figure, name, alt=alt)


def test_the_same_drawing_has_the_same_bytes() -> None:
    """Neither the time nor chance enters a picture."""
    assert drawn() == drawn()


def test_an_element_takes_nothing_from_elsewhere_and_says_what_it_shows() -> None:
    """The element is an image with alternative text, names no address, and has text as text."""
    element = parsed(drawn().svg)
    assert element.attrib["role"] == "img"
    assert element.attrib["aria-label"] == HOSTILE
    assert "http" not in drawn().svg
    assert HOSTILE in [text.text for text in element.iter("text")]
    assert "score (nats)" in [text.text for text in element.iter("text")]


def test_colours_are_variables_but_not_in_what_data_says() -> None:
    """Each of our colours is a variable where it is a colour; a label that looks like one stays as it is."""
    element = parsed(drawn().svg)
    styles = " ".join(part.attrib.get("style", "") for part in element.iter())
    assert "var(--normal)" in styles
    assert not any(colour.light in styles for colour in COLOURS.values())


def test_two_pictures_on_a_page_share_no_id() -> None:
    """Ids, and what refers to them, carry the picture's name."""
    ids = []
    for name in ("one", "two"):
        root = parsed(drawn(name).svg)
        ids.append({part.attrib["id"] for part in root.iter() if "id" in part.attrib})
        used = [part.attrib["clip-path"] for part in root.iter() if "clip-path" in part.attrib]
        assert used
        assert {clip.removeprefix("url(#").removesuffix(")") for clip in used} <= ids[-1]
    assert not ids[0] & ids[1]


def test_a_file_stands_alone_in_light_and_dark() -> None:
    """The SVG file is XML with both sets of colours, and the PNG is one."""
    files = drawn().files
    root = parsed(files["bars.svg"])
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    assert COLOURS["normal"].light in style
    assert COLOURS["normal"].dark in style.partition("prefers-color-scheme: dark")[2]
    assert files["bars.png"].startswith(b"\x89PNG")


def luminance(colour: str) -> float:
    """Return a colour's relative luminance. Source: WCAG 2.2, "relative luminance"."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours. Source: WCAG 2.2, "contrast ratio"."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read_and_told_apart_in_grey(scheme: str) -> None:
    """Text has a contrast of 4.5 to the paper, marks 2.5, and normal and anomalous 1.4 to each other (WCAG)."""
    colours = {name: getattr(colour, scheme) for name, colour in COLOURS.items()}
    for text in ("ink", "muted"):
        assert contrast(colours[text], colours["paper"]) >= 4.5
    for mark in ("normal", "anomalous", "third", "fourth", "fifth"):
        assert contrast(colours[mark], colours["paper"]) >= 2.5, mark
    assert contrast(colours["normal"], colours["anomalous"]) >= 1.4
    assert len({colour.light for colour in COLOURS.values()}) == len(COLOURS)
