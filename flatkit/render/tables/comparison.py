"""Runs side by side: as a table, as plain data, as Markdown."""

from typing import Any

from rich.console import RenderableType

from flatkit.comparison.functions import objective_differences
from flatkit.comparison.statistics import statistics
from flatkit.comparison.summary import Cell, Summary, summarise
from flatkit.measures.reading import Reading
from flatkit.render.notation import with_spread
from flatkit.render.readings import value_text
from flatkit.render.tables.folded import SheetTable
from flatkit.render.tables.report import objective_text
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.results.comparison import Comparison

__all__ = [
    "comparison_markdown",
    "comparison_rows",
    "comparison_sheet",
    "comparison_table",
    "objective_differences",
]


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
    >>> from rich.console import Console
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
    # Of several runs the spread is what a reader compares, whatever kind each error is.
    if len(cell.readings) > 1:
        return with_spread(cell.mean, cell.spread or 0.0)
    if first.error_kind == "standard_error" and first.error is not None:
        return with_spread(first.value, first.error)
    return value_text(first).removeprefix("≥ ")  # the title of the column says it


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
        if any(len(cell.trainings) < len(cell.readings) for cell in cells):
            lines.append("runs of one seed are one training, and count once")
    elif any(cell.readings[0].error_kind == "standard_error" for cell in cells):
        lines.append("±: one standard error of the estimate")
    if any(cell.readings[0].error_kind == "lower_bound" for cell in cells):
        lines.append("≥: lower bounds, the best points that searches in the ball found")
    if any(cell.flattest for cell in cells):
        lines.append("*: flattest, beyond all errors that are known")
    if summary.apart:
        lines.append(f"in the report of each run, not compared: {', '.join(summary.apart)}")
    return lines
