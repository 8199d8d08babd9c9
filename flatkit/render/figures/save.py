"""Figures in files: PNG and SVG, whole or absent, the same bytes for the same results."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from matplotlib.figure import Figure

from flatkit.checks import check_choice
from flatkit.errors import FlatkitError, ResultError
from flatkit.files.atomic import make_folder, write_atomically
from flatkit.measures.registry import MEASURES
from flatkit.render.figures.curvature import curvature_figure, has_curvature
from flatkit.render.figures.series import has_series, series_figure
from flatkit.render.style import styled
from flatkit.results import Comparison

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": 160, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},  # a date would make every file a new one
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Options of `Figure.savefig` by suffix."""
Draw: TypeAlias = Callable[[Comparison], Figure]


def save_figure(
    figure: Figure, folder: str | Path, name: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Write a figure as `name.png` (160 dpi) and `name.svg`, the same bytes every time.

    Args:
        figure: what to write.
        folder: for the files; made if it is missing.
        name: of the files, without suffix.
        formats: of `png`, `svg`, `pdf`.

    Raises:
        InvalidArgumentError: another format.
        OutputError: the folder or a file cannot be written.

    >>> import tempfile
    >>> [path.name for path in save_figure(Figure(figsize=(1, 1)), tempfile.mkdtemp(), "empty")]
    ['empty.png', 'empty.svg']
    """
    for suffix in formats:
        check_choice("format", suffix, FORMATS)
    folder = make_folder(folder)
    return [
        write_atomically(folder / f"{name}.{suffix}", _writer(figure, suffix)) for suffix in formats
    ]


def save_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write every figure that the results allow; that of curvature needs two runs.

    Figures that were in the folder under other names stay.

    Raises:
        OutputError: the folder or a file cannot be written.
        ResultError: a result is malformed.

    >>> import tempfile
    >>> from flatkit.results import Entry, Report
    >>> save_figures(Comparison([Entry("empty", "empty", Report([]))]), tempfile.mkdtemp())
    []
    """
    written: list[Path] = []
    for name, draw in _figures(comparison).items():
        written += save_figure(_draw(comparison, name, draw), folder, name)
    return written


def _figures(comparison: Comparison) -> dict[str, Draw]:
    """Return what draws each figure: those that the measures name, then those of several runs."""
    measured = {result.measure for entry in comparison.entries for result in entry.report}
    found = {
        name: _import(draw)
        for measure in MEASURES
        if measure in measured
        for name, draw in MEASURES[measure].figures.items()
    }
    if has_series(comparison):
        found["series"] = series_figure
    if has_curvature(comparison):
        found["curvature"] = curvature_figure
    return found


def _import(reference: str) -> Draw:
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def _draw(comparison: Comparison, name: str, draw: Draw) -> Figure:
    try:
        return draw(comparison)
    except FlatkitError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # The results come from a file: what is not of their shape is the file's fault.
        raise ResultError(f"cannot draw the {name}: malformed result ({error!r})") from error


def _writer(figure: Figure, suffix: str) -> Callable[[BinaryIO], None]:
    def write(stream: BinaryIO) -> None:
        with styled():
            figure.savefig(stream, format=suffix, **FORMATS[suffix])

    return write
