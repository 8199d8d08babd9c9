"""Figures of the whole spectrum and of the layers that it comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flatkit.errors import NothingToDrawError
from flatkit.render.curvature_scale import top_eigenvalue
from flatkit.render.figures.legend import legend_above, run_handles
from flatkit.render.samples import over_runs
from flatkit.render.style import Look, footnote, looks, panels, styled, tidy
from flatkit.results.comparison import Comparison
from flatkit.results.result import Result

_FLOOR = 1e-7
"""Smallest density that the logarithmic panel shows, relative to the highest."""
_WIDEST = 0.6
"""Inches of a layer; a dozen runs of a hundred layers would else fill thirty metres."""
_BLOCKS = {"top": "top eigenvalue of the block", "trace": "trace of the block"}


def density_figure(comparison: Comparison) -> Figure:
    """Draw the spectral densities, on a linear and on a logarithmic axis.

    The band is ± the error of the curve, which holds more than the standard error over the starts
    (`error_is` of the result); an upright line is λmax where it was measured. Nothing finer than
    the bandwidth, which the caption names, is resolved.

    Raises:
        NothingToDrawError: no run has a density.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> curve = {"eigenvalue": [0.0, 1.0], "density": [0.5, 0.1]}
    >>> settings = {"bandwidth": 0.05, "mass": 1.0}
    >>> error = {"density": [0.1, 0.0]}
    >>> density = Result("spectral_density", curve, error, "standard_error", settings=settings)
    >>> figure = density_figure(Comparison([Entry("sgd", "sgd", Report([density]))]))
    >>> [axis.get_yscale() for axis in figure.axes]
    ['linear', 'log']
    """
    found = _of(comparison, "spectral_density")
    style = looks(list(found))
    with styled():
        figure, axes = panels(2, width=3.4, height=2.6, margins=(0.5, 0.5))
        for axis in axes:
            for name, result in found.items():
                _draw_density(axis, result, style[name])
            _mark_largest(axis, comparison, style)
            axis.set(xlabel="eigenvalue λ of the Hessian", ylabel="density")
        peak = max(max(result.value["density"]) for result in found.values())
        # By the curves: a band may reach far above them where few starts agree.
        axes[0].set_ylim(0.0, 1.08 * peak)
        axes[1].set_yscale("log")
        axes[1].set_ylim(_FLOOR * peak, 3 * peak)
        legend_above(figure, run_handles(style, line=True))
        tidy(axes)
        widths, masses = (_range(list(found.values()), name) for name in ("bandwidth", "mass"))
        wider = all("error_is" in result.settings for result in found.values())
        band = "standard error and what rules may lack" if wider else "one standard error"
        footnote(
            figure,
            f"Gaussians of standard deviation {widths}; mass {masses}; band: ± {band}; "
            "upright: λmax" + over_runs(comparison),
        )
    return figure


def layer_figure(comparison: Comparison) -> Figure:
    """Draw top eigenvalue and trace of every layer's diagonal block, with their errors.

    Raises:
        NothingToDrawError: no run has curvature by layer.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> layers = {"layer": ["first", "last"], "top": [2.0, 1.0], "trace": [4.0, 2.0]}
    >>> error = {"top": [0.1, 0.1], "trace": [0.3, 0.2]}
    >>> blocks = Result("layer_curvature", layers, error, "standard_error")
    >>> figure = layer_figure(Comparison([Entry("sgd", "sgd", Report([blocks]))]))
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [2.0, 1.0]
    """
    found = _of(comparison, "layer_curvature")
    style = looks(list(found))
    layers = list(dict.fromkeys(x for result in found.values() for x in result.value["layer"]))
    with styled():
        width = max(2.6, min(0.3 * len(found), _WIDEST) * len(layers))
        figure, axes = panels(2, width=width, height=2.9, margins=(0.2, 0.5))
        for axis, (key, name) in zip(axes, _BLOCKS.items(), strict=True):
            _draw_blocks(axis, found, key, layers, style)
            axis.set_title(name)
            axis.set_xticks(
                range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor"
            )
            axis.grid(False, axis="x")
        legend_above(figure, _bar_handles(style))
        tidy(axes)
        note = "black bars: residual of the eigenvalue, standard error of the trace"
        footnote(figure, note + over_runs(comparison))
    return figure


def _of(comparison: Comparison, measure: str) -> dict[str, Result]:
    found = {
        entry.name: result
        for entry in comparison.entries
        if (result := entry.report.find(measure)) is not None
    }
    if not found:
        raise NothingToDrawError(f"no run has {measure}; measure it with `measures` {measure}")
    return found


def _draw_density(axis: Axes, result: Result, look: Look) -> None:
    grid, curve = result.value["eigenvalue"], result.value["density"]
    spread = list(zip(curve, result.error["density"], strict=True))
    # A density is not negative, wherever its error reaches.
    low, high = [max(0.0, c - e) for c, e in spread], [c + e for c, e in spread]
    axis.plot(grid, curve, color=look.colour, linestyle=look.line, linewidth=1.3)
    axis.fill_between(grid, low, high, color=look.colour, alpha=0.25, linewidth=0)


def _mark_largest(axis: Axes, comparison: Comparison, style: Mapping[str, Look]) -> None:
    for entry in comparison.entries:
        top = top_eigenvalue(entry.report)
        if top is not None and entry.name in style:
            axis.axvline(top, color=style[entry.name].colour, linewidth=0.9, linestyle=":")


def _draw_blocks(
    axis: Axes,
    found: Mapping[str, Result],
    key: str,
    layers: Sequence[str],
    style: Mapping[str, Look],
) -> None:
    """Draw a bar for each layer and run; the bars of one layer stand side by side."""
    for number, (name, result) in enumerate(found.items()):
        # Together the bars of a layer are 0.8 wide, around its place.
        offset = 0.8 * ((number + 0.5) / len(found) - 0.5)
        axis.bar(
            [layers.index(layer) + offset for layer in result.value["layer"]],
            result.value[key],
            width=0.8 / len(found),
            yerr=result.error[key],
            ecolor="0.2",
            **_bar(style[name], number),
        )


_HATCHES = ("", "////", "xxxx", "....", "----")


def _bar(look: Look, number: int) -> dict[str, Any]:
    """Return how the bars of a run look: hatched, so that they are told apart in grey, too."""
    return {
        "facecolor": look.colour,
        "edgecolor": "white",
        "linewidth": 0.4,
        "hatch": _HATCHES[number % len(_HATCHES)],
    }


def _bar_handles(style: Mapping[str, Look]) -> list[Patch]:
    return [Patch(label=name, **_bar(look, n)) for n, (name, look) in enumerate(style.items())]


def _range(results: Sequence[Result], name: str) -> str:
    """Return the smallest and the largest of a setting, or the one value of all."""
    values = [result.settings[name] for result in results]
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
