"""The figure of the loss on random planes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flatkit.errors import ResultError
from flatkit.render.notation import significant
from flatkit.render.style import footnote, legend_above, panels, styled, title
from flatkit.results import Comparison, Result

_COLOURS = "viridis"
_LEVELS = 21
_MOST = 1e4
_OUTLIER = 10.0
"""Colours end at 10⁴ times the smallest loss, and before outliers; an arrow on the bar says so."""


@dataclass(frozen=True)
class _Plane:
    """One run: loss [ny, nx] over x [nx] and y [ny], masked where it is not finite."""

    name: str
    x: numpy.ndarray
    y: numpy.ndarray
    loss: numpy.ma.MaskedArray
    result: Result


@dataclass(frozen=True)
class _Scale:
    """The one scale of colours of all panels."""

    norm: Normalize
    levels: numpy.ndarray
    extend: Any


def plane_figure(comparison: Comparison) -> Figure:
    """Draw the loss on the plane of each run as filled contours, on ONE scale of colours.

    The first direction runs to the right and the second upwards: `loss[j][i]` is at (x[i], y[j]).
    The star is the checkpoint. Hatched: the loss is infinite or no number there.

    Raises:
        ResultError: no run has a plane with a finite loss.

    >>> from flatkit.results import Entry, Report
    >>> value = {"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0], "loss": [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]}
    >>> report = Report([Result("loss_plane", value, 0.0)])
    >>> figure = plane_figure(Comparison([Entry("sgd", "sgd", report)]))
    >>> [axis.get_title() for axis in figure.axes][:1]
    ['sgd']
    """
    planes = _planes(comparison)
    if not _any_finite(planes):
        raise ResultError(
            "no run holds a plane with a finite loss; measure it with --measures loss_plane"
        )
    with styled():
        per_row = 3 if len(planes) < 10 else 4
        figure, axes = panels(
            len(planes), width=2.8, height=2.75, per_row=per_row, margins=(0.9, 0.6)
        )
        scale = _scale(planes)
        drawn = [_draw(axis, plane, scale) for axis, plane in zip(axes, planes, strict=True)]
        _colour_bar(figure, axes, next(contours for contours in drawn if contours), scale)
        _legend(figure, planes)
    return figure


def has_plane(comparison: Comparison) -> bool:
    """Return whether `plane_figure` has something to draw.

    >>> from flatkit.results import Entry, Report
    >>> has_plane(Comparison([Entry("sgd", "sgd", Report([]))]))
    False
    """
    return _any_finite(_planes(comparison))


def _planes(comparison: Comparison) -> list[_Plane]:
    return [
        _plane(entry.name, result)
        for entry in comparison.entries
        if (result := entry.report.find("loss_plane")) is not None
    ]


def _any_finite(planes: Sequence[_Plane]) -> bool:
    return any(plane.loss.count() for plane in planes)


def _plane(name: str, result: Result) -> _Plane:
    loss = numpy.array(result.value["loss"], dtype=float)  # [ny, nx], None becomes NaN
    return _Plane(
        name=name,
        x=numpy.array(result.value["x"], dtype=float),
        y=numpy.array(result.value["y"], dtype=float),
        loss=numpy.ma.masked_invalid(loss),
        result=result,
    )


def _scale(planes: Sequence[_Plane]) -> _Scale:
    """Return a logarithmic scale over all planes, a linear one if a loss is not positive."""
    values = numpy.concatenate([plane.loss.compressed() for plane in planes])
    low, high = float(values.min()), float(values.max())
    if low <= 0 or high / low < 1 + 1e-9:
        high = high if high > low else low + max(abs(low), 1.0) * 1e-6
        return _Scale(Normalize(low, high), numpy.linspace(low, high, _LEVELS), "neither")
    usual = float(numpy.quantile(values, 0.98))
    top = min(high, low * _MOST)
    if top > _OUTLIER * usual > _OUTLIER * low:
        top = usual
    levels = numpy.geomspace(low, top, _LEVELS)
    levels[0], levels[-1] = low, top  # geomspace may round past the ends
    return _Scale(LogNorm(low, top), levels, "max" if high > top else "neither")


def _draw(axis: Axes, plane: _Plane, scale: _Scale) -> Any:
    axis.grid(False)
    axis.patch.set(hatch="////", facecolor="0.93")
    contours = None
    if plane.loss.count():
        style = {"norm": scale.norm, "levels": scale.levels, "extend": scale.extend}
        contours = axis.contourf(plane.x, plane.y, plane.loss, cmap=_COLOURS, **style)
        axis.contour(
            plane.x, plane.y, plane.loss, levels=scale.levels[::2], colors="white",
            linewidths=0.4, alpha=0.6,
        )  # fmt: skip
    axis.plot(0, 0, marker="*", markersize=11, color="white", markeredgecolor="black", zorder=4)
    axis.set(xlim=(plane.x.min(), plane.x.max()), ylim=(plane.y.min(), plane.y.max()))
    axis.set_box_aspect(1)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    axis.set_title(title(plane.name))
    axis.set_xlabel(_label("t₁", plane.result, 0))
    axis.set_ylabel(_label("t₂", plane.result, 1))
    return contours


def _label(symbol: str, result: Result, number: int) -> str:
    """Return the label of an axis; lengths tell how far a step of 1 goes."""
    lengths = result.settings.get("direction_norms") or ()
    if len(lengths) <= number:
        return f"step {symbol}"
    index = "₁₂"[number]
    return f"step {symbol}  (‖d{index}‖ = {significant(lengths[number], 3)})"


def _colour_bar(figure: Figure, axes: Sequence[Axes], contours: Any, scale: _Scale) -> None:
    bar = figure.colorbar(contours, ax=list(axes), label="loss", pad=0.02, aspect=25)
    ticks = scale.levels[::4]
    bar.set_ticks(ticks.tolist(), labels=[significant(tick, 3) for tick in ticks])
    bar.ax.minorticks_off()


def _legend(figure: Figure, planes: Sequence[_Plane]) -> None:
    star = {"marker": "*", "markersize": 10, "color": "white", "markeredgecolor": "black"}
    handles: list[Any] = [Line2D([], [], linestyle="none", label="the checkpoint", **star)]
    if any(plane.loss.count() < plane.loss.size for plane in planes):
        meaning = "loss infinite, or no number"
        handles.append(Patch(facecolor="0.93", hatch="////", edgecolor="0.6", label=meaning))
    legend_above(figure, handles)
    normalised = any(plane.result.settings.get("normalization") == "filter" for plane in planes)
    kind = "filter-normalised " if normalised else ""
    footnote(figure, f"along random {kind}directions d₁, d₂ of each run; one scale of colours")
