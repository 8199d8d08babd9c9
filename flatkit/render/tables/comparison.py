"""Runs side by side: as a table, as plain data, as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text as Line

from flatkit.comparison.functions import objective_differences
from flatkit.comparison.statistics import statistics
from flatkit.comparison.summary import Cell, Summary, summarise
from flatkit.measures.reading import Reading
from flatkit.render.notation import with_spread
from flatkit.render.readings import value_text
from flatkit.render.tables.report import objective_text
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.results.comparison import Comparison

__all__ = [
    "SheetTable",
    "comparison_markdown",
    "comparison_rows",
    "comparison_sheet",
    "comparison_table",
    "objective_differences",
]

_WIDEST_NAME = 30
_EDGES = 2
"""Characters that a table of rich has left and right."""


def comparison_table(comparison: Comparison) -> RenderableType:
    """Return the table of a comparison, for `rich.console.Console.print`.

    A row a group (mean ± standard deviation over its runs) if a group has several runs, else a
    row a run. Columns that the terminal cannot hold go to a further table below. A row is marked
    flattest only if it is flatter than every other beyond the spread.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> reports = {name: Report([Result("trace", trace, 0.5, "standard_error")])
    ...            for name, trace in {"sgd": 9.0, "gam": 2.0}.items()}
    >>> table = comparison_table(
    ...     Comparison([Entry(name, name, report) for name, report in reports.items()])
    ... )
    >>> Console(width=80).print(table)
    L: not recorded
    <BLANKLINE>
     run  trace tr H
     ─────────────────
     sgd   9.00 ± 0.50
     gam  2.00 ± 0.50*
    <BLANKLINE>
    ±: one standard error of the estimate
    *: flattest, beyond all errors that are known
    """
    return SheetTable(comparison_sheet(comparison))


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of `comparison_table` as plain data.

    Returns:
        A dict per row: `name`, `runs`, `spread_is` (`standard deviation over runs` or `error of
        the estimate`), and for every quantity its mean, its `..._spread` (None if unknown),
        `..._converged` and `..._flattest`.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 8.0, 0.5, "standard_error")])
    >>> row = comparison_rows(Comparison([Entry("sgd", "sgd", report)]))[0]
    >>> row["trace"], row["trace_spread"], row["spread_is"]
    (8.0, 0.5, 'error of the estimate')
    """
    rows = []
    for row in summarise(comparison).rows:
        several = row.runs > 1
        data: dict[str, Any] = {"name": row.name, "runs": row.runs}
        data["spread_is"] = "standard deviation over runs" if several else "error of the estimate"
        for key, cell in row.cells.items():
            data[key] = cell.mean
            data[f"{key}_spread"] = cell.spread
            data[f"{key}_converged"] = cell.converged
            data[f"{key}_flattest"] = cell.flattest
        rows.append(data)
    return rows


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison as Markdown: a line a group or run, a column a quantity.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 8.0, 0.5, "standard_error")])
    >>> print(comparison_markdown(Comparison([Entry("sgd", "sgd", report)])))
    | run | trace tr H |
    | :-- | --: |
    | sgd | 8.00 ± 0.50 |
    <BLANKLINE>
    - L: not recorded
    - ±: one standard error of the estimate
    """
    return comparison.table("markdown")


def comparison_sheet(comparison: Comparison) -> Sheet:
    """Return the table of a comparison, for every format.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 8.0, 0.5, "standard_error")])
    >>> comparison_sheet(Comparison([Entry("sgd", "sgd", report)])).rows
    [[Text(plain='sgd', ...), Text(plain='8.00 ± 0.50', ...)]]
    """
    summary = summarise(comparison)
    runs = [Column("runs")] if summary.grouped else []
    return Sheet(
        columns=[
            Column("group" if summary.grouped else "run", number=False),
            *runs,
            *(
                Column(_column_title(summary, key), _measure(summary, key))
                for key in summary.titles
            ),
        ],
        rows=[
            [
                Text(row.name),
                *([Text(str(row.runs))] if summary.grouped else []),
                *(_text(row.cells[key]) for key in summary.titles),
            ]
            for row in summary.rows
        ],
        leading=1 + len(runs),
        head=_functions(comparison),
        warnings=_warnings(comparison, summary),
        notes=_legend(summary),
    )


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
            wide = max(cell_len(line) for line in [*_title(column, cells).split("\n"), *cells])
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


def _title(column: Column, cells: Sequence[str]) -> str:
    """Return a title, broken into lines that are no wider than they must be."""
    widest = max(len("eigenvalue"), *(cell_len(text) for text in cells))
    lines = wrap(column.title.replace(" = ", "\0=\0"), widest, break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def _measure(summary: Summary, key: str) -> str:
    return summary.rows[0].cells[key].readings[0].measure


def _column_title(summary: Summary, key: str) -> str:
    """Return the title of a quantity; lower bounds say so."""
    first: Reading = summary.rows[0].cells[key].readings[0]
    if first.error_kind != "lower_bound":
        return first.title
    symbol, separator, rest = first.title.partition(" (")
    return f"{symbol} ≥{separator}{rest}"


def _text(cell: Cell) -> Text:
    return Text(_plain(cell), strong=cell.flattest, doubtful=not cell.converged)


def _plain(cell: Cell) -> str:
    """Return mean ± spread; of a single run, its value with its standard error, if any."""
    first = cell.readings[0]
    if len(cell.readings) > 1:
        return with_spread(cell.mean, cell.spread or 0.0)
    if first.error_kind == "standard_error" and first.error is not None:
        return with_spread(first.value, first.error)
    return value_text(first).removeprefix("≥ ")  # the title of the column says it


def _styled(text: Text) -> Line:
    style = "bold green" if text.strong else "yellow" if text.doubtful else ""
    return Line(text.marked(), style=style)


def _functions(comparison: Comparison) -> list[str]:
    """Return the measured function in a line, or in a line for each that differs."""
    lines: dict[str, list[str]] = {}
    for entry in comparison.entries:
        lines.setdefault(objective_text(entry.report.objective), []).append(entry.name)
    if len(lines) == 1:
        return [f"L: {next(iter(lines))}"]
    return [f"L of {', '.join(names)}: {line}" for line, names in lines.items()]


def _warnings(comparison: Comparison, summary: Summary) -> list[str]:
    lines = []
    if summary.differences:
        lines.append("! different functions were measured, so the rows do not compare")
        lines += [f"! {difference}" for difference in summary.differences]
    lines += [f"! not converged: {text}" for text in summary.unconverged]
    lines += [f"! {text}" for text in summary.absent]
    if not summary.differences:  # which are among them
        lines += [f"! {text}" for text in statistics(comparison).caveats]
    return lines


def _legend(summary: Summary) -> list[str]:
    cells = [cell for row in summary.rows for cell in row.cells.values()]
    lines = []
    if summary.grouped:
        lines.append(
            "mean ± standard deviation over the runs, or the error of the estimates if larger"
        )
    elif any(cell.readings[0].error_kind == "standard_error" for cell in cells):
        lines.append("±: one standard error of the estimate")
    if any(cell.readings[0].error_kind == "lower_bound" for cell in cells):
        lines.append("≥: lower bounds, the best points that searches in the ball found")
    if any(cell.flattest for cell in cells):
        lines.append("*: flattest, beyond all errors that are known")
    if summary.apart:
        lines.append(f"in the report of each run, not compared: {', '.join(summary.apart)}")
    return lines
