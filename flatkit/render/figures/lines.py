"""The figure of lines: loss on the left and gradient norm on the right, runs on one axis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flatkit.errors import ResultError
from flatkit.landscape.surface import Surface
from flatkit.render.axes import (
    common_label,
    explanation,
    in_units,
    quantities_of,
    quantity_label,
)
from flatkit.render.figures.heights import rises_steeply
from flatkit.render.figures.legend import legend_above, marks, run_handles
from flatkit.render.figures.marks import mark_above, mark_handles
from flatkit.render.style import (
    MUTED,
    Line,
    Look,
    footnote,
    looks,
    panels,
    styled,
    tidy,
)

_PANELS = (("loss", "gradient_norm"), ("accuracy", None), ("top_eigenvalue", None))
"""Quantities on the left and on the right axis of each panel."""

_TRAIN: Mapping[str, Line] = {"loss": "-", "gradient_norm": "--"}
_TEST: Mapping[str, Line] = {"loss": "-.", "gradient_norm": ":"}
_LARGEST = 1e250
"""Beyond it, margins of axes overflow."""


def curve_figure(surfaces: Sequence[Surface], *, log_scale: bool | None = None) -> Figure:
    """Draw lines of several checkpoints on one axis, a colour each.

    Solid: the loss, on the left axis. Dashed: the gradient norm, on the right axis. Accuracy and
    top eigenvalue have panels of their own. Dash-dotted and dotted: the same on test data. A band
    holds what 16 bits may have put values off. Where a value is infinite the upper edge has a mark.

    Args:
        surfaces: with the axis t; others are left out.
        log_scale: of loss and gradient norm; by default, where they span a wide range.

    Raises:
        ResultError: there is no line.

    >>> line = Surface({"t": [0, 1]}, {"loss": [1.0, 2.0], "gradient_norm": [0.5, 1.5]})
    >>> [axis.get_ylabel() for axis in curve_figure([line]).axes]
    ['loss', 'gradient norm ‖∇L‖']
    """
    lines = [surface for surface in surfaces if len(surface.axes) == 1]
    shown = [
        [_with_test(name, lines) for name in pair if name is not None]
        for pair in _PANELS
        if any(_with_test(name, lines) for name in pair if name is not None)
    ]
    if not shown:
        raise ResultError("no file holds a line; measure a landscape along one direction")
    names = _names(lines)
    style = looks(names)
    with styled():
        wide = 4.4 if len(shown) == 1 else 3.7
        figure, axes = panels(len(shown), width=wide, height=2.9, margins=(0.2, 0.7))
        for axis, sides in zip(axes, shown, strict=True):
            _panel(axis, sides, lines, [style[name] for name in names], log_scale)
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
        tidy(axes)
        _legend(figure, lines, style, shown)
        footnote(figure, explanation(lines))
    return figure


def _with_test(name: str, lines: Sequence[Surface]) -> list[str]:
    """Return the quantity on training and test data, as far as there are any."""
    present = quantities_of(lines)
    return [quantity for quantity in (name, f"test_{name}") if quantity in present]


def _names(lines: Sequence[Surface]) -> list[str]:
    """Return a name for every line, all different."""
    found: list[str] = []
    for line in lines:
        name, number = line.name, 2
        while name in found:
            name, number = f"{line.name} ({number})", number + 1
        found.append(name)
    return found


def _panel(
    axis: Axes,
    sides: Sequence[Sequence[str]],
    lines: Sequence[Surface],
    style: Sequence[Look],
    log_scale: bool | None,
) -> None:
    axis.set_xlabel(common_label(lines))
    for place in _upright(lines):
        axis.axvline(place, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for number, quantities in enumerate(side for side in sides if side):
        # Losses and gradient norms have other units, hence an axis each.
        own = axis if number == 0 else axis.twinx()
        if number:
            own.grid(False)
            own.spines["top"].set_visible(False)
        _draw(own, quantities, lines, style)
        own.set_ylabel(quantity_label(quantities[0].removeprefix("test_")))
        if not quantities[0].endswith("accuracy"):
            present = [
                line.quantities[q] for q in quantities for line in lines if q in line.quantities
            ]
            _scale(own, numpy.concatenate(present), log_scale)
    axis.margins(x=0.02)


def _draw(
    axis: Axes, quantities: Sequence[str], lines: Sequence[Surface], style: Sequence[Look]
) -> None:
    for quantity in quantities:
        dashes = _TEST if quantity.startswith("test_") else _TRAIN
        name = quantity.removeprefix("test_")
        dash = dashes.get(name, "-" if dashes is _TRAIN else "-.")
        for number, (line, look) in enumerate(zip(lines, style, strict=True)):
            if quantity not in line.quantities:
                continue
            steps, values = line.axes["t"], in_units(line, quantity)
            drawn = numpy.where(numpy.abs(values) <= _LARGEST, values, numpy.nan)
            # The loss is what the picture is about.
            width = 1.6 if name != "gradient_norm" else 1.2
            colour = _colour(name, look, alone=len(lines) == 1)
            own = marks(look, len(steps), number) if len(lines) > 1 else {}
            axis.plot(steps, drawn, color=colour, linestyle=dash, linewidth=width, **own)
            if f"{quantity}_rounding" in line.quantities:
                off = in_units(line, f"{quantity}_rounding")
                band = drawn - off, drawn + off
                axis.fill_between(steps, *band, color=colour, alpha=0.22, linewidth=0)
            beyond = ~numpy.isnan(values) & numpy.isnan(drawn)
            mark_above(axis, steps[beyond].tolist(), marker="^", colour=colour)
            mark_above(axis, steps[numpy.isnan(values)].tolist(), marker="x", colour=colour)


def _scale(axis: Axes, values: numpy.ndarray, log_scale: bool | None) -> None:
    """Choose a logarithmic axis if asked, or if the values span a wide range."""
    finite = values[numpy.isfinite(values) & (numpy.abs(values) <= _LARGEST)]
    if not finite.size or finite.min() < 0:
        return
    if log_scale is None:
        log_scale = rises_steeply(finite)
    if log_scale and finite.min() > 0:
        axis.set_yscale("log")
    # Zero belongs to the picture where the values come near it.
    elif finite.min() < 0.3 * finite.max():
        axis.set_ylim(bottom=0.0)


def _colour(name: str, look: Look, *, alone: bool) -> Any:
    """Return the colour of a run, or of a quantity where there is one run alone."""
    if alone and name == "gradient_norm":
        return looks(["loss", "gradient_norm"])["gradient_norm"].colour
    return look.colour


def _upright(lines: Sequence[Surface]) -> list[float]:
    """Return where checkpoints lie on the axis."""
    places = {0.0}
    for line in lines:
        on_it = (m for m in line.header.get("markers", ()) if not m.get("off_plane"))
        places |= {float(marker["at"][0]) for marker in on_it}
    return sorted(place for place in places if math.isfinite(place))


def _legend(
    figure: Figure,
    lines: Sequence[Surface],
    style: Mapping[str, Look],
    shown: Sequence[Sequence[Sequence[str]]],
) -> None:
    handles: list[Any] = []
    if len(lines) > 1:
        handles += run_handles(style, marker=True)
    present = {quantity for panel in shown for side in panel for quantity in side}
    words = {"loss": "loss", "gradient_norm": "gradient norm (right)"}
    tests = any(quantity.startswith("test_") for quantity in present)
    look = next(iter(style.values()))
    for prefix, dashes in (("", _TRAIN), ("test_", _TEST)):
        for name, word in words.items():
            if prefix + name in present:
                data = "" if not tests else (", test" if prefix else ", train")
                colour = MUTED if len(lines) > 1 else _colour(name, look, alone=True)
                handles.append(
                    Line2D([], [], color=colour, linestyle=dashes[name], label=word + data)
                )
    legend_above(figure, [*handles, *mark_handles(figure)])
