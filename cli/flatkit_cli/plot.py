"""The command `flatkit plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit_cli.drawing import Drawing, take_drawing
from flatkit_cli.options import Command
from flatkit_cli.pictures import check_pictures, draw_surfaces, picture_options, show_numbers

if TYPE_CHECKING:
    from flatkit.results.comparison import Comparison

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    cls=Command,
    short_help="draw the figures of saved reports and surfaces again",
    help="""Draw the figures of the reports, comparisons (.json) and surfaces (.npz) in RESULTS...
again.

Nothing is measured; neither the model nor the data are needed. Surfaces of one kind stand side by
side on one scale, and their numbers are printed.

\b
flatkit plot report.json --figures figures
flatkit plot sgd.json gam.json --figures figures
flatkit plot sgd/*.npz gam/*.npz --figures figures --style heat --formats pdf
""",
)
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="RESULTS...")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Draw there.",
)
@click.option(
    "--repeats",
    is_flag=True,
    help="Reports of one name are repetitions of one method: show mean and spread.",
)
@picture_options
def plot(
    files: Sequence[Path],
    figures: Path,
    repeats: bool,
    style: str,
    interactive: bool,
    level: float,
    **options: Any,
) -> None:
    """Draw; the help text is that of the command."""
    from flatkit.comparison.merging import merge
    from flatkit.files import check_writable
    from flatkit.landscape import load_surface
    from flatkit_cli.compare import warn

    drawing = take_drawing(options)
    check_pictures(drawing, level, interactive=interactive)
    surfaces = [load_surface(path) for path in files if path.suffix == ".npz"]
    reports = [path for path in files if path.suffix != ".npz"]
    comparison = merge(reports, repeats=repeats) if reports else None
    check_writable(figures / "figure.png")
    if comparison is not None:
        warn(comparison)
        _draw_reports(comparison, figures, drawing)
    if surfaces:
        draw_surfaces(surfaces, figures, style=style, drawing=drawing, interactive=interactive)
        show_numbers(surfaces, level=level)


def _draw_reports(comparison: "Comparison", figures: Path, drawing: Drawing) -> None:
    from flatkit.errors import NothingToDrawError
    from flatkit.render.plots import what_is_drawn
    from flatkit_cli.output import draw

    if not draw(comparison, figures, drawing):
        raise NothingToDrawError(f"nothing to draw: {what_is_drawn(comparison)}")
