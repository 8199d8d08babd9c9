"""Figures of planes in three dimensions, side by side on one scale."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib import colormaps
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D
from scipy.interpolate import RegularGridInterpolator

from flatkit.errors import ResultError
from flatkit.landscape.surface import Surface
from flatkit.render.axes import (
    axis_label,
    common_ranges,
    explanation,
    in_units,
    quantity_label,
    tick_text,
)
from flatkit.render.figures.colour_scale import COLOURS, Scale, scale_of
from flatkit.render.style import footnote, panels, styled
from flatkit.render.written import title

_FINE = 121
"""Facets along an axis, interpolated linearly, so that colours follow the levels."""


def surface_3d_figure(surfaces: Sequence[Surface], *, quantity: str = "loss") -> Figure:
    """Draw a quantity as height over planes, on ONE scale of heights, colours and axes.

    Logarithmic where the values allow it. Higher than the scale: cut off there. Infinite or no
    number: a hole.

    Args:
        surfaces: with axes x and y; those without the quantity are left out.
        quantity: e.g. `loss`, `test_accuracy`.

    Raises:
        ResultError: no plane has a finite value.

    >>> plane = Surface({"x": [0, 1, 2], "y": [0, 1]}, {"loss": [[1, 2, 3], [2, 3, 4]]})
    >>> surface_3d_figure([plane]).axes[0].get_zlabel()
    'loss'
    """
    planes = [s for s in surfaces if len(s.axes) == 2 and quantity in s.quantities]
    values = [in_units(plane, quantity) for plane in planes]
    if not any(numpy.isfinite(array).any() for array in values):
        raise ResultError(f"no plane holds a finite {quantity}; measure a landscape with it")
    with styled():
        figure, axes = panels(
            len(planes),
            width=4.2 if len(planes) == 1 else 3.5,
            height=3.5,
            per_row=3,
            margins=(0.3, 0.5),
            subplot_kw={"projection": "3d"},
        )
        ranges = common_ranges(planes)
        scale = scale_of(values, linear=quantity.endswith("accuracy"))
        for axis, plane, array in zip(axes, planes, values, strict=True):
            assert isinstance(axis, Axes3D)
            _draw(axis, plane, array, scale)
            _finish(axis, plane, scale, quantity)
            axis.set(**{f"{name}lim": ends for name, ends in ranges.items()})
        cut = f"; cut off at {tick_text(float(f'{scale.top:.2g}'))}"
        footnote(figure, explanation(planes) + (cut if scale.extend == "max" else ""))
    return figure


def _draw(axis: Axes3D, plane: Surface, array: Any, scale: Scale) -> None:
    x, y = plane.axes["x"], plane.axes["y"]
    fine = [numpy.linspace(s[0], s[-1], max(_FINE, len(s))) for s in (x, y)]
    smooth = RegularGridInterpolator((y, x), scale.heights(array))
    right, up = numpy.meshgrid(*fine)
    heights = smooth(numpy.stack([up, right], axis=-1))
    low, top = scale.range
    # Colours by the height as drawn: equal distances on the scale have equal steps of colour.
    share = (heights - low) / (top - low)
    colours = colormaps[COLOURS](numpy.nan_to_num(share))
    facets, finite = _facets(right, up, heights)
    shown = colours[:-1, :-1].reshape(-1, 4)[finite]
    # What `plot_surface` draws, without its loop over facets, most of the time of a figure.
    axis.add_collection3d(
        Poly3DCollection(
            facets,
            facecolors=shown,
            edgecolors=shown,
            linewidth=0,
            antialiased=False,
            shade=True,
            rasterized=True,
        )
    )
    axis.auto_scale_xyz(right, up, heights)
    path = plane.header.get("path")
    if path:
        _line(axis, numpy.array(path["at"], dtype=float), smooth, x, y)
    # A height of 0, as of a loss of 1 on a logarithmic scale, is a place, too.
    centre = float(smooth([[0.0, 0.0]])[0]) if x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1] else None
    for marker in plane.header.get("markers", ()) or (
        [] if centre is None else [{"at": [0.0, 0.0]}]
    ):
        _line(axis, numpy.array([marker["at"]], dtype=float), smooth, x, y)


def _facets(right: Any, up: Any, heights: Any) -> tuple[Any, Any]:
    """Return the facets [N, 4, 3] of a grid [ny, nx] with three finite corners or four; which.

    The last corner of a triangle comes twice.
    """
    grid = numpy.stack([right, up, heights], axis=-1)
    corners = (grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1])
    facets = numpy.stack(corners, axis=2).reshape(-1, 4, 3)
    finite = numpy.isfinite(facets[..., 2])
    shown = finite.sum(1) >= 3
    facets, finite = facets[shown], finite[shown]
    order = numpy.argsort(~finite, axis=1, kind="stable")  # the finite ones first
    order[~finite.all(1), 3] = order[~finite.all(1), 2]
    return numpy.take_along_axis(facets, order[..., None], axis=1), shown


def _line(axis: Axes3D, at: Any, smooth: Any, x: Any, y: Any) -> None:
    """Draw points of the plane just above it, those inside the range."""
    inside = (at[:, 0] >= x[0]) & (at[:, 0] <= x[-1]) & (at[:, 1] >= y[0]) & (at[:, 1] <= y[-1])
    at = at[inside]
    if len(at) > 1:  # along the surface, not through it
        ends = numpy.arange(len(at))
        shares = numpy.linspace(0, len(at) - 1, 20 * (len(at) - 1) + 1)
        way = numpy.stack([numpy.interp(shares, ends, at[:, d]) for d in (0, 1)], axis=1)
        # The interpolator takes (y, x), as the values lie.
        axis.plot(way[:, 0], way[:, 1], smooth(way[:, ::-1]), color="black", zorder=10)
    axis.plot(
        at[:, 0], at[:, 1], smooth(at[:, ::-1]), color="black", linestyle="none", marker="o",
        markersize=3, markerfacecolor="white", zorder=11,
    )  # fmt: skip


def _finish(axis: Axes3D, plane: Surface, scale: Scale, quantity: str) -> None:
    axis.view_init(elev=32, azim=-58)
    # Room for the labels, which the layout overlooks.
    axis.set_box_aspect((4, 4, 3), zoom=0.8)  # type: ignore[arg-type]
    axis.set_zlim(scale.range)
    texts = [tick_text(tick) for tick in scale.ticks]
    axis.zaxis.set_ticks(scale.heights(scale.ticks).tolist(), labels=texts)
    axis.locator_params(axis="x", nbins=5)
    axis.locator_params(axis="y", nbins=5, prune="lower")  # where the axes meet stands that of x
    # What a step means, in brackets, has a line of its own: a slanting label has little room.
    x, y = (axis_label(plane, number).replace("  (", "\n(") for number in (0, 1))
    axis.set_xlabel(x, labelpad=4 + 8 * x.count("\n"))
    axis.set_ylabel(y, labelpad=4 + 8 * y.count("\n"))
    axis.set_zlabel(quantity_label(quantity), labelpad=6)
    axis.set_title(title(plane.name))
    sides: list[Any] = [axis.xaxis, axis.yaxis, axis.zaxis]
    for each in sides:
        each.pane.set_facecolor("white")
        each.pane.set_edgecolor("0.8")
