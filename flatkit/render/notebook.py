"""What a notebook shows of an object: short HTML in the colours of its page, and its figures."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy

from flatkit.comparison.readings import readings
from flatkit.landscape.surface import Surface
from flatkit.render.notation import significant
from flatkit.render.tables.comparison import comparison_sheet
from flatkit.render.tables.formats import html as table_html
from flatkit.render.tables.report import report_sheet
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.render.tables.study import claims_sheet, study_notes
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.studies.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 160
"""Characters of a cell."""


def html(shown: Any) -> str:
    """Return an object as HTML: results and surfaces as a table, others as their line.

    >>> "trace tr H" in html(Result("trace", 8.0, 0.5, "standard_error"))
    True
    """
    if isinstance(shown, Comparison) and shown.entries:
        return table_html(comparison_sheet(shown))
    if isinstance(shown, Report) and any(readings(result) for result in shown):
        return table_html(report_sheet(shown))
    if isinstance(shown, Result) and readings(shown):
        return table_html(report_sheet(Report([shown])))
    if isinstance(shown, Surface):
        return table_html(_surface(shown))
    if isinstance(shown, Outcome):
        return _outcome(shown)
    describe: Any = getattr(shown, "describe", None)
    if callable(describe):
        facts: Any = describe()
        return table_html(_facts(repr(shown), facts))
    return f"<pre>{escape(repr(shown))}</pre>"


def at_end(figure: "Figure") -> "Figure":
    """Return a figure, which a notebook shows when its cell ends, as it does those of pyplot.

    Once: where the cell ends in the figure the notebook shows it by itself. Elsewhere than in a
    notebook nothing happens.

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> at_end(figure) is figure
    True
    """
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # A terminal of IPython has no kernel, and shows no pictures.
    if shell is not None and getattr(shell, "kernel", None) is not None:
        if not _drawn:
            shell.events.register("post_run_cell", _show_drawn)
        _drawn.append(figure)
    return figure


_drawn: "list[Figure]" = []
"""In the cell that runs."""


def _show_drawn(cell: Any) -> None:
    """Show the figures of a cell that ended, but the one that it returned."""
    ipython: Any = sys.modules["IPython"]
    figures = [figure for figure in _drawn if figure is not cell.result]
    _drawn.clear()
    # The next figure registers it again: cells without one cost nothing.
    ipython.get_ipython().events.unregister("post_run_cell", _show_drawn)
    for figure in figures if cell.success else ():
        ipython.display.display(figure)


def _surface(surface: Surface) -> Sheet:
    rows: list[list[Text]] = []
    for name, values in surface.quantities.items():
        finite = values[numpy.isfinite(values)]
        centre = surface.at_centre(name) if surface.holds_centre else numpy.nan
        numbers = [centre, *((finite.min(), finite.max()) if finite.size else ())]
        texts = [significant(float(x)) if numpy.isfinite(x) else "no number" for x in numbers]
        rows.append([Text(name), *map(Text, [*texts, "", ""][:3])])
    columns = [Column("quantity", number=False), *map(Column, ("at the centre", "least", "most"))]
    return Sheet(columns, rows, head=[repr(surface)])


def _outcome(outcome: Outcome) -> str:
    """Return a study: for each condition its groups and its claims."""
    parts = [f"<p>{escape(repr(outcome))}</p>"]
    for condition, comparison in outcome.comparisons.items():
        own = [claim for claim in outcome.claims if claim.condition == condition]
        parts += [f"<h4>{escape(condition)}</h4>"] if condition else []
        claims = replace(claims_sheet(own), notes=study_notes(outcome, condition))
        parts += [table_html(comparison_sheet(comparison)), table_html(claims)]
    return "\n".join(parts)


def _facts(line: str, facts: Mapping[str, Any]) -> Sheet:
    """Return what is known of a checkpoint, a row each."""
    columns = [Column("", number=False), Column("", number=False)]
    rows = [[Text(name.replace("_", " ")), Text(_short(value))] for name, value in facts.items()]
    return Sheet(columns, rows, head=[line])


def _short(value: Any) -> str:
    parts: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    text = ", ".join(f"{name}={part}" for name, part in parts.items()) or str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
