"""Runs side by side: as a table, as plain data, as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from flatkit.comparison.functions import objective_differences
from flatkit.comparison.summary import Cell, Summary, summarise
from flatkit.measures.reading import Reading
from flatkit.render.notation import with_spread
from flatkit.render.readings import value_text
from flatkit.render.tables.report import objective_text
from flatkit.results.comparison import Comparison

__all__ = [
    "comparison_markdown",
    "comparison_rows",
    "comparison_table",
    "objective_differences",
]

_WIDEST_NAME = 30
_GAP = 2


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
            trace tr H
     ─────────────────
     sgd   9.00 ± 0.50
     gam  2.00 ± 0.50*
    <BLANKLINE>
    ±: one standard error of the estimate
    *: flattest, beyond the errors of the estimates
    """
    return _Blocks(summarise(comparison), _functions(comparison))


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
    """Return a comparison as Markdown: a line a quantity, a column a group or run.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 8.0, 0.5, "standard_error")])
    >>> print(comparison_markdown(Comparison([Entry("sgd", "sgd", report)])))
    | quantity | sgd |
    | :-- | --: |
    | trace tr H | 8.00 ± 0.50 |
    <BLANKLINE>
    - L: not recorded
    - ±: one standard error of the estimate
    """
    summary = summarise(comparison)
    names = [row.name for row in summary.rows]
    lines = [_markdown_row(["quantity", *names]), _markdown_row([":--", *["--:"] * len(names)])]
    if summary.grouped:
        lines.append(_markdown_row(["runs", *(str(row.runs) for row in summary.rows)]))
    for key in summary.titles:
        cells = [row.cells[key] for row in summary.rows]
        texts = [f"**{_text(cell)}**" if cell.flattest else _text(cell) for cell in cells]
        lines.append(_markdown_row([_column_title(summary, key), *texts]))
    notes = [*_functions(comparison), *_warnings(summary), *_legend(summary, mark="bold")]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


@dataclass(frozen=True)
class _Blocks:
    """Tables of as many columns as fit beside the names, one below the other."""

    summary: Summary
    functions: Sequence[str]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the tables for the width at hand, then the notes."""
        for line in self.functions:
            yield Text(line)
        for keys in self._packed(options.max_width):
            yield self._table(keys)
        for line in _warnings(self.summary):
            yield Text(line, style="bold yellow")
        for line in _legend(self.summary, mark="*"):
            yield Text(line, style="dim")

    def _packed(self, width: int) -> list[list[str]]:
        blocks: list[list[str]] = [[]]
        names = min(_WIDEST_NAME, max(cell_len(row.name) for row in self.summary.rows))
        fixed = names + 2 + (4 + _GAP if self.summary.grouped else 0)
        used = fixed
        for key in self.summary.titles:
            needed = self._width(key) + _GAP
            if blocks[-1] and used + needed > width:
                blocks.append([])
                used = fixed
            blocks[-1].append(key)
            used += needed
        return blocks

    def _table(self, keys: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("", overflow="fold", max_width=_WIDEST_NAME)
        if self.summary.grouped:
            table.add_column("runs", justify="right")
        for key in keys:
            table.add_column(self._header(key), justify="right", no_wrap=True)
        for row in self.summary.rows:
            runs = [str(row.runs)] if self.summary.grouped else []
            table.add_row(Text(row.name), *runs, *(_styled(row.cells[key]) for key in keys))
        return table

    def _width(self, key: str) -> int:
        return max(
            cell_len(line) for line in [*self._header(key).plain.split("\n"), *self._texts(key)]
        )

    def _header(self, key: str) -> Text:
        """Return the title, broken into lines that are no wider than they must be."""
        title = _column_title(self.summary, key)
        widest = max(len("eigenvalue"), *(cell_len(text) for text in self._texts(key)))
        lines = wrap(title.replace(" = ", "\0=\0"), widest, break_long_words=False)
        return Text("\n".join(lines).replace("\0", " "))

    def _texts(self, key: str) -> list[str]:
        return [_marked(row.cells[key]) for row in self.summary.rows]


def _column_title(summary: Summary, key: str) -> str:
    """Return the title of a quantity; lower bounds say so."""
    first: Reading = summary.rows[0].cells[key].readings[0]
    if first.error_kind != "lower_bound":
        return first.title
    symbol, separator, rest = first.title.partition(" (")
    return f"{symbol} ≥{separator}{rest}"


def _text(cell: Cell) -> str:
    return _plain(cell) + ("" if cell.converged else "!")


def _plain(cell: Cell) -> str:
    """Return mean ± spread; of a single run, its value with its standard error, if any."""
    first = cell.readings[0]
    if len(cell.readings) > 1:
        return with_spread(cell.mean, cell.spread or 0.0)
    if first.error_kind == "standard_error" and first.error is not None:
        return with_spread(first.value, first.error)
    return value_text(first).removeprefix("≥ ")  # the title of the column says it


def _marked(cell: Cell) -> str:
    return _text(cell) + ("*" if cell.flattest else "")


def _styled(cell: Cell) -> Text:
    style = "" if cell.converged else "yellow"
    return Text(_marked(cell), style="bold green" if cell.flattest else style)


def _functions(comparison: Comparison) -> list[str]:
    """Return the measured function in a line, or in a line for each that differs."""
    lines: dict[str, list[str]] = {}
    for entry in comparison.entries:
        lines.setdefault(objective_text(entry.report.objective), []).append(entry.name)
    if len(lines) == 1:
        return [f"L: {next(iter(lines))}"]
    return [f"L of {', '.join(names)}: {line}" for line, names in lines.items()]


def _warnings(summary: Summary) -> list[str]:
    lines = []
    if summary.differences:
        lines.append("! different functions were measured, so the rows do not compare")
        lines += [f"! {difference}" for difference in summary.differences]
    lines += [f"! not converged: {text}" for text in summary.unconverged]
    if summary.left_out:
        lines.append(f"! not measured in every run, so left out: {', '.join(summary.left_out)}")
    if summary.unknown:
        names = ", ".join(summary.unknown)
        lines.append(f"! of packages that are not installed here, so left out: {names}")
    return lines


def _legend(summary: Summary, *, mark: str) -> list[str]:
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
        beyond = "the spread over the runs" if summary.grouped else "the errors of the estimates"
        lines.append(f"{mark}: flattest, beyond {beyond}")
    return lines


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
