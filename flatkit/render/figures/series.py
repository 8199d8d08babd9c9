"""The figure of curvature and flatness over the training: a series of checkpoints by epoch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flatkit.render.curvature_scale import (
    FIRST_ORDER,
    SYMBOLS,
    ZEROTH_ORDER,
    over_rho_squared,
    top_eigenvalue,
)
from flatkit.render.figures.heights import scale_heights
from flatkit.render.figures.legend import flatness_handles, legend_above
from flatkit.render.notation import radius
from flatkit.render.samples import over_runs
from flatkit.render.series import epochs, required_series, shared_radii, value_of
from flatkit.render.style import footnote, panels, styled, tidy
from flatkit.render.written import title
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report
from flatkit.results.status import Status

_NOTE = (
    "carets: lower bounds, the best points that searches in the ball found; where ‖∇L‖/ρ is not "
    "small beside λmax, the gradient that is left lifts R1/ρ² and 2 R0/ρ² above it"
)


def series_figure(comparison: Comparison) -> Figure:
    """Draw λmax, R1/ρ² and 2 R0/ρ² against the epoch, over loss and gradient norm; a column a run.

    At most three radii that every checkpoint has are drawn: the smallest, the largest and one
    between.

    Raises:
        NothingToDrawError: no folder has checkpoints of two epochs.
    """
    runs = required_series(comparison)
    radii = shared_radii(runs)
    # One colour more than radii: the last of the palette is too pale for a line.
    palette = seaborn.color_palette("viridis", max(1, len(radii)) + 1)
    colours = dict(zip(radii, palette, strict=False))
    with styled():
        figure, axes = panels(
            2 * len(runs),
            width=3.4,
            height=2.3,
            per_row=len(runs),
            margins=(0.6, 1.0),
            fixed=True,
            sharex="col",
            sharey="row",
        )
        upper, lower = axes[: len(runs)], axes[len(runs) :]
        for above, below, (run, reports) in zip(upper, lower, runs.items(), strict=True):
            above.set_title(title(PurePath(run).name or run))
            _draw_curvature(above, reports, colours)
            _draw_fit(below, reports)
        _scale_fit(lower)
        upper[0].set_ylabel("curvature: R1/ρ², 2 R0/ρ², λmax")
        lower[0].set_ylabel("loss and gradient norm")
        scale_heights(upper[0], [height for axis in upper for height in _heights(axis)])
        tidy(axes)
        legend_above(figure, _handles(colours), columns=2 if len(runs) == 1 else 4)
        footnote(figure, _NOTE + over_runs(comparison))
    return figure


def _draw_curvature(axis: Axes, reports: Sequence[Report], colours: Mapping[float, Any]) -> None:
    top = [value for report in reports if (value := top_eigenvalue(report)) is not None]
    # A line with gaps would join epochs between which nothing was measured.
    if len(top) == len(reports):
        axis.plot(epochs(reports), top, "--", color="0.15", linewidth=1.1, zorder=4)
    for rho, colour in colours.items():
        for measure in SYMBOLS:
            _draw_bounds(axis, reports, measure, rho, colour)


def _draw_bounds(
    axis: Axes, reports: Sequence[Report], measure: str, rho: float, colour: Any
) -> None:
    """Draw R1/ρ² or 2 R0/ρ² at one radius, without the checkpoints where rounding hides it."""
    found = [report.find(measure, rho=rho) for report in reports]
    points = [
        (epoch, over_rho_squared(result))
        for epoch, result in zip(epochs(reports), found, strict=True)
        if result is not None and result.status != Status.ROUNDING
    ]
    if points:
        axis.plot(
            *zip(*points, strict=True),
            "-" if measure == FIRST_ORDER else ":",
            color=colour,
            marker="^",
            markersize=5,
            markerfacecolor="white" if measure == ZEROTH_ORDER else colour,
            linewidth=1.2,
        )


def _draw_fit(axis: Axes, reports: Sequence[Report]) -> None:
    for measure, line in (("loss", "-"), ("gradient_norm", "--")):
        values = [value_of(report, measure) for report in reports]
        axis.plot(
            epochs(reports), values, line, color="0.25", marker="o", markersize=3, linewidth=1.1
        )
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _scale_fit(axes: Sequence[Axes]) -> None:
    """Let loss and gradient norm be logarithmic, unless one is not positive and would be lost."""
    heights = [height for axis in axes for height in _heights(axis) if not math.isnan(height)]
    if heights and min(heights) > 0:
        axes[0].set_yscale("log")


def _heights(axis: Axes) -> list[float]:
    lines: list[Any] = list(axis.lines)
    return [float(height) for line in lines for height in line.get_ydata()]


def _handles(colours: Mapping[float, Any]) -> list[Line2D]:
    fit: dict[str, Any] = {"color": "0.25", "marker": "o", "markersize": 3}
    return [
        *flatness_handles(markersize=5),
        Line2D([], [], color="0.15", linestyle="--", label="λmax"),
        *(
            Line2D([], [], color=colour, linewidth=3, label=f"ρ = {radius(rho)}")
            for rho, colour in colours.items()
        ),
        Line2D([], [], label="train loss", **fit),
        Line2D([], [], linestyle="--", label="‖∇L‖", **fit),
    ]
