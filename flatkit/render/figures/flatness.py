"""The figure that holds R1/ρ² and 2 R0/ρ² against the top eigenvalue."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flatkit.errors import NothingToDrawError
from flatkit.render.curvature_scale import FIRST_ORDER, SYMBOLS, ZEROTH_ORDER, over_rho_squared
from flatkit.render.figures.heights import scale_heights
from flatkit.render.figures.legend import flatness_handles, legend_above
from flatkit.render.notation import radius, significant
from flatkit.render.samples import over_runs
from flatkit.render.style import MUTED, Look, footnote, looks, panels, styled, tidy
from flatkit.render.written import title
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.results.status import Status

_NOTE = (
    "carets: lower bounds, the best points that searches in the ball found; the gradient that is "
    "left lifts R1/ρ² by up to ‖∇L‖/ρ, 2 R0/ρ² by up to twice that; upper estimate: no bound"
)

_HIDDEN = "; none where rounding of the dtype hides it"

_UPPER: dict[str, Any] = {
    "color": MUTED,
    "linewidth": 0.9,
    "linestyle": "-.",
    "marker": "_",  # without it a single radius would not be seen
    "markersize": 8,
}


def flatness_figure(comparison: Comparison) -> Figure:
    """Draw R1/ρ² and 2 R0/ρ² against ρ beside λmax ± residual, a panel for each group.

    At a minimum both tend to λmax as ρ → 0; a gradient that is left lifts them above it for small
    ρ. Both are lower bounds, found by a search, and drawn as carets that point up; the grey line is
    an upper estimate of R1, no bound: the largest slope of the gradient that was seen, plus ‖∇L‖/ρ.

    Raises:
        NothingToDrawError: no run has R0 or R1.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> flatness = Result(FIRST_ORDER, 0.03, None, "lower_bound", settings={"rho": 0.1})
    >>> report = Report([Result("top_eigenvalues", [3.1], [1e-4], "residual"), flatness])
    >>> axis = flatness_figure(Comparison([Entry("gam", "gam", report)])).axes[0]
    >>> axis.get_xscale(), axis.get_xlabel()
    ('log', 'radius ρ')
    """
    groups = {
        group: found
        for group in comparison.groups
        if (found := [e for e in comparison.in_group(group) if _has_flatness(e.report)])
    }
    if not groups:
        raise NothingToDrawError(
            "no run holds R0 or R1; measure them with `measures` "
            "zeroth_order_sharpness,first_order_flatness"
        )
    style = looks(comparison.groups)
    with styled():
        figure, axes = panels(
            len(groups), width=2.6, height=2.6, per_row=4, margins=(0.9, 1.0), sharey=True
        )
        for axis, (group, entries) in zip(axes, groups.items(), strict=True):
            for entry in entries:
                _draw_run(axis, entry.report, style[group])
            _annotate(axis, group, entries)
        _scale_axes(axes, [entry.report for entries in groups.values() for entry in entries])
        tidy(axes)
        legend_above(figure, _handles(axes), columns=4 if len(axes) > 2 else 2)
        hidden = _HIDDEN if any(_is_hidden(entry.report) for entry in comparison.entries) else ""
        footnote(figure, _NOTE + hidden + over_runs(comparison))
    return figure


def _has_flatness(report: Report) -> bool:
    return any(report.find(measure) is not None for measure in SYMBOLS)


def _is_hidden(report: Report) -> bool:
    """Whether rounding hides R0 or R1 at some radius."""
    found = (result for measure in SYMBOLS for result in report.all(measure))
    return any(result.status == Status.ROUNDING for result in found)


def _draw_run(axis: Axes, report: Report, look: Look) -> None:
    _draw_top_eigenvalue(axis, report)
    for measure, line, face, order in (
        (FIRST_ORDER, "-", look.colour, 3),
        (ZEROTH_ORDER, ":", "white", 2),
    ):
        axis.plot(
            *_over_rho_squared(report, measure),
            color=look.colour,
            linestyle=line,
            linewidth=1.4,
            marker="^",
            markersize=6,
            markerfacecolor=face,
            zorder=order,
        )
    _draw_upper_estimate(axis, report)


def _draw_top_eigenvalue(axis: Axes, report: Report) -> None:
    """Draw λmax ± residual, which is the limit for ρ → 0 in round balls only."""
    top = report.find("top_eigenvalues")
    if top is None or not top.value or _shape(report) != "l2":
        return
    value, residual = top.value[0], (top.error or [0.0])[0] or 0.0
    axis.axhspan(value - residual, value + residual, color="0.25", alpha=0.25, linewidth=0)
    axis.axhline(value, color="0.25", linewidth=0.9, linestyle="--", zorder=1)


def _draw_upper_estimate(axis: Axes, report: Report) -> None:
    found = sorted(
        (result.settings["rho"], result.settings["upper_estimate"] / result.settings["rho"] ** 2)
        for result in report.all(FIRST_ORDER)
        if result.settings.get("upper_estimate") is not None
    )
    if found:
        axis.plot(*zip(*found, strict=True), **_UPPER)


def _shape(report: Report) -> str:
    """Return the geometry of the balls."""
    found = report.find(FIRST_ORDER) or report.find(ZEROTH_ORDER)
    return "l2" if found is None else found.settings.get("geometry", "l2")


def _over_rho_squared(report: Report, measure: str) -> tuple[list[float], list[float]]:
    """Return the radii, ascending, and R1/ρ² or 2 R0/ρ² there; none where rounding hides it."""
    found = {
        result.settings["rho"]: over_rho_squared(result)
        for result in report.all(measure)
        if result.status != Status.ROUNDING
    }
    radii = sorted(found)
    return radii, [found[rho] for rho in radii]


def _annotate(axis: Axes, group: str, entries: Sequence[Entry]) -> None:
    norms = [
        found.value
        for entry in entries
        if (found := entry.report.find("gradient_norm")) is not None
    ]
    lines = [title(group)]
    if norms:
        low, high = (significant(norm, 2) for norm in (min(norms), max(norms)))
        lines.append(f"‖∇L‖ = {low}" if low == high else f"‖∇L‖ = {low} … {high}")
    axis.set_title("\n".join(lines))
    shapes = sorted({_shape(entry.report) for entry in entries} - {"l2"})
    axis.set_xlabel(f"radius ρ, {', '.join(shapes)}" if shapes else "radius ρ")


def _scale_axes(axes: Sequence[Axes], reports: Sequence[Report]) -> None:
    """Put ticks at the radii that were measured; let y start at zero unless it spans decades."""
    radii = sorted({r.settings["rho"] for report in reports for r in report if "rho" in r.settings})
    heights = [
        height
        for report in reports
        for measure in SYMBOLS
        for height in _over_rho_squared(report, measure)[1]
    ]
    for axis in axes:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(_spaced(radii)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda rho, _: radius(rho)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.12)
        scale_heights(axis, heights)
        # Shared axes would leave the numbers to the first column, far from the last panel.
        axis.tick_params(labelleft=True)
    axes[0].set_ylabel("curvature: R1/ρ², 2 R0/ρ², λmax")


def _spaced(radii: Sequence[float]) -> list[float]:
    """Return the radii that leave room for their labels."""
    kept: list[float] = []
    # A panel is 2.6 inches wide: seven labels at most fit, and none of them a factor below 2.5.
    smallest_factor = max(2.5, (radii[-1] / radii[0]) ** (1 / 6))
    for rho in radii:
        if not kept or rho >= smallest_factor * kept[-1]:
            kept.append(rho)
    return kept


def _handles(axes: Sequence[Axes]) -> list[Line2D]:
    """Return the entries of what is drawn."""
    handles = [
        *flatness_handles(markersize=6),
        Line2D([], [], color="0.25", linestyle="--", linewidth=0.9, label="λmax ± residual"),
        Line2D([], [], label="R1/ρ², upper estimate", **_UPPER),
    ]
    lines = [line for axis in axes for line in axis.lines if numpy.size(line.get_xdata())]
    drawn = {str(line.get_linestyle()) for line in lines}
    return [handle for handle in handles if str(handle.get_linestyle()) in drawn]
