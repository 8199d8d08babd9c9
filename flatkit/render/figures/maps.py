"""Figures of planes seen from above: contours or heat maps, side by side on one scale."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from flatkit.checks import check_choice
from flatkit.errors import ResultError
from flatkit.landscape.directions.kind import short_name
from flatkit.landscape.surface import Surface
from flatkit.render.axes import (
    axis_label,
    common_ranges,
    directions_of,
    explanation,
    in_units,
    quantity_label,
    tick_text,
)
from flatkit.render.figures.colour_scale import COLOURS, Scale, scale_of
from flatkit.render.figures.legend import legend_above
from flatkit.render.style import footnote, panels, points, styled
from flatkit.render.written import title

MapStyle: TypeAlias = Literal["contour", "heat"]

_STAR: Mapping[str, Any] = {"marker": "*", "color": "white", "markeredgecolor": "black"}
_OTHER: Mapping[str, Any] = {**_STAR, "marker": "o", "markersize": 6}
_PATH: Mapping[str, Any] = {"color": "white", "linewidth": 1.3, "marker": "o", "markersize": 2.6}
_EVEN = 2.5
"""Axes of lengths have one unit unless one is so many times as long as the other."""


def map_figure(
    surfaces: Sequence[Surface], *, quantity: str = "loss", style: MapStyle = "contour"
) -> Figure:
    """Draw a quantity on planes, on ONE scale of colours and ONE range of the axes.

    The first direction runs to the right and the second upwards: `values[j, i]` is at
    (x[i], y[j]). The star is the centre; other checkpoints and the path of a trajectory are
    drawn where they are, or are projected to. Hatched: infinite or no number. White: beyond what
    was measured of a plane that is smaller than the others.

    Args:
        surfaces: with axes x and y; those without the quantity are left out.
        quantity: e.g. `loss`, `test_accuracy`.
        style: filled contours with lines, or `heat`: a rectangle of colour for every point.

    Raises:
        ResultError: no plane has a finite value.

    >>> plane = Surface({"x": [0, 1, 2], "y": [0, 1]}, {"loss": [[1, 2, 3], [2, 3, 4]]})
    >>> map_figure([plane]).axes[0].get_xlabel()
    'step t₁'
    """
    check_choice("style", style, get_args(MapStyle))
    planes = [s for s in surfaces if len(s.axes) == 2 and quantity in s.quantities]
    values = [numpy.ma.masked_invalid(in_units(plane, quantity)) for plane in planes]
    if not any(array.count() for array in values):
        raise ResultError(f"no plane holds a finite {quantity}; measure a landscape with it")
    with styled():
        width = 2.8 if len(planes) > 1 else 3.6
        ranges = common_ranges(planes)
        aspect = _aspect(planes[0], ranges)
        height = width * aspect
        figure, axes = panels(
            len(planes),
            width=width,
            height=max(height, 1.8),
            per_row=3 if len(planes) < 10 else 4,
            margins=(0.9, 0.9),
        )
        scale = scale_of(
            [array.filled(numpy.nan) for array in values], linear=quantity.endswith("accuracy")
        )
        drawn = None
        for axis, plane, array in zip(axes, planes, values, strict=True):
            # A plane without a finite value has no colours; the bar takes those of any other.
            drawn = _draw(axis, plane, array, scale, style) or drawn
            _overlay(axis, plane)
            _finish(axis, plane, ranges, aspect)
        _colour_bar(figure, axes, drawn, scale, quantity)
        _legend(figure, planes, values)
        more = "; one scale of axes and colours" if len(planes) > 1 else ""
        footnote(figure, explanation(planes) + more)
    return figure


def heat_figure(surfaces: Sequence[Surface], *, quantity: str = "loss") -> Figure:
    """Draw planes as `map_figure` does, with a rectangle of colour for every point.

    Raises:
        ResultError: no plane has a finite value.
    """
    return map_figure(surfaces, quantity=quantity, style="heat")


def _draw(axis: Axes, plane: Surface, array: Any, scale: Scale, style: str) -> Any:
    axis.grid(False)
    x, y = plane.axes["x"], plane.axes["y"]
    ground = Rectangle((x[0], y[0]), x[-1] - x[0], y[-1] - y[0], linewidth=0, zorder=0)
    ground.set(hatch="////", facecolor="0.93", edgecolor="0.6")
    axis.add_patch(ground)
    if not array.count():
        return None
    if style == "heat":
        # Rasterised: thousands of rectangles would swell a vector file and show seams.
        return axis.pcolormesh(
            x, y, array, norm=scale.norm, cmap=COLOURS, shading="nearest", rasterized=True
        )
    fill = axis.contourf(
        x, y, array, norm=scale.norm, levels=scale.levels, extend=scale.extend, cmap=COLOURS
    )
    if scale.lines.size:
        axis.contour(x, y, array, levels=scale.lines, colors="white", linewidths=0.4, alpha=0.6)
    return fill


def _overlay(axis: Axes, plane: Surface) -> None:
    """Draw the path and the checkpoints."""
    edge = [withStroke(linewidth=2.6, foreground="black")]
    path = plane.header.get("path")
    if path:
        at = numpy.array(path["at"], dtype=float)  # [T, 2]
        axis.plot(at[:, 0], at[:, 1], path_effects=edge, zorder=3, **_PATH)
    epochs = (path or {}).get("epochs")
    for number, marker in enumerate(plane.header.get("markers", ())):
        x, y = marker["at"]
        # A path has two markers, its first point and its last: epochs[0] and epochs[-1].
        name = f"epoch {epochs[-number]}" if epochs else short_name(marker["name"])
        if x or y:
            axis.plot(x, y, zorder=4, **_OTHER)
        # A single one needs no name, which is that of the panel.
        if len(plane.header["markers"]) > 1:
            axis.annotate(
                name,
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=points(7.5),
                color="white",
                path_effects=[withStroke(linewidth=1.8, foreground="black")],
                zorder=5,
            )
    axis.plot(0, 0, zorder=4, markersize=11, **_STAR)


def _finish(axis: Axes, plane: Surface, ranges: Mapping[str, Any], aspect: float) -> None:
    axis.set(xlim=ranges["x"], ylim=ranges["y"])
    axis.set_box_aspect(aspect)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    preview = "" if plane.header.get("complete", True) else " (preview)"
    axis.set_title(title(plane.name + preview))
    axis.set_xlabel(axis_label(plane, 0))
    axis.set_ylabel(axis_label(plane, 1))


def _aspect(plane: Surface, ranges: Mapping[str, tuple[float, float]]) -> float:
    """Return height over width: that of the ranges, if both are lengths and neither is tiny."""
    width, height = (high - low for low, high in (ranges["x"], ranges["y"]))
    even = directions_of(plane).lengths and max(width, height) <= _EVEN * min(width, height)
    return height / width if even else 1.0


def _colour_bar(
    figure: Figure, axes: Sequence[Axes], drawn: Any, scale: Scale, quantity: str
) -> None:
    bar = figure.colorbar(
        drawn, ax=list(axes), label=quantity_label(quantity), pad=0.02, aspect=25,
        extend=scale.extend,
    )  # fmt: skip
    bar.set_ticks(scale.ticks.tolist(), labels=[tick_text(tick) for tick in scale.ticks])
    bar.ax.minorticks_off()


def _legend(figure: Figure, planes: Sequence[Surface], values: Sequence[Any]) -> None:
    trajectory = any(plane.header.get("path") for plane in planes)
    name = "the last checkpoint" if trajectory else "the checkpoint"
    several = any(len(plane.header.get("markers", ())) > 1 for plane in planes)
    handles: list[Any] = []
    if trajectory or not several:
        handles.append(Line2D([], [], linestyle="none", label=name, **_STAR, markersize=10))
    if trajectory:
        edge = withStroke(linewidth=2.6, foreground="black")
        handles.append(Line2D([], [], label="the training", path_effects=[edge], **_PATH))
    if any(array.count() < array.size for array in values):
        label = "infinite, or no number"
        handles.append(Patch(facecolor="0.93", hatch="////", edgecolor="0.6", label=label))
    legend_above(figure, handles)
