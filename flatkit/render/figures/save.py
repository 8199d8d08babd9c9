"""Figures in files: PNG and SVG, whole or absent, the same bytes for the same results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from flatkit.checks import check_choice
from flatkit.errors import FlatkitError, ResultError
from flatkit.files.atomic import make_folder, write_atomically
from flatkit.render.figures.curvature import curvature_figure, has_curvature
from flatkit.render.figures.flatness import flatness_figure, has_flatness
from flatkit.render.figures.planes import has_plane, plane_figure
from flatkit.render.figures.series import has_series, series_figure
from flatkit.render.figures.slices import has_slice, slice_figure
from flatkit.render.figures.spectra import density_figure, has, layer_figure
from flatkit.render.style import styled
from flatkit.results import Comparison

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": 160, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},  # a date would make every file a new one
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Options of `Figure.savefig` by suffix."""


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
    written = []
    for name, (allowed, draw) in _FIGURES.items():
        figure = _draw(comparison, name, allowed, draw)
        if figure is not None:
            written += save_figure(figure, folder, name)
    return written


def _draw(
    comparison: Comparison,
    name: str,
    allowed: Callable[[Comparison], bool],
    draw: Callable[[Comparison], Figure],
) -> Figure | None:
    try:
        return draw(comparison) if allowed(comparison) else None
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


_FIGURES: Mapping[str, tuple[Callable[[Comparison], bool], Callable[[Comparison], Figure]]] = {
    "slice": (has_slice, slice_figure),
    "plane": (has_plane, plane_figure),
    "flatness": (has_flatness, flatness_figure),
    "series": (has_series, series_figure),
    "curvature": (has_curvature, curvature_figure),
    "density": (has("spectral_density"), density_figure),
    "layers": (has("layer_curvature"), layer_figure),
}
