"""Curvature and flatness over the training: a series of checkpoints against the epoch."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flatkit.errors import ResultError
from flatkit.render.figures.heights import scale_heights
from flatkit.render.figures.legend import flatness_handles, legend_above
from flatkit.render.notation import at_least, radius, significant
from flatkit.render.style import footnote, panels, styled, tidy, title
from flatkit.results import Comparison, Report

_FIRST, _ZEROTH = "first_order_flatness", "zeroth_order_sharpness"
_MOST_RADII = 3
_NOTE = (
    "carets: lower bounds, the best points that searches in the ball found; where ‖∇L‖/ρ is not "
    "small beside λmax, the gradient that is left lifts R1/ρ² and 2 R0/ρ² above it"
)


def series_of(comparison: Comparison) -> Mapping[str, Sequence[Report]]:
    """Return by folder the reports of checkpoints of two or more epochs, in the order of these.

    >>> from flatkit.results import Entry, Result
    >>> flat = Result(_FIRST, 0.1, error_kind="lower_bound", settings={"rho": 0.1})
    >>> reports = [Report([flat], checkpoint={"path": f"gam/{n}.pt", "epoch": n}) for n in (2, 1)]
    >>> entries = [Entry(str(number), "gam", r) for number, r in enumerate(reports)]
    >>> {run: [r.checkpoint["epoch"] for r in found]
    ...  for run, found in series_of(Comparison(entries)).items()}
    {'gam': [1, 2]}
    """
    runs: dict[str, dict[int, Report]] = {}
    for entry in comparison.entries:
        epoch, path = (entry.report.checkpoint.get(key) for key in ("epoch", "path"))
        if isinstance(epoch, int) and isinstance(path, str) and entry.report.find(_FIRST):
            runs.setdefault(str(PurePath(path).parent), {})[epoch] = entry.report
    return {
        run: [found[epoch] for epoch in sorted(found)]
        for run, found in runs.items()
        if len(found) > 1
    }


def has_series(comparison: Comparison) -> bool:
    """Return whether `series_figure` has something to draw.

    >>> has_series(Comparison([]))
    False
    """
    return bool(series_of(comparison))


def series_table(comparison: Comparison) -> RenderableType:
    """Return tables of every run: what is left and how many claims hold; R1/ρ² and 2 R0/ρ².

    Raises:
        ResultError: no folder has checkpoints of two epochs.
    """
    runs = _series(comparison)
    radii = _radii([report for reports in runs.values() for report in reports])
    parts: list[RenderableType] = []
    for run, reports in runs.items():
        name = PurePath(run).name or run
        parts.append(escape(f"{name}, epochs {' … '.join(_ends(reports))}"))
        parts.append(_table_of_states(reports))
        if radii:
            parts.append(_table_of_radii(reports, radii))
    return Group(*parts)


def _ends(reports: Sequence[Report]) -> tuple[str, str]:
    return str(reports[0].checkpoint["epoch"]), str(reports[-1].checkpoint["epoch"])


def _table_of_states(reports: Sequence[Report]) -> Table:
    table = _frame("epoch", "train loss", "‖∇L‖", "λmax", "claims that hold")
    for report in reports:
        claims = [claim["verdict"] for claim in _value(report, "verdict") or []]
        table.add_row(
            str(report.checkpoint["epoch"]),
            *(_number(_value(report, name)) for name in ("loss", "gradient_norm")),
            _number((_value(report, "top_eigenvalues") or [None])[0]),
            f"{claims.count('holds')} of {len(claims)}" if claims else "",
        )
    return table


def _table_of_radii(reports: Sequence[Report], radii: Sequence[float]) -> Table:
    """Return R1/ρ² and 2 R0/ρ² side by side at each radius."""
    pairs = [(rho, measure) for rho in radii for measure in (_FIRST, _ZEROTH)]
    names = {_FIRST: "R1/ρ²", _ZEROTH: "2 R0/ρ²"}
    table = _frame("epoch", *(f"{names[measure]}\nρ={radius(rho)}" for rho, measure in pairs))
    for report in reports:
        cells = (_cell(report, measure, rho) for rho, measure in pairs)
        table.add_row(str(report.checkpoint["epoch"]), *cells)
    return table


def _frame(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    return table


def series_figure(comparison: Comparison) -> Figure:
    """Draw λmax, R1/ρ² and 2 R0/ρ² against the epoch, over loss and gradient norm; a column a run.

    At most three radii that every checkpoint has are drawn: the smallest, the largest and one
    between.

    Raises:
        ResultError: no folder has checkpoints of two epochs.
    """
    runs = _series(comparison)
    radii = _radii([report for reports in runs.values() for report in reports])
    colours = seaborn.color_palette("viridis", max(1, len(radii)) + 1)[: len(radii)]
    with styled():
        figure, axes = panels(
            2 * len(runs),
            width=3.4,
            height=2.3,
            per_row=len(runs),
            margins=(0.6, 1.0),
            sharex="col",
            sharey="row",
        )
        for column, (run, reports) in enumerate(runs.items()):
            upper, lower = axes[column], axes[len(runs) + column]
            upper.set_title(title(PurePath(run).name or run))
            _draw_curvature(upper, reports, dict(zip(radii, colours, strict=True)))
            _draw_fit(lower, reports)
        axes[0].set_ylabel("curvature: R1/ρ², 2 R0/ρ², λmax")
        axes[len(runs)].set_ylabel("loss and gradient norm")
        _scale(axes[: len(runs)])
        tidy(axes)
        _legend(figure, dict(zip(radii, colours, strict=True)), len(runs))
        footnote(figure, _NOTE)
    return figure


def _series(comparison: Comparison) -> Mapping[str, Sequence[Report]]:
    runs = series_of(comparison)
    if not runs:
        raise ResultError(
            "a series needs checkpoints of two epochs at least in one folder; train with "
            "--save-every and verify the epoch-*.pt files"
        )
    return runs


def _radii(reports: Sequence[Report]) -> list[float]:
    """Return at most three of the radii that all reports have."""
    shared = set.intersection(
        *({result.settings["rho"] for result in report.all(_FIRST)} for report in reports)
    )
    found = sorted(shared)
    if len(found) <= _MOST_RADII:
        return found
    return [found[0], found[len(found) // 2], found[-1]]


def _draw_curvature(axis: Axes, reports: Sequence[Report], colours: Mapping[float, Any]) -> None:
    epochs = [report.checkpoint["epoch"] for report in reports]
    top = [report.find("top_eigenvalues") for report in reports]
    if all(result is not None and result.value for result in top):
        values = [result.value[0] for result in top if result is not None]
        axis.plot(epochs, values, "--", color="0.15", linewidth=1.1, zorder=4)
    for rho, colour in colours.items():
        for measure, factor, line, face in ((_FIRST, 1.0, "-", colour), (_ZEROTH, 2.0, ":", "w")):
            found = [report.find(measure, rho=rho) for report in reports]
            points = [
                (epoch, factor * result.value / rho**2)
                for epoch, result in zip(epochs, found, strict=True)
                if result is not None and result.status != "rounding"
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    line,
                    color=colour,
                    marker="^",
                    markersize=5,
                    markerfacecolor=face,
                    linewidth=1.2,
                )


def _draw_fit(axis: Axes, reports: Sequence[Report]) -> None:
    epochs = [report.checkpoint["epoch"] for report in reports]
    for measure, line in (("loss", "-"), ("gradient_norm", "--")):
        values = [_value(report, measure) for report in reports]
        axis.plot(epochs, values, line, color="0.25", marker="o", markersize=3, linewidth=1.1)
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _scale(axes: Sequence[Axes]) -> None:
    """Let curvature start at zero unless it spans decades."""
    heights = [
        float(y)
        for axis in axes
        for line in axis.lines
        for y in line.get_ydata()  # type: ignore[union-attr]
    ]
    scale_heights(axes[0], heights)


def _legend(figure: Figure, colours: Mapping[float, Any], runs: int) -> None:
    handles = [
        *flatness_handles(markersize=5),
        Line2D([], [], color="0.15", linestyle="--", label="λmax"),
        *(
            Line2D([], [], color=c, linewidth=3, label=f"ρ = {radius(rho)}")
            for rho, c in colours.items()
        ),
        Line2D([], [], color="0.25", marker="o", markersize=3, label="train loss"),
        Line2D([], [], color="0.25", marker="o", markersize=3, linestyle="--", label="‖∇L‖"),
    ]
    legend_above(figure, handles, columns=2 if runs == 1 else 4)


def _value(report: Report, measure: str) -> Any:
    found = report.find(measure)
    return None if found is None else found.value


def _number(value: Any) -> str:
    return "" if value is None else significant(float(value))


def _cell(report: Report, measure: str, rho: float) -> str:
    found = report.find(measure, rho=rho)
    if found is None:
        return ""
    if found.status == "rounding":
        return "rounding"
    return at_least((1 if measure == _FIRST else 2) * found.value / rho**2)
