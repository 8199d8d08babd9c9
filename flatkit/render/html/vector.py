"""Figures as SVG inside a page: names of their own, text that stays text, greys that turn dark."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from flatkit.render.figures.save import FORMATS
from flatkit.render.style import styled

_NAMES = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
"""Where SVG gives a name to an element, and where it uses one."""
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_COLOUR_MAPS = ("QuadContourSet", "<image", "QuadMesh", "Poly3D", "Line3D")
"""Drawings of colours in which black and white mean something: they keep their white paper."""


@dataclass(frozen=True)
class Vector:
    """An SVG element.

    Attributes:
        text: `<svg ...>...</svg>`.
        width: in CSS pixels, as it was drawn.
        greys: two digits each, of the colours `var(--grey-26)` that it asks the page for.
    """

    text: str
    width: int
    greys: frozenset[str]


def vector(figure: Figure, prefix: str, label: str) -> Vector:
    """Return a figure as an element of a page.

    Args:
        figure: what to draw.
        prefix: of all names in it; those of two figures must differ.
        label: for readers who do not see it.

    >>> drawn = vector(Figure(figsize=(1, 1)), "one-", "nothing & more")
    >>> drawn.text[:4], 'id="one-figure_1"' in drawn.text, "nothing &amp; more" in drawn.text
    ('<svg', True, True)
    """
    from html import escape

    stream = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", **FORMATS["svg"])
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # The head of the file says what a page does not ask; its style would hold for the whole page.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    text = _NAMES.sub(lambda found: found[1] + prefix + found[2], text)
    # 72 points are 96 pixels of a page.
    width = round(float(re.findall(r'<svg[^>]*? width="([\d.]+)pt"', text)[0]) * 4 / 3)
    opening = f'<svg role="img" aria-label="{escape(label)}" class="drawing" '
    text = re.sub(r"<svg ", opening, text, count=1)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    if any(sign in text for sign in _COLOUR_MAPS):
        return Vector(text.replace('class="drawing"', 'class="drawing paper"', 1), width, _NONE)
    return Vector(
        _GREY.sub(r"var(--grey-\1)", text), width, frozenset(_GREY.findall(text)) | {"00"}
    )


_NONE: frozenset[str] = frozenset()


def shades(greys: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return for each grey its name, its light shade, and the one on a dark page.

    Black on white and white on black swap; what is near the paper stays near the paper.

    >>> shades(["00", "ff", "26"])
    [('00', '#000000', '#ececec'), ('26', '#262626', '#cccccd'), ('ff', '#ffffff', '#16181d')]
    """
    return [(grey, f"#{grey * 3}", _dark(int(grey, 16))) for grey in sorted(set(greys))]


def _dark(level: int) -> str:
    ink, paper = (0xEC, 0xEC, 0xEC), (0x16, 0x18, 0x1D)  # of `page.css`
    share = level / 255
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(ink, paper, strict=True)
    )
