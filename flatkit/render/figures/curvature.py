"""The figure of curvature, flatness and accuracy by group, with every run as a dot."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatkit.errors import NothingToDrawError
from flatkit.measures.reading import Reading
from flatkit.render.readings import compared
from flatkit.render.samples import over_runs
from flatkit.render.style import Look, footnote, looks, panels, styled, tidy
from flatkit.results.comparison import Comparison

_LONG_NAME = 5  # characters; five longer names side by side overlap in a panel of 2.1 inches


def curvature_figure(comparison: Comparison) -> Figure:
    """Draw λmax, trace, R1/ρ² at the largest common ρ and test accuracy, a panel each.

    A dot is a run, with the error of its estimate; a bar is the mean of a group, with the standard
    deviation over its runs. Curvature starts at zero, so that heights compare; accuracy does not.

    Raises:
        NothingToDrawError: no quantity was measured in every run.

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
            "no quantity was measured in every run; measure top_eigenvalues, trace, "
            "first_order_flatness or accuracy"
        )
    style = looks(comparison.groups)
    columns = {
        group: [runs[entry.name] for entry in comparison.in_group(group)]
        for group in comparison.groups
    }
    with styled():
        width, longest = max(2.1, 0.35 * len(columns)), max(map(len, columns))
        room = 0.045 * longest if _slanted(list(columns)) else 0.0  # inches for the names
        figure, axes = panels(len(keys), width=width + room, height=2.5 + room, margins=(0.2, 0.5))
        for axis, key in zip(axes, keys, strict=True):
            _draw(axis, {g: [run[key] for run in found] for g, found in columns.items()}, style)
        tidy(axes)
        footnote(figure, _explanation(columns) + over_runs(comparison, test=True))
    return figure


def _keys(runs: Sequence[Mapping[str, Reading]]) -> list[str]:
    """Return the keys to draw; of the radii, the largest that all runs have."""
    first = runs[0] if runs else {}
    common = [r for r in first.values() if r.drawn and all(r.key in run for run in runs)]
    found = {r.key.partition("[")[0]: r for r in common}  # radii ascend: the last one stays
    return [r.key for r in sorted(found.values(), key=lambda r: r.role == "fit")]


def _draw(axis: Axes, columns: Mapping[str, Sequence[Reading]], style: Mapping[str, Look]) -> None:
    for position, (group, readings) in enumerate(columns.items()):
        _draw_group(axis, position, readings, style[group])
    first = next(iter(columns.values()))[0]
    lower_bound = "\nlower bounds" if first.error_kind == "lower_bound" else ""
    axis.set_title(first.title + lower_bound)
    names = list(columns)
    slanted = _slanted(names)
    axis.set_xticks(
        range(len(names)),
        names,
        rotation=40 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(False, axis="x")
    readings = [reading for found in columns.values() for reading in found]
    if first.role == "flatness" and min(r.value for r in readings) >= 0:
        axis.set_ylim(0.0, 1.15 * max(r.value + (r.error or 0.0) for r in readings) or 1.0)


def _slanted(names: Sequence[str]) -> bool:
    return len(names) > 4 or max(map(len, names)) > _LONG_NAME


def _draw_group(axis: Axes, position: int, readings: Sequence[Reading], look: Look) -> None:
    several = len(readings) > 1
    values = [reading.value for reading in readings]
    if several:
        _draw_mean(axis, position, values, look)
    errors = [reading.error or 0.0 for reading in readings]
    spots = _spread_out(position + (0.16 if several else 0.0), len(values))
    axis.errorbar(
        spots,
        values,
        yerr=errors if any(errors) else None,
        fmt=look.marker,
        color=look.colour,
        markersize=5 if several else 7,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1.0,
        zorder=3,
    )


def _draw_mean(axis: Axes, position: int, values: Sequence[float], look: Look) -> None:
    mean = sum(values) / len(values)
    # Divided by n − 1, as in the table beside it: the runs are a sample of all seeds.
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    axis.errorbar(
        [position - 0.16],
        [mean],
        yerr=[deviation],
        fmt="_",
        markersize=15,
        markeredgewidth=2.2,
        elinewidth=1.4,
        capsize=4,
        color=look.colour,
    )


def _spread_out(centre: float, count: int) -> list[float]:
    """Return places beside each other, so that equal runs do not hide each other."""
    step = min(0.12, 0.3 / count)
    return [centre + step * (number - (count - 1) / 2) for number in range(count)]


def _explanation(columns: Mapping[str, Sequence[object]]) -> str:
    if all(len(runs) == 1 for runs in columns.values()):
        return "bars: errors of the estimates"
    return "dots: runs, with errors of the estimates; dash: mean ± standard deviation over runs"
