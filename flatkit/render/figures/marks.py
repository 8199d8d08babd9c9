"""Marks at the upper edge of a panel, where a value is not finite, and their legend."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from flatkit.render.style import MUTED

_MEANINGS = {"^": "too large to draw", "x": "no number"}


def mark_above(axis: Axes, positions: Sequence[float], *, marker: str, colour: Any) -> None:
    """Mark at the upper edge where there is no finite value to draw.

    >>> from flatkit.render.style import panels
    >>> _, (axis,) = panels(1, width=2.0, height=2.0)
    >>> mark_above(axis, [0.5, 0.7], marker="^", colour="black")
    >>> axis.lines[0].get_xdata().tolist()
    [0.5, 0.7]
    """
    if not len(positions):
        return
    (marks,) = axis.plot(
        positions,
        [0.985] * len(positions),
        linestyle="none",
        marker=marker,
        color=colour,
        markersize=4,
        transform=blended_transform_factory(axis.transData, axis.transAxes),
        clip_on=False,
    )
    # They reach half a marker beyond the panel, and the layout would shrink it by that.
    marks.set_in_layout(False)


def mark_handles(figure: Figure) -> list[Line2D]:
    """Return the entries of the marks of `mark_above` that the figure has.

    >>> from flatkit.render.style import panels
    >>> figure, (axis,) = panels(1, width=2.0, height=2.0)
    >>> mark_above(axis, [0.5], marker="x", colour="black")
    >>> [handle.get_label() for handle in mark_handles(figure)]
    ['no number']
    """
    drawn = {str(line.get_marker()) for axis in figure.axes for line in axis.lines}
    return [
        Line2D([], [], color=MUTED, marker=marker, linestyle="none", label=meaning)
        for marker, meaning in _MEANINGS.items()
        if marker in drawn
    ]
