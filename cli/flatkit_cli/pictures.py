"""The options of pictures of surfaces, and how the commands draw them and show their numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit_cli.options import option

if TYPE_CHECKING:
    from flatkit.landscape import Surface

_OPTIONS = (
    option(
        "--style",
        type=click.Choice(["contour", "heat"]),
        default="contour",
        show_default=True,
        help="Of planes seen from above.",
        group="Pictures",
    ),
    option(
        "--formats",
        default="png,svg",
        show_default=True,
        metavar="KIND[,KIND]",
        help="Of the pictures of surfaces: png, svg, pdf.",
        group="Pictures",
    ),
    option(
        "--interactive",
        is_flag=True,
        help="Also an HTML page of planes, to turn and zoom.",
        group="Pictures",
    ),
    option(
        "--level",
        type=float,
        default=0.1,
        show_default=True,
        help="Rise of the loss that ends a basin, in the table of numbers.",
        group="Pictures",
    ),
)


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of pictures to a command."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def names_in(text: str | None) -> tuple[str, ...]:
    """Return the names that commas separate.

    >>> names_in("csv, vtk,")
    ('csv', 'vtk')
    """
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def draw_surfaces(
    surfaces: "Sequence[Surface]",
    folder: Path,
    *,
    style: str,
    formats: str,
    interactive: bool,
) -> None:
    """Write the pictures of surfaces, and say how many."""
    from flatkit.render.figures.surfaces import save_pictures

    written = save_pictures(
        surfaces,
        folder,
        style=style,  # type: ignore[arg-type]
        formats=names_in(formats),
        interactive=interactive,
    )
    click.echo(f"pictures: {len(written)} files in {folder}", err=True)


def show_numbers(surfaces: "Sequence[Surface]", *, level: float) -> None:
    """Print the numbers of surfaces."""
    from rich.console import Console

    from flatkit.render.tables.surfaces import numbers_table

    Console().print(numbers_table(surfaces, level=level))


def check_pictures(formats: str, level: float, *, interactive: bool) -> None:
    """Refuse what cannot be drawn, before work starts."""
    from importlib.util import find_spec

    from flatkit.checks import check_choice, check_positive
    from flatkit.errors import MissingDependencyError

    for name in names_in(formats):
        check_choice("formats", name, ("png", "svg", "pdf"))
    check_positive("level", level)
    if interactive and find_spec("plotly") is None:
        raise MissingDependencyError(
            "interactive pages need the package plotly: pip install 'flatkit[interactive]'"
        )
