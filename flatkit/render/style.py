"""The look of all figures: colours that colour-blind readers tell apart, one style, no globals."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from textwrap import wrap
from typing import Any, Literal, TypeAlias

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line: TypeAlias = Literal["-", "--", "-.", ":"]

MUTED = "0.45"
"""The grey of notes, and of legends that hold for every colour."""

_NOTE_SIZE = 8
# In DejaVu Sans 32 characters of 9.5 pt take about 2.4 inches, and the narrowest panel with a name
# for a title has 2.6. A character of 8 pt takes less than 0.075 inches.
_TITLE_WIDTH = 32
_INCHES_PER_CHARACTER = 0.075
_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "D", "P", "X", "v")
_PLACES = {"sgd": 0, "sam": 1, "gam": 2, "adamw": 3, "asam": 4, "gsam": 5}
"""Of the optimizers among the looks."""
_OWN: dict[Any, Any] = {
    # One font that comes with matplotlib and has λ, ρ, ∇, ‖: the same figure on every machine.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.5,
    "hatch.color": "0.6",
    "svg.hashsalt": "flatkit",  # matplotlib would draw random names, other bytes every time
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Look:
    """How one run or group is drawn, in every figure the same."""

    colour: tuple[float, float, float]
    line: Line
    marker: str


@contextmanager
def styled() -> Generator[None, None, None]:
    """Draw in flatkit's style inside the block; afterwards matplotlib is as it was.

    >>> before = dict(matplotlib.rcParams)
    >>> with styled():
    ...     matplotlib.rcParams["svg.hashsalt"]
    'flatkit'
    >>> dict(matplotlib.rcParams) == before
    True
    """
    base: dict[Any, Any] = {**seaborn.plotting_context("paper"), **seaborn.axes_style("ticks")}
    with matplotlib.rc_context({**base, **_OWN}):
        yield


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each name, from seaborn's colour-blind palette.

    An optimizer of flatkit has the same look in every figure; other names take in their order what
    is left. After ten names the colours repeat with another kind of line.

    >>> a, b = looks(["sgd", "gam"]).values()
    >>> a.colour != b.colour, looks(["gam", "mine"])["gam"] == b
    (True, True)
    """
    taken = {_PLACES[name] for name in names if name in _PLACES}
    left = (place for place in count() if place not in taken)
    places = {name: _PLACES[name] if name in _PLACES else next(left) for name in names}
    palette = seaborn.color_palette("colorblind")
    order = [0, 1, 2, 4, 3, 5, 9, 8, 6, 7]  # green and vermilion, the nearest pair, not adjacent
    return {
        name: Look(
            colour=palette[order[place % len(order)]],
            line=_LINES[place // len(order) % len(_LINES)],
            marker=_MARKERS[place % len(_MARKERS)],
        )
        for name, place in places.items()
    }


def panels(
    count: int,
    *,
    width: float,
    height: float,
    per_row: int | None = None,
    margins: tuple[float, float] = (0.0, 0.6),
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of several panels, without pyplot's global state.

    Args:
        count: number of panels.
        width: of a panel, in inches.
        height: of a panel, in inches.
        per_row: number of panels side by side; all by default.
        margins: width and height of the room for colour bar, legend and footnote, in inches.
        **options: passed to `Figure.subplots`.

    >>> figure, axes = panels(5, width=2, height=2, per_row=3)
    >>> len(axes), figure.get_size_inches().tolist()
    (5, [6.0, 4.6])
    """
    columns = min(count, per_row or count)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(columns * width + margins[0], rows * height + margins[1]), layout="constrained"
    )
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def tidy(axes: Sequence[Axes]) -> None:
    """Leave only the axes that carry ticks.

    >>> figure, axes = panels(1, width=2.0, height=2.0)
    >>> tidy(axes)
    >>> [side for side, spine in axes[0].spines.items() if spine.get_visible()]
    ['left', 'bottom']
    """
    for axis in axes:
        seaborn.despine(ax=axis)


def title(name: str) -> str:
    """Return a name in lines short enough for the title of a panel.

    >>> title("gam")
    'gam'
    """
    return "\n".join(wrap(name, _TITLE_WIDTH)) or name


def footnote(figure: Figure, text: str) -> None:
    """Say below all panels what the marks mean.

    >>> figure, _ = panels(1, width=2.0, height=2.0)
    >>> footnote(figure, "x: no number")
    >>> figure.get_supxlabel()
    'x: no number'
    """
    characters = int(figure.get_figwidth() / _INCHES_PER_CHARACTER)
    figure.supxlabel("\n".join(wrap(text, characters)), fontsize=_NOTE_SIZE, color=MUTED)
