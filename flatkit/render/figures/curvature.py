"""The figure that tells what came out: flatness and accuracy by group, with every run as a mark."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from textwrap import wrap
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from flatkit.comparison.functions import rows_of, trainings
from flatkit.comparison.intervals import deviation
from flatkit.comparison.statistics import statistics
from flatkit.errors import NothingToDrawError
from flatkit.measures.reading import Reading
from flatkit.render.axes import tick_text
from flatkit.render.figures.heights import spans_decades
from flatkit.render.figures.legend import legend_above
from flatkit.render.readings import compared
from flatkit.render.samples import over_runs
from flatkit.render.style import MUTED, Look, footnote, looks, panels, points, styled, tidy
from flatkit.render.written import title
from flatkit.results.comparison import Comparison

_NAME_WIDTH = 26
"""Characters of a name in a line; longer ones are broken."""
_ROW, _SINGLE_ROW, _LINE, _FRAME = 0.44, 0.3, 0.15, 0.75
"""Inches of a row of several runs, of one, of a further line of a name, and of title and ticks."""
_PER_CHARACTER = 0.075
_SPREAD = 0.16
"""Rows between the mean and the runs, of which no two hide each other."""

Rows = Mapping[str, Sequence[Reading]]


def curvature_figure(comparison: Comparison) -> Figure:
    """Draw λmax, trace, R1/ρ² at the largest common ρ and test accuracy, a row a group.

    A mark is a run, with the error of its estimate; a line with a bar is the mean of a group ±
    the standard deviation over its runs. Axes of flatness begin at zero, or are logarithmic where
    the values span decades. The row of a group that is flattest beyond all known errors is shaded.

    Raises:
        NothingToDrawError: no such quantity was measured in two runs, or in the only one.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> entries = [
    ...     Entry(name, name, Report([Result("trace", value, 0.1, "standard_error")]))
    ...     for name, value in {"sgd": 9.0, "gam": 4.0}.items()
    ... ]
    >>> [axis.get_title() for axis in curvature_figure(Comparison(entries)).axes]
    ['trace tr H']
    """
    runs = {entry.name: compared(entry.report) for entry in comparison.entries}
    keys = _keys(list(runs.values()))
    if not keys:
        raise NothingToDrawError(
            "no quantity was measured in two runs; measure top_eigenvalues, trace, "
            "first_order_flatness or accuracy"
        )
    rows = rows_of(comparison)
    style = {name: looks(comparison.groups)[entries[0].group] for name, entries in rows}
    known = statistics(comparison).quantities
    flattest = {key: known[key].flattest for key in keys if key in known}
    names = ["\n".join(wrap(name, _NAME_WIDTH)) or name for name, _ in rows]
    lines = sum(name.count("\n") for name in names)
    row = _ROW if any(len(entries) > 1 for _, entries in rows) else _SINGLE_ROW
    with styled():
        longest = max(len(line) for name in names for line in name.split("\n"))
        figure, axes = panels(
            len(keys),
            width=1.75,
            height=_FRAME + row * len(names) + _LINE * lines,
            per_row=4,
            margins=(0.15 + _PER_CHARACTER * longest, 0.55),
            sharey=True,
        )
        for axis, key in zip(axes, keys, strict=True):
            found = {
                name: [run[key] for e in entries if key in (run := runs[e.name])]
                for name, entries in rows
            }
            # As the table: runs of one seed are one training, and count once in the mean.
            means = {
                name: trainings(own, [runs[e.name][key].value for e in own]).values()
                for name, entries in rows
                if (own := [e for e in entries if key in runs[e.name]])
            }
            _draw(axis, found, means, style, flattest.get(key))
        axes[0].set_yticks(range(len(names)), names)
        # The first row on top, as in the table.
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        tidy(axes)
        for axis in axes:
            axis.tick_params(axis="y", length=0)
        legend_above(figure, _handles(row == _ROW, any(flattest.values())))
        bounds = any(r.error_kind == "lower_bound" for run in runs.values() for r in run.values())
        note = "bars of marks: errors of the estimates" + ("; ≥: lower bounds" if bounds else "")
        footnote(figure, note + over_runs(comparison, test=True))
    return figure


def _keys(runs: Sequence[Mapping[str, Reading]]) -> list[str]:
    """Return the keys to draw, flatness first; of the radii, the largest that most runs have."""
    every = {key: reading for run in runs for key, reading in run.items() if reading.drawn}
    counts = {key: sum(key in run for run in runs) for key in every}
    found: dict[str, Reading] = {}
    for key, reading in sorted(every.items(), key=lambda item: item[1].rho or 0.0):
        name = key.partition("[")[0]
        # What one of several runs has compares nothing.
        if counts[key] >= min(2, len(runs)) and (
            name not in found or counts[key] >= counts[found[name].key]
        ):
            found[name] = reading
    order = list(dict.fromkeys(key.partition("[")[0] for key in every))
    kept = [found[name] for name in order if name in found]
    return [r.key for r in sorted(kept, key=lambda r: r.role == "fit")]


def _draw(
    axis: Axes,
    rows: Rows,
    means: Mapping[str, Collection[float]],
    style: Mapping[str, Look],
    flattest: str | None,
) -> None:
    readings = [reading for found in rows.values() for reading in found]
    first, place = readings[0], 0
    for place, (group, found) in enumerate(rows.items()):
        if group == flattest:
            axis.axhspan(place - 0.46, place + 0.46, color=style[group].colour, alpha=0.16, lw=0)
        if found:
            _draw_group(axis, place, found, means[group], style[group])
        else:
            axis.text(
                0.5, place, "not measured", color=MUTED, fontsize=points(7.5), ha="center",
                va="center", transform=axis.get_yaxis_transform(),
            )  # fmt: skip
    symbol, separator, rest = first.title.partition(" (")
    bound = " ≥" if first.error_kind == "lower_bound" else ""
    axis.set_title(title(symbol + bound + separator + rest))
    axis.grid(False, axis="y")
    for line in range(place):
        axis.axhline(line + 0.5, color="0.9", linewidth=0.6, zorder=0)
    _scale(axis, readings)


def _draw_group(
    axis: Axes, place: int, readings: Sequence[Reading], means: Collection[float], look: Look
) -> None:
    values = [reading.value for reading in readings]
    several = len(values) > 1
    if several:
        axis.errorbar(
            [fmean(means)],
            [place - _SPREAD],
            # Divided by n − 1, as in the table: the runs are a sample.
            xerr=[deviation([*means] if len(means) > 1 else values)],
            fmt="|",
            markersize=11,
            markeredgewidth=2.2,
            elinewidth=1.4,
            capsize=3,
            color=look.colour,
        )
    errors = [reading.error or 0.0 for reading in readings]
    axis.errorbar(
        values,
        _spread_out(place + (_SPREAD if several else 0.0), len(values)),
        xerr=errors if any(errors) else None,
        fmt=look.marker,
        color=look.colour,
        markersize=5 if several else 6.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1.0,
        zorder=3,
    )


def _scale(axis: Axes, readings: Sequence[Reading]) -> None:
    """Let flatness begin at zero, or be logarithmic over decades; say which way is flat."""
    values, first = [reading.value for reading in readings], readings[0]
    if first.role == "flatness":
        right = first.better == "higher"
        axis.set_xlabel("flatter →" if right else "← flatter")
        if spans_decades(values):
            axis.set_xscale("log")
            # Within two and a half decades powers of ten alone would be two or three ticks.
            narrow = max(values) < 300 * min(values)
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if narrow else (1.0,)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
            axis.xaxis.set_minor_locator(NullLocator())
            return
        if min(values) >= 0:
            ends = [r.value + (r.error or 0.0) for r in readings]
            # An error without a bound reaches beyond any axis.
            axis.set_xlim(0.0, 1.12 * max(filter(math.isfinite, ends), default=0.0) or 1.0)
    else:
        axis.margins(x=0.12)
        axis.set_xlabel("better →" if first.better != "lower" else "← better")
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _spread_out(centre: float, count: int) -> list[float]:
    """Return places below each other, so that equal runs do not hide each other."""
    step = min(0.1, 0.3 / count)
    return [centre + step * (number - (count - 1) / 2) for number in range(count)]


def _handles(grouped: bool, shaded: bool) -> list[Artist]:
    dash: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 2.2}
    run = Line2D([], [], color=MUTED, marker="o", markersize=5, linestyle="none", label="a run")
    mean = Line2D([], [], color=MUTED, label="mean ± standard deviation", **dash)
    flat = Patch(facecolor=MUTED, alpha=0.25, label="flattest, beyond all known errors")
    return [*([run, mean] if grouped else []), *([flat] if shaded else [])]
