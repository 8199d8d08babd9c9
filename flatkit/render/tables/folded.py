"""Tables of rich that are never squeezed: where they find no room, columns go to a table below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text as Line

from flatkit.render.tables.sheet import Column, Sheet, Text

_ANY_WIDTH = 10_000
"""Characters; no table of ours is so wide."""
_WIDEST_NAME = 30
_EDGES = 2
"""Characters that a table of rich has left and right."""


@dataclass(frozen=True)
class SheetTable:
    """Tables of as many columns as fit beside the names, one below the other, for rich."""

    sheet: Sheet

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the tables for the width at hand, then the notes."""
        for line in self.sheet.head:
            yield Line(line)
        widths = self._widths()
        for part in self.sheet.folded(options.max_width - _EDGES, widths):
            yield self._table(part)
        for line in self.sheet.warnings:
            yield Line(line, style="bold yellow")
        for line in self.sheet.notes:
            yield Line(line, style="dim")

    def _widths(self) -> list[int]:
        found: list[int] = []
        for place, column in enumerate(self.sheet.columns):
            cells = [row[place].marked() for row in self.sheet.rows]
            lines = [*_title(column, cells).split("\n"), *cells]
            wide = max(map(cell_len, lines))
            found.append(wide if column.number else min(wide, _WIDEST_NAME))
        return found

    def _table(self, part: Sheet) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for place, column in enumerate(part.columns):
            title = _title(column, [row[place].marked() for row in part.rows])
            if column.number:
                table.add_column(Line(title), justify="right", no_wrap=True)
            else:
                table.add_column(Line(title), overflow="fold", max_width=_WIDEST_NAME)
        for row in part.rows:
            table.add_row(*(_styled(text) for text in row))
        return table


@dataclass(frozen=True)
class Folded:
    """A table as it is, or folded where it is wider than the terminal.

    rich would cut its numbers (`1.2…` for 1.234) and leave out columns.

    Attributes:
        table: of columns that name the rows, then of others.
        leading: how many name the rows; they are repeated.
        slack: by how many characters it may be narrower, as texts in it can be broken.

    >>> table = Table("epoch", "loss", "trace")
    >>> table.add_row("1", "0.1234", "15.33 ± 0.29")
    >>> Console(width=24).print(Folded(table))
    <BLANKLINE>
     epoch  loss...
     1      0.1234...
     epoch  trace...
     1      15.33 ± 0.29...
    """

    table: Table
    leading: int = 1
    slack: int = 0

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the table, or its parts for the width at hand."""
        # rich measures a table as squeezed into the width that it is told.
        free = options.update(max_width=_ANY_WIDTH)
        natural = Measurement.get(console, free, self.table).maximum
        if natural - self.slack <= options.max_width:
            yield self.table
        else:
            yield SheetTable(self._sheet())

    def _sheet(self) -> Sheet:
        columns = self.table.columns
        rows = zip(*([_plain(cell) for cell in column.cells] for column in columns), strict=True)
        return Sheet(
            [Column(_plain(c.header), number=c.justify == "right") for c in columns],
            [list(map(Text, row)) for row in rows],
            leading=self.leading,
        )


def _plain(cell: RenderableType) -> str:
    """Return the words of a cell of text."""
    line = cell if isinstance(cell, Line) else Line.from_markup(str(cell))
    return " ".join(line.plain.split())


def _title(column: Column, cells: Sequence[str]) -> str:
    """Return a title, broken into lines that are no wider than they must be."""
    # As a list: a table of pairs of one group has no cells.
    widest = max([len("eigenvalue"), *(cell_len(text) for text in cells)])
    # `ρ = 0.1` stays whole: a line that begins with = reads as something else.
    lines = wrap(column.title.replace(" = ", "\0=\0"), widest, break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def _styled(text: Text) -> Line:
    style = "bold green" if text.strong else "yellow" if text.doubtful else ""
    return Line(text.marked(), style=style)
