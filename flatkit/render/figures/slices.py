"""The figure of the loss along random directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatkit.errors import NothingToDrawError
from flatkit.render.figures.heights import rises_steeply
from flatkit.render.figures.legend import legend_above, marks, run_handles
from flatkit.render.figures.marks import mark_above, mark_handles
from flatkit.render.samples import coarse, over_runs
from flatkit.render.style import (
    MUTED,
    Look,
    footnote,
    looks,
    panels,
    styled,
    tidy,
)
from flatkit.results.comparison import Comparison
from flatkit.results.result import Result

_LABELS = {"loss": "loss", "gradient_norm": "gradient norm ‖∇L‖", "accuracy": "accuracy (%)"}
_STEP = "a step of 1 is each filter's own norm"
_MOST_WITH_DRAWS = 4
"""With more runs in one panel, the single draws would hide the means."""
_LARGEST = 1e250
"""Beyond it, sums of draws and margins of axes overflow."""


@dataclass(frozen=True)
class _Curves:
    """One quantity of one run: the draws [D, n], NaN where None, and the error of their mean."""

    name: str
    steps: numpy.ndarray
    draws: numpy.ndarray
    error: numpy.ndarray
    look: Look

    @property
    def mean(self) -> numpy.ndarray:
        """The mean over the draws [n], NaN where one of them is not finite."""
        draws = numpy.where(numpy.isfinite(self.draws), self.draws, numpy.nan)
        return draws.mean(axis=0)


def slice_figure(comparison: Comparison, *, log_scale: bool | None = None) -> Figure:
    """Draw loss, gradient norm and accuracy along filter-normalised directions, a panel each.

    Thick lines are means over the directions, bands ± one standard error of the mean, thin lines
    the directions themselves. Where a value is infinite or no number, the mean has a gap and
    the upper edge a mark.

    Args:
        comparison: the runs; those without a slice do not appear.
        log_scale: of loss and gradient norm; by default, where they span a wide range.

    Raises:
        NothingToDrawError: no run has a slice.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> value = {"coordinate": [-1.0, 0.0, 1.0], "loss": [[2.0, 1.0, 3.0]]}
    >>> report = Report([Result("loss_slice", value, {"loss": [0.0, 0.0, 0.0]}, "standard_error")])
    >>> figure = slice_figure(Comparison([Entry("sgd", "sgd", report)]))
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['loss']
    """
    found = _slices(comparison)
    if not found:
        raise NothingToDrawError("no run holds a slice; measure it with `measures` loss_slice")
    style = looks(comparison.groups)
    quantities = [name for name in _LABELS if any(name in result.value for *_, result in found)]
    with styled():
        figure, axes = panels(len(quantities), width=3.4, height=2.7)
        for axis, quantity in zip(axes, quantities, strict=True):
            curves = [
                _curves(name, result, quantity, style[group])
                for group, name, result in found
                if quantity in result.value
            ]
            _draw(axis, curves, quantity, log_scale)
        tidy(axes)
        _legend(figure, [(group, name) for group, name, _ in found], style)
        note = _explanation([result for *_, result in found])
        note += coarse(result.status for *_, result in found)
        footnote(figure, note + over_runs(comparison))
    return figure


def _slices(comparison: Comparison) -> list[tuple[str, str, Result]]:
    """Return group, name and slice of the runs that have one."""
    return [
        (entry.group, entry.name, result)
        for entry in comparison.entries
        if (result := entry.report.find("loss_slice")) is not None
    ]


def _curves(name: str, result: Result, quantity: str, look: Look) -> _Curves:
    scale = 100.0 if quantity == "accuracy" else 1.0
    draws = numpy.array(result.value[quantity], dtype=float)  # [D, n], None becomes NaN
    draws[numpy.abs(draws) > _LARGEST] = numpy.inf
    given = result.error.get(quantity) if isinstance(result.error, Mapping) else None
    steps = numpy.array(result.value["coordinate"], dtype=float)
    error = numpy.array(given if given is not None else [None] * len(steps), dtype=float)
    # Written so that NaN goes the same way.
    error[~(numpy.abs(error) <= _LARGEST)] = numpy.nan
    return _Curves(name, steps, scale * draws, scale * error, look)


def _draw(axis: Axes, curves: Sequence[_Curves], quantity: str, log_scale: bool | None) -> None:
    for number, run in enumerate(curves):
        _draw_run(axis, run, number, with_draws=len(curves) <= _MOST_WITH_DRAWS)
    axis.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axis.set_ylabel(_LABELS[quantity])
    axis.set_xlabel("step t")
    axis.margins(x=0.02)
    if quantity != "accuracy":
        _scale(axis, curves, log_scale)


def _draw_run(axis: Axes, run: _Curves, number: int, *, with_draws: bool) -> None:
    look, mean = run.look, run.mean
    if with_draws and len(run.draws) > 1:
        finite = numpy.where(numpy.isfinite(run.draws), run.draws, numpy.nan)
        axis.plot(run.steps, finite.T, color=look.colour, linewidth=0.6, alpha=0.35)
    axis.fill_between(
        run.steps, mean - run.error, mean + run.error, color=look.colour, alpha=0.22, linewidth=0
    )
    own = marks(look, len(mean), number)
    axis.plot(run.steps, mean, color=look.colour, linestyle=look.line, zorder=3, **own)
    beyond = numpy.isinf(run.draws).any(axis=0)
    missing = numpy.isnan(run.draws).any(axis=0) & ~beyond
    for marker, where in (("^", beyond), ("x", missing)):
        mark_above(axis, run.steps[where].tolist(), marker=marker, colour=look.colour)


def _scale(axis: Axes, curves: Sequence[_Curves], log_scale: bool | None) -> None:
    """Choose a logarithmic axis if asked, or if the values span a wide range."""
    values = numpy.concatenate([run.draws[numpy.isfinite(run.draws)] for run in curves])
    positive = values[values > 0]
    if not positive.size:
        return
    if log_scale is None:
        log_scale = rises_steeply(values)
    if log_scale and values.min() > 0:
        axis.set_yscale("log")
    elif log_scale:
        axis.set_yscale("symlog", linthresh=float(positive.min()))  # a log axis would lose these


def _legend(figure: Figure, runs: Sequence[tuple[str, str]], style: Mapping[str, Look]) -> None:
    names = [name for _, name in runs]
    groups = list(dict.fromkeys(group for group, _ in runs))
    # A group of one run is called by the name of the run.
    labels = dict(runs) if len(groups) == len(names) else {group: group for group in groups}
    shown = {labels[group]: style[group] for group in groups}
    handles = run_handles(shown, line=True, marker=True)
    legend_above(figure, [*handles, *mark_handles(figure)])


def _explanation(results: Sequence[Result]) -> str:
    counts = sorted({len(result.value["loss"]) for result in results})
    if counts == [1]:
        return f"one random filter-normalised direction; {_STEP}"
    number = " or ".join(map(str, counts))
    thin = "; thin: single directions" if len(results) <= _MOST_WITH_DRAWS else ""
    return (
        f"mean over {number} random filter-normalised directions; {_STEP}; "
        f"band: ± one standard error{_rounding(results)}{thin}"
    )


def _rounding(results: Sequence[Result]) -> str:
    """Say that errors hold the rounding to 16 bits, where they do."""
    narrow = any("loss_rounding" in result.value for result in results)
    return " and the rounding to 16 bits" if narrow else ""
