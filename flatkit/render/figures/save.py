"""Figures in files: PNG and SVG, whole or absent, the same bytes for the same results."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from matplotlib.figure import Figure

from flatkit.checks import check_choice, check_positive
from flatkit.errors import FlatkitError, InvalidArgumentError, NothingToDrawError, ResultError
from flatkit.files.atomic import make_folder, write_atomically
from flatkit.render.plots import of_results
from flatkit.render.style import styled
from flatkit.results.comparison import Comparison

FORMATS: Mapping[str, Mapping[str, Any]] = {
    # Left out: the version of matplotlib and the time, which would make every file a new one.
    "png": {"metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Options of `Figure.savefig` by suffix."""
Draw: TypeAlias = Callable[[Comparison], Figure]


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    formats: Sequence[str] = ("png", "svg"),
    *,
    dpi: float = 160,
) -> list[Path]:
    """Write a figure as `name.png` and `name.svg`, the same bytes every time.

    Args:
        figure: what to write.
        folder: for the files; made if it is missing.
        name: of the files, without suffix.
        formats: of `png`, `svg`, `pdf`. In the last two, text stays text.
        dpi: dots an inch of what is drawn in dots.

    Raises:
        InvalidArgumentError: another format, or a `dpi` that is not positive.
        OutputError: the folder or a file cannot be written.

    >>> import tempfile
    >>> [path.name for path in save_figure(Figure(figsize=(1, 1)), tempfile.mkdtemp(), "empty")]
    ['empty.png', 'empty.svg']
    """
    check_formats(formats, dpi)
    folder, layout = make_folder(folder), figure.get_layout_engine()
    written: list[Path] = []
    try:
        for suffix in formats:
            written.append(
                write_atomically(folder / f"{name}.{suffix}", _writer(figure, suffix, dpi))
            )
            # The first file has laid the figure out, which takes as long as drawing it.
            figure.set_layout_engine(None)
    finally:
        figure.set_layout_engine(layout)
    return written


def check_formats(formats: Sequence[str], dpi: float) -> None:
    """Refuse formats that no figure has, and a resolution that is none.

    Raises:
        InvalidArgumentError: another format, none, or a `dpi` that is not positive.

    >>> check_formats(["png", "pdf"], 300)
    """
    if not formats or isinstance(formats, str):
        raise InvalidArgumentError(
            f"formats must be a list of {', '.join(FORMATS)}, got {formats!r}"
        )
    for suffix in formats:
        check_choice("formats", suffix, FORMATS)
    check_positive("dpi", dpi)


def save_figures(
    comparison: Comparison,
    folder: str | Path,
    formats: Sequence[str] = ("png", "svg"),
    *,
    dpi: float = 160,
) -> list[Path]:
    """Write every figure that the results allow.

    Those are the figures that the measures of the results name, then those of several runs: of
    checkpoints of one training, and of curvature side by side. Other files in the folder stay, and
    it is not made before there is something to draw.

    Args:
        comparison: the results.
        folder: for the files.
        formats: as of `save_figure`.
        dpi: as of `save_figure`.

    Raises:
        OutputError: the folder or a file cannot be written.
        ResultError: a result is malformed.

    >>> import tempfile
    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> save_figures(Comparison([Entry("empty", "empty", Report([]))]), tempfile.mkdtemp())
    []
    """
    check_formats(formats, dpi)
    written: list[Path] = []
    for name, reference in of_results(comparison).items():
        figure = drawn(comparison, name, reference)
        if figure is not None:
            written += save_figure(figure, folder, name, formats, dpi=dpi)
    return written


def drawn(comparison: Comparison, name: str, reference: str) -> Figure | None:
    """Return a figure, or None where the results hold nothing that it shows.

    What draws it is imported now: what a package breaks does not take other figures along.

    Raises:
        ResultError: a result is malformed.

    >>> reference = "flatkit.render.figures.planes:plane_figure"
    >>> drawn(Comparison([]), "plane", reference) is None
    True
    """
    try:
        return _import(reference)(comparison)
    except NothingToDrawError:
        return None
    except FlatkitError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # The results come from a file: what is not of their shape is the file's fault.
        raise ResultError(f"cannot draw the {name}: malformed result ({error!r})") from error


def _import(reference: str) -> Draw:
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def _writer(figure: Figure, suffix: str, dpi: float) -> Callable[[BinaryIO], None]:
    def write(stream: BinaryIO) -> None:
        with styled():
            figure.savefig(stream, format=suffix, dpi=dpi, **FORMATS[suffix])

    return write
