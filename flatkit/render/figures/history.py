"""The figure of the training: loss, accuracy and learning rate of several runs by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flatkit.errors import InvalidArgumentError
from flatkit.render.figures.heights import spans_decades
from flatkit.render.figures.legend import legend_above, marks, run_handles
from flatkit.render.style import MUTED, Line, Look, looks, panels, styled, tidy


@runtime_checkable
class EpochLike(Protocol):
    """A row of a history that can say itself as plain data."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return the row by column."""
        ...


Row: TypeAlias = "Mapping[str, Any] | EpochLike"

_PANELS: Mapping[str, Sequence[tuple[str, Line]]] = {
    "loss": (("train_loss", "-"), ("test_loss", "--")),
    "accuracy (%)": (("train_accuracy", "-"), ("test_accuracy", "--")),
    "learning rate": (("lr", "-"),),
}


def history_figure(histories: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw loss, accuracy and learning rate of runs against the epoch, a panel each.

    Args:
        histories: by name of the run; rows hold `epoch` and any of `train_loss`, `test_loss`,
            `train_accuracy`, `test_accuracy` (in [0, 1]) and `lr`.

    Raises:
        InvalidArgumentError: there is no row, or none of these columns.

    >>> rows = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}]
    >>> [axis.get_ylabel() for axis in history_figure({"sgd": rows}).axes]
    ['loss']
    """
    runs = {name: [_plain(row) for row in rows] for name, rows in histories.items()}
    shown = [
        label
        for label, columns in _PANELS.items()
        if any(key in row for rows in runs.values() for row in rows for key, _ in columns)
    ]
    if not shown:
        raise InvalidArgumentError("histories must hold at least one run with one epoch, got none")
    style = looks(list(runs))
    with styled():
        figure, axes = panels(len(shown), width=3.2, height=2.5, margins=(0.0, 0.6))
        for axis, label in zip(axes, shown, strict=True):
            for number, (name, rows) in enumerate(runs.items()):
                _draw(axis, rows, label, style[name], number)
            _finish(axis, label)
        tidy(axes)
        _legend(figure, style)
    return figure


def _plain(row: Row) -> Mapping[str, Any]:
    return row.to_dict() if isinstance(row, EpochLike) else row


def _draw(
    axis: Axes, rows: Sequence[Mapping[str, Any]], label: str, look: Look, number: int
) -> None:
    scale = 100.0 if label.startswith("accuracy") else 1.0
    for key, line in _PANELS[label]:
        # Between evaluations rows hold no loss; their neighbours are joined.
        points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        epochs, values = [epoch for epoch, _ in points], [scale * value for _, value in points]
        own = marks(look, len(points), number)
        axis.plot(epochs, values, line, color=look.colour, linewidth=1.3, alpha=0.9, **own)


def _finish(axis: Axes, label: str) -> None:
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.margins(x=0.02)
    values = [float(y) for line in axis.lines for y in line.get_ydata()]  # type: ignore[union-attr]
    if label == "loss" and spans_decades(values):
        axis.set_yscale("log")


def _legend(figure: Figure, style: Mapping[str, Look]) -> None:
    data: Sequence[tuple[str, Line]] = (("train", "-"), ("test", "--"))
    dashes = [Line2D([], [], color=MUTED, linestyle=line, label=name) for name, line in data]
    legend_above(figure, [*run_handles(style, marker=True), *dashes], columns=6)
