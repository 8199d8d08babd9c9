"""Tables as text, Markdown, LaTeX, CSV and HTML."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console

from flatkit.checks import check_choice
from flatkit.render.frames import COLUMNS, as_comparison, tidy_rows
from flatkit.render.tables.comparison import comparison_sheet, comparison_table
from flatkit.render.tables.folded import SheetTable
from flatkit.render.tables.latex import latex
from flatkit.render.tables.pairs import PAIR_COLUMNS, pairs_rows, pairs_sheet
from flatkit.render.tables.report import report_sheet, report_table
from flatkit.render.tables.sheet import Sheet, Text
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report

FORMATS = ("text", "markdown", "latex", "csv", "html")

_TEXT_WIDTH = 100
"""Characters of a line of text, which is no file of a terminal."""
_MOST_NOTES = 6
"""Lines below a table of HTML that are shown at once."""


def table(shown: Comparison | Report, format: str = "text", *, pairs: bool = False) -> str:
    """Return the table of a report or comparison.

    `markdown` and `latex` fold wide tables by measure, `html` scrolls, `csv` holds a number a row
    in full precision, with the columns of `flatkit.render.frames.COLUMNS`.

    Args:
        shown: a report or comparison.
        format: `text`, `markdown`, `latex` (needs the package booktabs alone), `csv` or `html`.
        pairs: of a comparison, the differences between its groups instead.

    Raises:
        InvalidArgumentError: another format.
        ResultError: a comparison without runs, or a malformed result.

    >>> from flatkit.results.result import Result
    >>> print(table(Report([Result("trace", 8.04, 0.1, "standard_error")]), "markdown"))
    | quantity | value | error | status |
    | :-- | --: | :-- | :-- |
    | trace tr H | 8.04 | ± 0.10 | converged |
    ...
    """
    check_choice("format", format, FORMATS)
    if pairs and isinstance(shown, Comparison):
        if format == "csv":
            return _csv(pairs_rows(shown), PAIR_COLUMNS)
        return in_format(pairs_sheet(shown), format)
    if format == "csv":
        return _csv(tidy_rows(as_comparison(shown)), COLUMNS)
    if format == "text":
        whole = comparison_table(shown) if isinstance(shown, Comparison) else report_table(shown)
        return _plain(whole)
    sheet = comparison_sheet(shown) if isinstance(shown, Comparison) else report_sheet(shown)
    return in_format(sheet, format)


def in_format(sheet: Sheet, format: str) -> str:
    """Return a sheet as text, Markdown, LaTeX or HTML."""
    writers: Mapping[str, Callable[[Sheet], str]] = {
        "text": lambda sheet: _plain(SheetTable(sheet)),
        "markdown": markdown,
        "latex": latex,
        "html": html,
    }
    return writers[format](sheet)


def markdown(sheet: Sheet, *, width: int = _TEXT_WIDTH) -> str:
    r"""Return a sheet as Markdown; the flattest of a column is bold.

    >>> from flatkit.render.tables.sheet import Column
    >>> columns = [Column("run", number=False), Column("trace")]
    >>> print(markdown(Sheet(columns, [[Text("a|b"), Text("2.0", strong=True)]])))
    | run | trace |
    | :-- | --: |
    | a\|b | **2.0** |
    """
    tables: list[str] = []
    for part in sheet.folded(width):
        lines = [
            _markdown_row([column.title for column in part.columns]),
            _markdown_row(["--:" if column.number else ":--" for column in part.columns]),
        ]
        for row in part.rows:
            lines.append(
                _markdown_row([f"**{t.marked('')}**" if t.strong else t.marked("") for t in row])
            )
        tables.append("\n".join(lines))
    notes = [*sheet.head, *sheet.warnings, *sheet.notes_marked("bold")]
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in notes)]).rstrip()


def html(sheet: Sheet) -> str:
    """Return a sheet as HTML, in the colours of the page around it; wide ones scroll.

    >>> from flatkit.render.tables.sheet import Column
    >>> "<td>a&lt;b</td>" in html(Sheet([Column("run", number=False)], [[Text("a<b")]]))
    True
    """
    heads = "".join(f"<th{_right(column.number)}>{escape(column.title)}</th>" for column in
                    sheet.columns)  # fmt: skip
    rows = "\n".join(
        f"<tr>{''.join(_html_cell(t, c.number) for t, c in zip(row, sheet.columns, strict=True))}"
        "</tr>"
        for row in sheet.rows
    )
    above = "".join(f"<p>{escape(line)}</p>" for line in sheet.head)
    notes = [*sheet.warnings, *sheet.notes_marked("bold")]
    below = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes)}</ul>" if notes else ""
    if len(notes) > _MOST_NOTES:
        below = f"<details><summary>{len(notes)} notes</summary>{below}</details>"
    return (
        f'<div class="flatkit" style="overflow-x:auto">{above}\n'
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">\n'
        f'<thead style="border-bottom:1px solid"><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n"
        f'<div style="font-size:smaller;opacity:0.8">{below}</div>\n</div>'
    )


def _right(number: bool) -> str:
    return ' style="text-align:right;padding:2px 8px"' if number else ' style="padding:2px 8px"'


def _html_cell(text: Text, number: bool) -> str:
    words = escape(text.marked(""))
    if not number:
        return f"<td>{words}</td>"
    # One line, as the table scrolls: a value and its error belong together.
    style = ' style="text-align:right;padding:2px 8px;white-space:nowrap"'
    return f"<td{style}>{f'<strong>{words}</strong>' if text.strong else words}</td>"


def _markdown_row(cells: Sequence[str]) -> str:
    # A line break, which the name of a file may hold, would end the table.
    lines = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(lines) + " |"


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def _plain(renderable: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=_TEXT_WIDTH, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")
