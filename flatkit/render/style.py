"""The look of all figures: colours that colour-blind readers tell apart, one style, no globals.

A figure is drawn in `styled()`. `figure_style` says for which width, and with which settings of
matplotlib in the place of ours.
"""

import logging
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, TypeAlias, get_args

import matplotlib
import matplotlib.style
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, MaxNLocator

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError
from flatkit.render.written import take_as_written

Width: TypeAlias = Literal["column", "text", "slide"]
Line: TypeAlias = Literal["-", "--", "-.", ":"]

MUTED = "0.45"
"""The grey of notes, and of legends that hold for every colour."""

_WIDTHS: Mapping[str, tuple[float, float]] = {
    "column": (3.3, 0.85),
    "text": (6.9, 0.95),
    "slide": (10.0, 1.5),
}
"""Inches, and the size of letters and lines against the usual one: 7.7 points for the labels of a
column, 8.6 in the width of a text, 13.5 on a slide."""
_NARROWEST = 0.65
"""Share of its own width that a panel keeps; with less, panels go below each other."""
_MOST_TICKS = 5
"""Intervals between the ticks of an axis that goes to the right."""
_NOTE_SIZE, _NOTE_LINES = 8.0, 2
_LINE_HEIGHT = 0.145
"""Inches of a line of a note of 8 points."""
# In DejaVu Sans a character of 8 pt takes less than 0.075 inches.
_INCHES_PER_CHARACTER = 0.075
_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "D", "P", "X", "v")
_PLACES = {"sgd": 0, "sam": 1, "gam": 2, "adamw": 3, "asam": 4, "gsam": 5}
"""Of the optimizers among the looks."""
_OWN: dict[Any, Any] = {
    # One font that comes with matplotlib and has λ, ρ, ∇, ‖: the same figure on every machine.
    "font.family": "sans-serif",
    # The others have nearly its widths, for a reader of an SVG without it.
    "font.sans-serif": ["DejaVu Sans", "Bitstream Vera Sans", "Verdana"],
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
    # Text stays text, which can be searched, copied and edited.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Look:
    """How one run or group is drawn, in every figure the same."""

    colour: tuple[float, float, float]
    line: Line
    marker: str


@dataclass(frozen=True)
class FigureStyle:
    """For what figures are drawn, and what is changed of their style.

    Attributes:
        width: `column` (3.3 inches), `text` (6.9), `slide` (10), or None for what suits the panels.
        settings: of matplotlib, in the place of ours.
    """

    width: Width | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def inches(self) -> float | None:
        """The width of a figure, if it is given."""
        return None if self.width is None else _WIDTHS[self.width][0]

    @property
    def scale(self) -> float:
        """Of letters and lines."""
        return 1.0 if self.width is None else _WIDTHS[self.width][1]


_style: ContextVar[FigureStyle] = ContextVar("_style")
_drawn: ContextVar[list[Figure]] = ContextVar("_drawn")


def current_style() -> FigureStyle:
    """Return the style in which figures are drawn here.

    >>> current_style().scale
    1.0
    """
    return _style.get(FigureStyle())


@contextmanager
def figure_style(
    *,
    width: Width | None = None,
    style_file: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Generator[FigureStyle, None, None]:
    """Draw figures inside the block for a width, and with other settings of matplotlib.

    Args:
        width: `column`, `text` or `slide`; None for what suits the panels.
        style_file: a matplotlibrc or `.mplstyle` file, or the name of a style of matplotlib.
        settings: of matplotlib, e.g. `{"axes.grid": False}`; they win over the file.

    Raises:
        InvalidArgumentError: another width, no such file, or settings unknown to matplotlib.

    >>> with figure_style(width="column", settings={"axes.grid": False}):
    ...     with styled():
    ...         figure, axes = panels(3, width=2.0, height=2.0)
    >>> float(figure.get_figwidth()), len({axis.get_position().y0 for axis in axes})
    (3.3, 2)
    """
    if width is not None:
        check_choice("width", width, get_args(Width))
    chosen = FigureStyle(width, {**_read_style(style_file), **(settings or {})})
    token = _style.set(chosen)
    try:
        with matplotlib.rc_context():
            _apply("settings", chosen.settings)
        yield chosen
    finally:
        _style.reset(token)


def _read_style(file: str | Path | None) -> dict[Any, Any]:
    if file is None:
        return {}
    if str(file) in matplotlib.style.library:
        return dict(matplotlib.style.library[str(file)])
    if not Path(file).is_file():
        known = ", ".join(matplotlib.style.available[:3])
        raise InvalidArgumentError(
            f"style_file must be a file of matplotlib's settings or the name of one of its styles "
            f"({known}, ...), got {str(file)!r}, which is neither"
        )
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("matplotlib")
    log.addHandler(handler)
    try:
        # It tells of wrong lines in its log alone, and goes on.
        found = dict(matplotlib.rc_params_from_file(str(file), use_default_template=False))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"style_file {file} cannot be read: {error}") from error
    finally:
        log.removeHandler(handler)
    if said:
        words = " ".join(" ".join(said).split())
        raise InvalidArgumentError(
            f"style_file {file} holds what matplotlib does not know: {words}"
        )
    return found


def _apply(name: str, settings: Mapping[Any, Any]) -> None:
    try:
        matplotlib.rcParams.update(settings)
    except (KeyError, ValueError) as error:
        raise InvalidArgumentError(f"{name} must be settings of matplotlib: {error}") from error


@contextmanager
def styled() -> Generator[None, None, None]:
    """Draw in flatkit's style inside the block; afterwards matplotlib is as it was.

    At the end lines and marks of the figures that `panels` made inside are scaled to the width that
    is asked for, as letters are from the beginning.

    >>> before = dict(matplotlib.rcParams)
    >>> with styled():
    ...     matplotlib.rcParams["svg.hashsalt"]
    'flatkit'
    >>> dict(matplotlib.rcParams) == before
    True
    """
    style = current_style()
    base: dict[Any, Any] = {**seaborn.plotting_context("paper"), **seaborn.axes_style("ticks")}
    own = {**base, **_OWN}
    sizes = {k: style.scale * v for k, v in own.items() if k.endswith(_SIZES)}
    token = _drawn.set([])
    try:
        settings: dict[Any, Any] = {**own, **sizes, **style.settings}
        with matplotlib.rc_context(settings):
            yield
        for figure in _drawn.get():
            take_as_written(figure)
            _scale_marks(figure, style.scale)
    finally:
        _drawn.reset(token)


_SIZES = ("size", "labelsize", "fontsize", ".width", ".pad", "labelpad", "titlepad")
"""Ends of the names of settings in points that letters and ticks have."""


def _scale_marks(figure: Figure, scale: float) -> None:
    """Scale lines and marks, whose sizes are given in points where they are drawn."""
    if scale == 1.0:
        return
    for legend in figure.legends:
        _scale_lines(legend.get_lines(), scale)
    for axis in figure.axes:
        _scale_lines(axis.lines, scale)
        for collection in axis.collections:
            widths: Any = collection.get_linewidth()  # an array
            collection.set_linewidth(scale * widths)


def _scale_lines(lines: Iterable[Line2D], scale: float) -> None:
    for line in lines:
        line.set_linewidth(scale * line.get_linewidth())
        line.set_markersize(scale * line.get_markersize())
        line.set_markeredgewidth(scale * line.get_markeredgewidth())


def points(size: float) -> float:
    """Return a size of letters for the width that is asked for.

    >>> points(8.0)
    8.0
    """
    return size * current_style().scale


class DrawnFigure(Figure):
    """A figure that a notebook shows also where pyplot was never imported."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure; matplotlib before 3.11 may find no layout for 3-D axes."""
        with warnings.catch_warnings():
            if any(axis.name == "3d" for axis in self.axes):
                warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
            super().draw(renderer)

    def savefig(self, *values: Any, **options: Any) -> None:
        """Write the figure; panels of a fixed shape are laid out three times.

        The first time they have the shape that is left to them, and labels are cut off; of three
        planes in a column, a second time leaves a pixel outside.
        """
        fixed = any(a.get_box_aspect() is not None for a in self.axes if a.name != "3d")
        if fixed and self.get_layout_engine() is not None:
            for _ in range(2):
                self.draw_without_rendering()
        super().savefig(*values, **options)

    def _repr_png_(self) -> bytes:
        with styled(), BytesIO() as stream:
            self.savefig(stream, format="png", dpi=144)
            return stream.getvalue()


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each name, from seaborn's colour-blind palette.

    An optimizer of flatkit has the same look in every figure; other names take in their order what
    is left. Neighbours differ in colour, kind of line and mark, so that they can be told apart in
    grey; no two of sixty are alike.

    >>> a, b = looks(["sgd", "gam"]).values()
    >>> a.colour != b.colour, looks(["gam", "mine"])["gam"] == b
    (True, True)
    """
    # Reserved first, so that a name before an optimizer does not take its look.
    taken = {_PLACES[name] for name in names if name in _PLACES}
    left = (place for place in count() if place not in taken)
    places = {name: _PLACES[name] if name in _PLACES else next(left) for name in names}
    palette = seaborn.color_palette("colorblind")
    order = [0, 1, 2, 4, 3, 5, 9, 8, 6, 7]  # green and vermilion, the nearest pair, not adjacent
    return {
        name: Look(
            colour=palette[order[place % len(order)]],
            line=_LINES[place % len(_LINES)],
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
    fixed: bool = False,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of several panels, without pyplot's global state.

    Args:
        count: number of panels.
        width: of a panel, in inches.
        height: of a panel, in inches.
        per_row: number of panels side by side; all by default.
        margins: width and height of the room for colour bar, legend and footnote, in inches.
        fixed: whether panels stay side by side also where they are narrow.
        **options: passed to `Figure.subplots`.

    >>> figure, axes = panels(5, width=2, height=2, per_row=3)
    >>> len(axes), figure.get_size_inches().tolist()
    (5, [6.0, 4.6])
    """
    style = current_style()
    scale, columns = style.scale, min(count, per_row or count)
    side = scale * margins[0]
    if not fixed:
        if style.inches is not None:
            fitting = int((style.inches - side) / (_NARROWEST * scale * width))
            columns = min(columns, max(1, fitting))
        columns = -(-count // -(-count // columns))  # rows of nearly equal length
    if style.inches is None:
        total = columns * width + margins[0]
    else:
        total, wide = style.inches, (style.inches - side) / columns
        # With the width, within limits: neither flat strips nor towers.
        height *= min(1.25 * scale, max(_NARROWEST * scale, wide / width))
    rows = -(-count // columns)
    figure = DrawnFigure(figsize=(total, rows * height + scale * margins[1]), layout="constrained")
    _drawn.get([]).append(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def tidy(axes: Sequence[Axes]) -> None:
    """Leave only the axes that carry ticks, and of these as many as find room.

    >>> figure, axes = panels(1, width=2.0, height=2.0)
    >>> tidy(axes)
    >>> [side for side, spine in axes[0].spines.items() if spine.get_visible()]
    ['left', 'bottom']
    """
    for axis in axes:
        seaborn.despine(ax=axis)
        if type(axis.xaxis.get_major_locator()) is AutoLocator:
            axis.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, steps=[1, 2, 2.5, 5, 10]))


def footnote(figure: Figure, text: str) -> None:
    """Say below all panels what the marks mean.

    >>> figure, _ = panels(1, width=2.0, height=2.0)
    >>> footnote(figure, "x: no number")
    >>> figure.get_supxlabel()
    'x: no number'
    """
    scale = current_style().scale
    lines = wrap(text, int(figure.get_figwidth() / (scale * _INCHES_PER_CHARACTER)))
    figure.supxlabel("\n".join(lines), fontsize=points(_NOTE_SIZE), color=MUTED)
    grow(figure, (len(lines) - _NOTE_LINES) * scale * _LINE_HEIGHT)


def grow(figure: Figure, inches: float) -> None:
    """Make a figure higher by what a legend or note takes, so that its panels stay as they are.

    >>> figure, _ = panels(1, width=2.0, height=2.0)
    >>> grow(figure, 0.4)
    >>> float(figure.get_figheight())
    3.0
    """
    if inches > 0:
        figure.set_figheight(figure.get_figheight() + ceil(100 * inches) / 100)
