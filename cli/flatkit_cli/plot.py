"""The command `flatkit plot`."""

from collections.abc import Sequence
from pathlib import Path

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    short_help="draw the figures of saved reports again",
    help="""Draw the figures of the reports and comparisons in RESULTS.json... again.

Nothing is measured; neither the model nor the data are needed.

\b
flatkit plot report.json --figures figures
flatkit plot sgd.json gam.json --figures figures
""",
)
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="RESULTS.json...")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Draw PNG and SVG there.",
)
@click.option(
    "--repeats",
    is_flag=True,
    help="Reports of one name are repetitions of one method: show mean and spread.",
)
def plot(files: Sequence[Path], figures: Path, repeats: bool) -> None:
    """Draw; the help text is that of the command."""
    from flatkit.errors import ResultError
    from flatkit.files import check_writable, make_folder
    from flatkit_cli.compare import draw, merge, warn

    comparison = merge(files, repeats=repeats)
    check_writable(make_folder(figures) / "figure.png")
    warn(comparison)
    if not draw(comparison, figures):
        measures = ", ".join(
            sorted({result.measure for entry in comparison.entries for result in entry.report})
        )
        raise ResultError(
            "nothing to draw: figures need loss_slice, loss_plane, R0, R1, or curvature of two "
            f"runs; the files hold {measures or 'no result'}"
        )
