"""Where a command puts its report: a table or JSON on stdout, a JSON file, figures in a folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.files import check_writable, write_text_atomically
from flatkit_cli.drawing import Drawing, drawing_options, take_drawing
from flatkit_cli.launched import speaks
from flatkit_cli.options import F, Names, option
from flatkit_cli.spelling import json_here

if TYPE_CHECKING:
    from flatkit.results.comparison import Comparison
    from flatkit.results.report import Report


@dataclass(frozen=True)
class Output:
    """What the options ask for.

    Attributes:
        json_file: where to save the report; `-` prints it alone.
        figures: the folder to draw in.
        format: of the table on stdout.
        page: where to write the page of HTML.
        drawing: how figures are drawn.
        pairs: whether the differences between groups are shown below.
        markdown: where to write the table of a comparison.
    """

    json_file: str | None
    figures: Path | None
    format: str = "text"
    page: Path | None = None
    drawing: Drawing = field(default_factory=Drawing)
    pairs: bool = False
    markdown: Path | None = None

    @property
    def journal(self) -> Path | None:
        """Where finished passes are kept: beside the report, if there is one."""
        # Without a file the next run could not name the journal, and would not find it.
        if self.json_file in (None, "-"):
            return None
        return Path(f"{self.json_file}.journal")

    def check(self) -> None:
        """Refuse what cannot be written, before work starts; nothing is made yet.

        Raises:
            OutputError: the file or folder cannot be written.
        """
        if not speaks():
            return
        if self.json_file not in (None, "-"):
            check_writable(self.json_file)
        if self.figures is not None:
            self.drawing.check()
            # No figure has this name: tried is whether the folder takes a file.
            check_writable(self.figures / "figure.png")
        for file in (self.page, self.markdown):
            if file is not None:
                check_writable(file)

    def write(
        self, result: "Report | Comparison", drawn: "Comparison", show: Callable[[], object]
    ) -> None:
        """Save the result, draw what is asked for, then print it, as JSON or as `show` does.

        Args:
            result: what was measured.
            drawn: the same as a comparison, for figures and the page.
            show: prints it otherwise.
        """
        if not speaks():
            return
        try:
            # Before anything is read from the results, which the code of others may do, and fail.
            if self.json_file not in (None, "-"):
                saved = result.save(self.json_file)
                click.echo(f"{type(result).__name__.lower()}: {saved}", err=True)
            self.draw(drawn)
        finally:
            # Last, as the reader of a pipe may be gone, and takes no file along then; and also
            # where the disk is full, which must not cost the numbers.
            if self.json_file == "-":
                click.echo(json_here(result.to_json()))
            else:
                show()

    def show(self, result: "Report | Comparison", text: Callable[[], Any]) -> None:
        """Print a table of the result: `text()` for the terminal, or in the format asked for."""
        if self.format == "text":
            show(text())
        else:
            click.echo(result.table(self.format))
        if self.pairs:
            from flatkit.render.tables.formats import table

            click.echo(f"\n{table(result, self.format, pairs=True)}")

    def draw(self, comparison: "Comparison") -> None:
        """Write table, figures and page, if they are asked for; say why there are no figures."""
        if self.markdown is not None:
            text = comparison.table("markdown") + "\n"
            click.echo(f"table: {write_text_atomically(self.markdown, text)}", err=True)
        if self.figures is not None and not draw(comparison, self.figures, self.drawing):
            from flatkit.render.plots import what_is_drawn

            click.echo(f"figures: none, {what_is_drawn(comparison)}", err=True)
        if self.page is not None:
            click.echo(f"page: {comparison.to_html(self.page)}", err=True)


def output_options(command: F) -> F:
    """Add `--json`, `--figures`, how these are drawn, and `--html`; `take_output` takes them."""
    page = option(
        "--html",
        "page",
        type=click.Path(path_type=Path),
        metavar="FILE",
        group="Output",
        help="Write a page: verdict, tables, figures, where from; one file, no network.",
    )
    figures = option(
        "--figures",
        type=click.Path(path_type=Path),
        metavar="DIR",
        group="Output",
        help="Draw there.",
    )
    saved = option(
        "--json",
        "json_file",
        metavar="FILE",
        group="Output",
        help="Save the report; - prints it alone.",
    )
    return saved(figures(page(drawing_options(command))))


def format_option(command: F) -> F:
    """Add `--format`, which `take_output` takes, too."""
    return option(
        "--format",
        "table_format",
        type=Names(("text", "markdown", "latex", "csv", "html")),
        default="text",
        show_default=True,
        group="Output",
        help="Of the table that is printed.",
    )(command)


def pairs_option(command: F) -> F:
    """Add `--pairs`, which `take_output` takes, too."""
    return option(
        "--pairs",
        is_flag=True,
        group="Output",
        help="Also the difference of every two groups, with its 95 % interval and corrected p.",
    )(command)


def take_output(options: dict[str, Any]) -> Output:
    """Take these options out of all of a command.

    >>> options = {"json_file": "-", "figures": None, "page": None, "seed": 3}
    >>> take_output(options), options
    (Output(json_file='-', figures=None, format='text', page=None, ...), {'seed': 3})
    """
    return Output(
        options.pop("json_file"),
        options.pop("figures"),
        options.pop("table_format", "text"),
        options.pop("page"),
        take_drawing(options),
        options.pop("pairs", False),
        options.pop("markdown", None),
    )


def draw(comparison: "Comparison", folder: Path, drawing: Drawing) -> list[Path]:
    """Write the figures of a comparison, and say how many, if any."""
    from flatkit.render import save_figures

    with drawing.style():
        written = save_figures(comparison, folder, drawing.formats, dpi=drawing.dpi)
    if written:
        click.echo(f"figures: {len(written)} files in {folder}", err=True)
    return written


def show(renderable: Any) -> None:
    """Print what the tables of `flatkit.render` return."""
    from rich.console import Console

    Console().print(renderable)
