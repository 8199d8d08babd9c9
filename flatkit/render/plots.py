"""The figures of an object by name, the one that tells most first; nothing is drawn before a call.

Each is named with `module:function`, so that listing the names imports no matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatkit.errors import NothingToDrawError, UnknownNameError
from flatkit.landscape.surface import Surface
from flatkit.measures.registry import MEASURES
from flatkit.render.frames import as_comparison
from flatkit.results.comparison import Comparison, Conditions
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.results.showing import no_such

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_RUNS: Mapping[str, str] = {
    "curvature": "flatkit.render.figures.curvature:curvature_figure",
    "series": "flatkit.render.figures.series:series_figure",
    "track": "flatkit.render.figures.track:track_figure",
}
"""Figures of several runs, whatever was measured."""
_OF_LINES = {"line": "flatkit.render.figures.lines:curve_figure"}
_OF_PLANES = {
    "contour": "flatkit.render.figures.maps:map_figure",
    "heat": "flatkit.render.figures.maps:heat_figure",
    "surface_3d": "flatkit.render.figures.surfaces_3d:surface_3d_figure",
}
_OF_STUDIES = {"claims": "flatkit.render.figures.claims:claims_figure"}
_OF_TRAINING = {"history": "flatkit.render.figures.history:history_figure"}
_FIRST = ("curvature", "flatness", "slice", "plane", "density", "layers")
"""Of two runs or more the first tells most, of one the second, and so on."""


def names(shown: Any) -> list[str]:
    """Return the names of the figures of an object, the one that tells most first.

    >>> names(Surface({"t": [0.0, 1.0]}, {"loss": [1.0, 2.0]}))
    ['line']
    """
    return list(_references(shown))


def figure(shown: Any, name: str) -> "Callable[..., Figure]":
    """Return the function that draws one figure of an object; it takes options alone.

    Raises:
        AttributeError: it has no such figure; the message names those that it has.
    """
    found = _references(shown)
    if name not in found:
        error: UnknownNameError = no_such(name, "figure", found)
        raise AttributeError(str(error))
    module, _, function = found[name].partition(":")
    draw = getattr(import_module(module), function)
    if isinstance(shown, Conditions) and name not in _OF_STUDIES:
        return partial(_of_condition, draw, shown)
    return partial(draw, _subject(shown))


def _of_condition(
    draw: "Callable[..., Figure]",
    study: Conditions,
    *,
    condition: str | None = None,
    **options: Any,
) -> "Figure":
    """Draw the runs of a condition of a study, by default of the first."""
    names = list(study.comparisons)
    chosen = names[0] if condition is None else condition
    if chosen not in names:
        raise no_such(chosen, "condition", names)
    return draw(study.comparisons[chosen], **options)


def best(shown: Any) -> "Callable[..., Figure]":
    """Return the function that draws the figure that tells most.

    Raises:
        NothingToDrawError: the object has nothing to draw.
    """
    found = names(shown)
    if not found:
        raise NothingToDrawError(f"nothing to draw: {what_is_drawn(shown)}")
    return figure(shown, found[0])


def of_results(comparison: Comparison) -> dict[str, str]:
    """Return by file name what draws each figure of results, as `module:function`.

    >>> list(of_results(as_comparison(Result("loss_plane", {}))))
    ['plane']
    """
    measured = {result.measure for entry in comparison.entries for result in entry.report}
    found = {
        name: reference
        for measure in MEASURES
        if measure in measured
        for name, reference in MEASURES[measure].figures.items()
    }
    # After those of the measures, which also one run has.
    return {**found, **OF_RUNS} if len(comparison.entries) > 1 else found


def what_is_drawn(shown: Any) -> str:
    """Return in words what has figures, and what an object without any holds.

    >>> what_is_drawn(Report([Result("loss", 0.5)]))
    'figures need ..., or curvature of two runs; these results hold loss'
    """
    if isinstance(shown, Conditions):
        return "no run of the study was measured"
    if not isinstance(shown, Comparison | Report | Result):
        return "it holds no history of a training"
    comparison = as_comparison(shown)
    drawn = ", ".join(measure.name for measure in MEASURES.own if measure.figures)
    held = sorted({result.measure for entry in comparison.entries for result in entry.report})
    return (
        f"figures need {drawn}, or curvature of two runs; these results hold "
        f"{', '.join(held) or 'nothing'}"
    )


def _references(shown: Any) -> dict[str, str]:
    if isinstance(shown, Surface):
        return dict(_OF_LINES if len(shown.axes) == 1 else _OF_PLANES)
    if isinstance(shown, Comparison | Report | Result):
        found = of_results(as_comparison(shown))
        first = [name for name in _FIRST if name in found]
        ordered = [*first, *(name for name in found if name not in first)]
        # As attributes of Python are named.
        return {name.replace("-", "_"): found[name] for name in ordered}
    if isinstance(shown, Conditions):
        runs = next(iter(shown.comparisons.values()), None)
        return {**_OF_STUDIES, **_references(runs)} if runs is not None else {}
    return dict(_OF_TRAINING) if getattr(shown, "history", None) else {}


def _subject(shown: Any) -> Any:
    """Return what the functions that draw take."""
    if isinstance(shown, Surface):
        return [shown]
    if isinstance(shown, Conditions):
        return shown
    if isinstance(shown, Comparison | Report | Result):
        return as_comparison(shown)
    history: Sequence[Any] = shown.history
    return {shown.name: history}
