"""One legend above all panels, and the entries that several figures share."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatkit.render.curvature_scale import FIRST_ORDER, SYMBOLS, ZEROTH_ORDER
from flatkit.render.style import MUTED, Look


def legend_above(figure: Figure, handles: Sequence[Artist], *, columns: int = 4) -> None:
    """Put one legend above all panels, where it covers nothing.

    >>> from flatkit.render.style import panels
    >>> figure, axes = panels(1, width=2.0, height=2.0)
    >>> legend_above(figure, axes[0].plot([0, 1], [0, 1], label="gam"))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['gam']
    """
    if handles:
        figure.legend(
            handles=list(handles),
            loc="outside upper center",
            ncols=min(columns, len(handles)),
            handlelength=2.2,
            columnspacing=1.6,
        )


def run_handles(style: Mapping[str, Look], *, linewidth: float | None = None) -> list[Line2D]:
    """Return an entry for each run, in its colour.

    >>> from flatkit.render.style import looks
    >>> [handle.get_label() for handle in run_handles(looks(["sgd", "gam"]))]
    ['sgd', 'gam']
    """
    return [
        Line2D([], [], color=look.colour, linewidth=linewidth, label=name)
        for name, look in style.items()
    ]


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
