"""The table of the numbers of pictures: widths of basins, asymmetry, roughness, barriers."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.landscape.numbers import barriers, surface_numbers
from flatkit.landscape.surface import Surface
from flatkit.render.notation import significant
from flatkit.render.tables.folded import Folded

_LOSSES = {"loss": "", "test_loss": " (test)"}


def numbers_table(surfaces: Sequence[Surface], *, level: float = 0.1) -> RenderableType:
    """Return the numbers of surfaces for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> line = Surface({"t": [-1.0, 0.0, 1.0]}, {"loss": [1.0, 0.0, 1.0]}, {"name": "gam"})
    >>> Console(width=90).print(numbers_table([line], level=0.5))
    <BLANKLINE>
     surface  axis  loss at 0  width  asymmetry  roughness
     ─────...
     gam         t          0   1.00          0          0
    ...
    """
    table = _table("surface", "axis", "loss at 0", "width", "asymmetry", "roughness")
    between, rounded = _table("from", "to", "barrier"), False
    for surface in surfaces:
        for quantity, suffix in _LOSSES.items():
            if quantity not in surface.quantities:
                continue
            off = f"{quantity}_rounding"
            centre = _off(surface.at_centre(off)) if off in surface.quantities else ""
            rounded = rounded or bool(centre)
            loss = f"{_text(surface.at_centre(quantity))}{centre}"
            for row in surface_numbers(surface, level=level, quantity=quantity):
                width, asymmetry, roughness = map(
                    _off, (row.width_rounding, row.asymmetry_rounding, row.roughness_rounding)
                )
                table.add_row(
                    escape(surface.name + suffix),
                    row.axis,
                    loss if surface.holds_centre else "beyond the range",
                    "beyond the range" if row.width is None else _text(row.width) + width,
                    "" if row.asymmetry is None else _signed(row.asymmetry) + asymmetry,
                    _text(row.roughness) + roughness,
                )
            for barrier in barriers(surface, quantity=quantity):
                names = (barrier.first + suffix, barrier.second + suffix)
                height = _text(barrier.height) + _off(barrier.rounding)
                between.add_row(*map(escape, names), height)
    note = (
        f"width: how far the weights move between the sides where the loss has risen by {level:g} "
        "above the centre. asymmetry: of the two sides, from -1 to 1. roughness: how much further "
        "the curve goes up and down than one valley would, 0 for one valley."
    )
    parts: list[RenderableType] = [Folded(table, leading=2)]
    if between.row_count:
        note += " barrier: the largest rise of the loss above the straight line between the two."
        parts.append(Folded(between, leading=2))
    if rounded:
        note += " ±: what computing in 16 bits may have put off."
    return Group(*parts, Text(note, style="dim"))


def _text(value: float) -> str:
    if math.isnan(value):
        return "no number"
    return significant(value, 3) if value and math.isfinite(value) else ("∞" if value else "0")


def _off(rounding: float) -> str:
    return f" ± {significant(rounding, 2) if math.isfinite(rounding) else '∞'}" if rounding else ""


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
