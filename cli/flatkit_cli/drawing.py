"""The options of every figure: its formats, resolution, width and style."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from flatkit_cli.options import F, Names, option

_OPTIONS = (
    option(
        "--formats",
        default="png,svg",
        show_default=True,
        metavar="KIND[,KIND]",
        help="Of figures: png, svg, pdf. In the last two, text stays text.",
        group="Figures",
    ),
    option(
        "--dpi",
        type=float,
        default=160.0,
        show_default=True,
        help="Dots an inch of a png.",
        group="Figures",
    ),
    option(
        "--width",
        type=Names(("column", "text", "slide")),
        help="3.3, 6.9 or 10 inches, with letters that fit.  [default: as the panels need]",
        group="Figures",
    ),
    option(
        "--style-file",
        metavar="FILE",
        help="Settings of matplotlib in the place of ours: a matplotlibrc, or a style by its name.",
        group="Figures",
    ),
)


@dataclass(frozen=True)
class Drawing:
    """How figures are drawn.

    Attributes:
        formats: of `png`, `svg`, `pdf`.
        dpi: dots an inch of a png.
        width: `column`, `text` or `slide`.
        style_file: settings of matplotlib.

    >>> Drawing().formats
    ('png', 'svg')
    """

    formats: tuple[str, ...] = ("png", "svg")
    dpi: float = 160.0
    width: Any = None
    style_file: str | None = None

    def check(self) -> None:
        """Refuse what cannot be drawn, before work starts.

        Raises:
            InvalidArgumentError: another format, a resolution that is none, or no such style.
        """
        from flatkit.render.figures.save import check_formats

        check_formats(self.formats, self.dpi)
        # To enter it reads the style file, and that is all that can fail.
        with self.style():
            pass

    @contextmanager
    def style(self) -> Generator[None, None, None]:
        """Draw inside the block as the options ask."""
        from flatkit.render.style import figure_style

        with figure_style(width=self.width, style_file=self.style_file):
            yield


def drawing_options(command: F) -> F:
    """Add the options of figures; `take_drawing` takes them."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def take_drawing(options: dict[str, Any]) -> Drawing:
    """Take these options out of all of a command; those that it lacks have their defaults.

    >>> options = {"formats": "pdf, png", "dpi": 300.0, "seed": 3}
    >>> take_drawing(options), options
    (Drawing(formats=('pdf', 'png'), dpi=300.0, width=None, style_file=None), {'seed': 3})
    """
    usual = Drawing()
    formats = names_in(options.pop("formats", None)) or usual.formats
    dpi = options.pop("dpi", usual.dpi)
    return Drawing(formats, dpi, options.pop("width", None), options.pop("style_file", None))


def names_in(text: str | None) -> tuple[str, ...]:
    """Return the names that commas separate.

    >>> names_in("csv, vtk,")
    ('csv', 'vtk')
    """
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def check_interactive() -> None:
    """Refuse interactive pages without the package that makes them.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from flatkit.errors import MissingDependencyError

    # Looked for and not imported: it is used after the work, if at all.
    if find_spec("plotly") is None:
        raise MissingDependencyError(
            "interactive pages need the package plotly: pip install 'flatkit[interactive]'"
        )
