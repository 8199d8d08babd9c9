"""The options of pictures of surfaces, and how the commands draw them and show their numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit_cli.drawing import Drawing, check_interactive, drawing_options
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
        group="Figures",
    ),
    option(
        "--interactive",
        is_flag=True,
        help="Also an HTML page of planes, to turn and zoom.",
        group="Figures",
    ),
    option(
        "--level",
        type=float,
        default=0.1,
        show_default=True,
        help="Rise of the loss that ends a basin, in the table of numbers.",
        group="Figures",
    ),
)


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of pictures to a command, and those of every figure."""
    command = drawing_options(command)
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def draw_surfaces(
    surfaces: "Sequence[Surface]",
    folder: Path,
    *,
    style: str,
    drawing: Drawing,
    interactive: bool,
) -> None:
    """Write the pictures of surfaces, and say how many."""
    from flatkit.render.figures.surfaces import save_pictures

    with drawing.style():
        written = save_pictures(
            surfaces,
            folder,
            style=style,  # type: ignore[arg-type]
            formats=drawing.formats,
            dpi=drawing.dpi,
            interactive=interactive,
        )
    click.echo(f"pictures: {len(written)} files in {folder}", err=True)


def show_numbers(surfaces: "Sequence[Surface]", *, level: float) -> None:
    """Print the numbers of surfaces."""
    from rich.console import Console

    from flatkit.render.tables.surfaces import numbers_table

    Console().print(numbers_table(surfaces, level=level))


def check_pictures(drawing: Drawing, level: float, *, interactive: bool) -> None:
    """Refuse what cannot be drawn, before work starts."""
    from flatkit.checks import check_positive

    drawing.check()
    check_positive("level", level)
    if interactive:
        check_interactive()
