"""The pictures of a page: every figure that the results allow, and planes that turn."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flatkit.errors import FlatkitError
from flatkit.landscape.surface import Surface
from flatkit.render.axes import axis_label, explanation, quantity_label, tick_text
from flatkit.render.figures.colour_scale import scale_of
from flatkit.render.figures.planes import planes_of
from flatkit.render.figures.save import drawn
from flatkit.render.html.vector import Vector, vector
from flatkit.render.plots import names, of_results
from flatkit.results.comparison import Comparison

_TITLES = {
    "flatness": "Flatness over the radius",
    "slice": "The loss along random lines",
    "plane": "The loss on random planes",
    "curvature": "Curvature at a glance",
    "series": "Over the checkpoints",
    "track": "Over the training",
    "density": "The spectrum",
    "layers": "Layer by layer",
}


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        name: of it, as a file would be called.
        title: for readers.
        drawn: as SVG.
    """

    name: str
    title: str
    drawn: Vector


def pictures(comparison: Comparison, faults: list[str]) -> Iterator[Picture]:
    """Yield every figure that the results allow, the one that tells most first.

    Args:
        comparison: the runs.
        faults: what cannot be drawn, and why, is added here.

    >>> list(pictures(Comparison([]), []))
    []
    """
    found, order = of_results(comparison), names(comparison)
    for name in sorted(found, key=lambda one: order.index(one) if one in order else len(order)):
        reference = found[name]
        try:
            figure = drawn(comparison, name, reference)
        except FlatkitError as error:
            faults.append(str(error))
            continue
        # None where the results hold nothing that it shows.
        if figure is not None:
            yield Picture(name, title_of(name), vector(figure, f"{name}-", title_of(name)))


def title_of(name: str) -> str:
    """Return the title of a figure.

    >>> title_of("flatness"), title_of("weight_norm")
    ('Flatness over the radius', 'Weight norm')
    """
    words = name.replace("_", " ").replace("-", " ")
    return _TITLES.get(name, words[:1].upper() + words[1:])


def turning(comparison: Comparison) -> dict[str, Any] | None:
    """Return the planes for `plane.js`, on one scale; None where there are none.

    >>> turning(Comparison([])) is None
    True
    """
    planes = planes_of(comparison)
    values = [plane.quantities["loss"] for plane in planes]
    if not any(math.isfinite(value) for array in values for value in array.flat):
        return None
    scale = scale_of(values)
    low, high = scale.range
    return {
        "planes": [_plane(plane, scale.heights(plane.quantities["loss"])) for plane in planes],
        "low": low,
        "high": high,
        "ticks": [
            {"at": float(at), "text": tick_text(float(tick))}
            for tick, at in zip(scale.ticks, scale.heights(scale.ticks), strict=True)
        ],
        "label": quantity_label("loss"),
        "note": explanation(planes) + ("; one scale for all" if len(planes) > 1 else ""),
    }


def _plane(plane: Surface, heights: Any) -> dict[str, Any]:
    return {
        "name": plane.name,
        "x": _short(plane.axes["x"]),
        "y": _short(plane.axes["y"]),
        "z": [_short(row) for row in heights],
        "loss": [_short(row) for row in plane.quantities["loss"]],
        "xlabel": axis_label(plane, 0),
        "ylabel": axis_label(plane, 1),
    }


def _short(values: Sequence[float]) -> list[float | None]:
    """Return numbers with the digits that can be seen; None where there is none."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
