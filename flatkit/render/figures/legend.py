"""One legend above all panels, and the entries that several figures share."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatkit.render.curvature_scale import FIRST_ORDER, SYMBOLS, ZEROTH_ORDER
from flatkit.render.style import MUTED, Look, current_style, grow

# Of letters of 8.5 points.
_PER_CHARACTER, _PER_ENTRY = 0.072, 0.62
_ROW_HEIGHT, _ROWS = 0.17, 2
"""Inches of a row, and how many find room in the margins of a figure."""


def legend_above(figure: Figure, handles: Sequence[Artist], *, columns: int = 4) -> None:
    """Put one legend above all panels, where it covers nothing.

    >>> from flatkit.render.style import panels
    >>> figure, axes = panels(1, width=2.0, height=2.0)
    >>> legend_above(figure, axes[0].plot([0, 1], [0, 1], label="gam"))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['gam']
    """
    if not handles:
        return
    labels = [str(handle.get_label()) for handle in handles]
    scale, width = current_style().scale, figure.get_figwidth()
    # The most columns that fit: matplotlib would let a legend leave the figure.
    counts = range(len(labels), 0, -1)
    fitting = next((n for n in counts if _width(labels, n) * scale < width), 1)
    found = min(columns, fitting)
    rows = -(-len(labels) // found)
    found = -(-len(labels) // rows)  # no column that is nearly empty
    figure.legend(
        handles=list(handles),
        loc="outside upper center",
        ncols=found,
        handlelength=2.6,
        columnspacing=1.6,
    )
    grow(figure, (rows - _ROWS) * scale * _ROW_HEIGHT)


def _width(labels: Sequence[str], columns: int) -> float:
    """Return how many inches a legend takes, whose entries go down the columns."""
    rows = -(-len(labels) // columns)
    parts = [labels[at : at + rows] for at in range(0, len(labels), rows)]
    return sum(_PER_ENTRY + _PER_CHARACTER * max(map(len, part)) for part in parts)


def run_handles(style: Mapping[str, Look], **more: Any) -> list[Line2D]:
    """Return an entry for each run, in its colour.

    Args:
        style: of the runs.
        **more: `line=True` and `marker=True` for its kind of line and its mark; others are of
            matplotlib's lines.

    >>> from flatkit.render.style import looks
    >>> [handle.get_label() for handle in run_handles(looks(["sgd", "gam"]))]
    ['sgd', 'gam']
    """
    with_line, with_marker = more.pop("line", False), more.pop("marker", False)
    return [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.line if with_line else "-",
            label=name,
            **(MARKS | {"marker": look.marker} if with_marker else {}),
            **more,
        )
        for name, look in style.items()
    ]


MARKS: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
"""How the mark of a run is drawn on its line."""


def marks(look: Look, points: int, number: int = 0) -> dict[str, Any]:
    """Return the options that put the mark of a run on its line, so that grey tells it apart.

    Args:
        look: of the run.
        points: how many the line has.
        number: of the run; marks of several runs stand beside each other.

    >>> from flatkit.render.style import looks
    >>> marks(looks(["sgd"])["sgd"], 21, 1)["markevery"]
    (1, 4)
    """
    step = max(1, points // 5)
    return {**MARKS, "marker": look.marker, "markevery": (number % step, step)}


def flatness_handles(*, markersize: float) -> list[Line2D]:
    """Return the entries of R1/ρ² and 2 R0/ρ², whose carets point up because they are bounds.

    >>> [handle.get_label() for handle in flatness_handles(markersize=5)]
    ['R1/ρ²', '2 R0/ρ²']
    """
    first: dict[str, Any] = {"color": MUTED, "marker": "^", "markersize": markersize}
    zeroth: dict[str, Any] = {**first, "markerfacecolor": "white"}
    return [
        Line2D([], [], linestyle="-", label=SYMBOLS[FIRST_ORDER], **first),
        Line2D([], [], linestyle=":", label=SYMBOLS[ZEROTH_ORDER], **zeroth),
    ]
