"""The figure of trainings by epoch: losses, accuracy, λmax with the limits of steps, and more."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flatkit.comparison.curves import OVERLAP, curves, number, stability_of
from flatkit.errors import NothingToDrawError
from flatkit.render.curvature_scale import FIRST_ORDER
from flatkit.render.figures.heights import scale_heights
from flatkit.render.figures.legend import legend_above, run_handles
from flatkit.render.notation import radius
from flatkit.render.style import MUTED, Look, footnote, looks, panels, styled, tidy
from flatkit.render.tables.track import radii_of
from flatkit.results.comparison import Comparison, Entry

Value: TypeAlias = "Callable[[Entry], tuple[float, float | None] | None]"
Line: TypeAlias = "tuple[Value, str]"

_TOP = "λmax, and 2/η"
_LIMITS = (
    "grey: 2/η, beyond which steps of plain gradient descent diverge; dotted in colour: the limit "
    "with momentum and weight decay, in full batches"
)
_WRAPPED = ", of the base optimizer (SAM and GAM leave such minima before)"
_OVERLAPS = (
    "overlap: of the leading eigenvector, and dashed of the first two as a space, with those of "
    "the epoch before; none is drawn where the eigenvalues do not stand apart"
)


def track_figure(comparison: Comparison) -> Figure:
    """Draw losses, accuracy, λmax, trace, gradient norm, R1/ρ² and overlaps against the epoch.

    Each quantity that was measured has a panel, with a line for every run; bands are errors.

    Raises:
        NothingToDrawError: no run has two epochs.
    """
    runs = curves(comparison)
    names = _names(list(runs))
    every = [entry for entries in runs.values() for entry in entries]
    shown = {
        label: lines
        for label, lines in _panels(every).items()
        if any(value(entry) for value, _ in lines for entry in every)
    }
    if not shown:
        raise NothingToDrawError("a figure by epochs needs two of a run; flatkit.track makes them")
    style = looks(list(names.values()))
    with styled():
        # Up to three panels in one row, more in two.
        per_row = min(4, -(-len(shown) // (1 if len(shown) < 4 else 2)))
        figure, axes = panels(len(shown), width=2.9, height=2.2, per_row=per_row, margins=(0, 1.0))
        for axis, (label, lines) in zip(axes, shown.items(), strict=True):
            heights: list[float] = []
            for run, entries in runs.items():
                for value, line in lines:
                    heights += _draw(axis, entries, value, style[names[run]], line)
                if label == _TOP:
                    _draw_limits(axis, entries, style[names[run]])
            _finish(axis, label, heights)
            if label == _TOP and not any(map(stability_of, every)):
                axis.set_title("λmax")  # nothing is known of the learning rates
        tidy(axes)
        pair = [Line2D([], [], color=MUTED, linestyle=line) for line in ("-", "--")]
        for handle, text in zip(pair, ("train", "test"), strict=True):
            handle.set_label(text)
        legend_above(figure, [*run_handles(style), *pair], columns=4)
        footnote(figure, _note(every, shown))
    return figure


def _names(runs: Sequence[str]) -> dict[str, str]:
    """Return the last folder of each run, or its whole path where two have one name."""
    short = [PurePath(run).name or run for run in runs]
    unique = len(set(short)) == len(short)
    return dict(zip(runs, short if unique else runs, strict=True))


def _panels(entries: Sequence[Entry]) -> Mapping[str, Sequence[Line]]:
    # R1/ρ² of the largest radius that all have, where the gradient that is left matters least.
    radii = radii_of(entries)
    found: dict[str, Sequence[Line]] = {
        "loss": [(_of("loss", split=split), line) for split, line in _SPLITS],
        "accuracy": [(_of("accuracy", split=split), line) for split, line in _SPLITS],
        _TOP: [(_of("top_eigenvalues"), "-")],
        "trace": [(_of("trace"), "-")],
        "gradient norm ‖∇L‖": [(_of("gradient_norm"), "-")],
    }
    if radii:
        found[f"R1/ρ² (ρ = {radius(radii[-1])})"] = [(_first_order(radii[-1]), "-")]
    return {**found, "overlap of eigenvectors": [(_overlap(0), "-"), (_overlap(1), "--")]}


_SPLITS = (("train", "-"), ("test", "--"))


def _of(measure: str, **settings: str) -> Value:
    return lambda entry: number(entry, measure, **settings)


def _first_order(rho: float) -> Value:
    def value(entry: Entry) -> tuple[float, float | None] | None:
        found = number(entry, FIRST_ORDER, rho=rho)
        return None if found is None else (found[0] / rho**2, None)

    return value


def _overlap(place: int) -> Value:
    def value(entry: Entry) -> tuple[float, float | None] | None:
        found = entry.report.find(OVERLAP)
        if found is None or place >= len(found.value) or found.error[place] is None:
            return None
        return found.value[place], found.error[place]

    return value


def _draw(axis: Axes, entries: Sequence[Entry], value: Value, look: Look, line: str) -> list[float]:
    """Draw one quantity of a run, and return its heights."""
    points = [(entry.epoch or 0.0, *found) for entry in entries if (found := value(entry))]
    if not points:
        return []
    epochs, heights, errors = zip(*points, strict=True)
    axis.plot(epochs, heights, line, color=look.colour, marker=look.marker, markersize=3)
    # A band with gaps would look as if the numbers between were exact.
    if all(error is not None for error in errors):
        low, high = ([h + s * (e or 0.0) for _, h, e in points] for s in (-1, 1))
        axis.fill_between(epochs, low, high, color=look.colour, alpha=0.2, linewidth=0)
    return list(heights)


def _draw_limits(axis: Axes, entries: Sequence[Entry], look: Look) -> None:
    known = [(entry.epoch or 0.0, found) for entry in entries if (found := stability_of(entry))]
    if not known:
        return
    epochs = [epoch for epoch, _ in known]
    axis.plot(epochs, [s.two_over_lr for _, s in known], color=MUTED, linewidth=1.0, zorder=1)
    limits = [s.limit for _, s in known]
    axis.plot(epochs, limits, ":", color=look.colour, linewidth=1.1, zorder=1)


def _finish(axis: Axes, label: str, heights: Sequence[float]) -> None:
    axis.set_title(label)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    # Overlaps lie in [0, 1]: a little room for lines at the ends.
    if label.startswith("overlap"):
        axis.set_ylim(-0.02, 1.05)
    elif label == _TOP:
        # The limits grow without end as the rate falls; they are cut, the eigenvalues are not.
        lines = [float(y) for line in axis.lines for y in line.get_ydata()]  # pyright: ignore
        scale_heights(axis, lines)
        if axis.get_yscale() == "linear" or min(heights) <= 0:
            # Of a network whose neurons are dead λmax is 0, and an axis needs a height.
            axis.set_ylim(top=1.15 * max(*heights, min(lines)) or 1.0)
    elif label != "accuracy":
        scale_heights(axis, heights)


def _note(entries: Sequence[Entry], shown: Mapping[str, Sequence[Line]]) -> str:
    notes: list[str] = []
    limits = [found for entry in entries if (found := stability_of(entry))]
    if _TOP in shown and limits:
        notes.append(_LIMITS + (_WRAPPED if any(one.wrapped for one in limits) else ""))
    if "overlap of eigenvectors" in shown:
        notes.append(_OVERLAPS)
    return "; ".join(notes)
