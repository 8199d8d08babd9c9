"""One page that holds a report or a comparison whole: words, tables, figures, where from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from flatkit.comparison.summary import summarise
from flatkit.errors import FlatkitError
from flatkit.files.atomic import write_text_atomically
from flatkit.render.html import provenance, sentences, tables
from flatkit.render.html.pictures import Picture, pictures, turning
from flatkit.render.html.vector import shades
from flatkit.render.tables.report import objective_text
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.version import __version__

T = TypeVar("T")


def save_report(report: Report, path: str | Path) -> Path:
    """Write a report as a page, whole or not at all.

    Raises:
        OutputError: the file cannot be written.

    >>> import tempfile
    >>> save_report(Report([]), Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    name = str(report.checkpoint.get("name") or "checkpoint")
    return save_comparison(Comparison([Entry(name, name, report)]), path)


def save_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write a comparison as a page, whole or not at all; one run is shown as its report.

    Raises:
        OutputError: the file cannot be written.

    >>> import tempfile
    >>> save_comparison(Comparison([]), Path(tempfile.mkdtemp()) / "compare.html").name
    'compare.html'
    """
    return write_text_atomically(path, page(comparison))


def page(comparison: Comparison) -> str:
    """Return the page as text. It holds all that it shows and asks no network for anything.

    What of the results is malformed, or cannot be drawn, is said in the page in its place; the
    rest is shown.

    >>> from flatkit.results.result import Result
    >>> report = Report([Result("trace", 8.0, 0.5, "standard_error")])
    >>> text = page(Comparison([Entry("<b>gam</b>", "gam", report)]))
    >>> "trace tr H" in text, "<b>gam" in text, "http://" in text.replace("http://www.w3.org", "")
    (True, False, False)
    """
    faults: list[str] = []
    # Before the words, as what cannot be drawn is told among the faults.
    drawn = list(pictures(comparison, faults))
    turned = _tried(lambda: turning(comparison), None, faults)
    several = len(comparison.entries) > 1
    body = (_of_several if several else _of_one)(comparison, faults)
    found = provenance.sources(comparison)
    return _ENVIRONMENT.get_template("page.html").render(
        title=_title(comparison),
        functions=_functions(comparison),
        **body,
        pictures=drawn,
        turning=turned,
        guides=sentences.guides(comparison),
        ended=sentences.unconverged(comparison),
        sources=found,
        common=provenance.common(found),
        commands=provenance.commands(found),
        # What cannot be read spoils table and figure alike; it is said once.
        faults=list(dict.fromkeys(faults)),
        greys=shades(grey for picture in drawn for grey in picture.drawn.greys),
        version=__version__,
        part=_part,
        wide=_is_wide,
    )


def _of_one(comparison: Comparison, faults: list[str]) -> dict[str, Any]:
    """Return what the page of one report says; also of none."""
    report = comparison.entries[0].report if comparison.entries else Report([])
    table, unread = tables.report_table(report)
    faults += unread
    said = ["There is no result here."]
    if report.results:
        said = _tried(lambda: sentences.summary(report), [], faults)
    return {
        "kind": "report",
        "verdict": said,
        "tables": [one for one in (tables.claim_table(comparison), table) if one.rows],
        "more": [],
        "caveats": _caveats(comparison, [], faults),
    }


def _of_several(comparison: Comparison, faults: list[str]) -> dict[str, Any]:
    """Return what the page of a comparison says."""
    statistics = _tried(comparison.statistics, None, faults)
    summary = _tried(lambda: summarise(comparison), None, faults)
    first: list[tables.Table] = []
    more: list[tables.Table] = []
    if statistics is not None and summary is not None:
        first = tables.group_tables(summary, statistics)
        more = [tables.pair_table(statistics), tables.error_table(statistics)]
        more += [tables.correlation_table(statistics)] if statistics.correlations else []
    more.append(tables.claim_table(comparison))
    runs = tables.run_tables(comparison)
    for entry in comparison.entries:
        faults += tables.report_table(entry.report)[1]
    caveats = list(statistics.caveats) if statistics is not None else []
    caveats += summary.absent if summary is not None else []
    said = list(statistics.verdict) if statistics is not None else []
    grouped = summary is not None and summary.grouped
    return {
        "kind": "comparison",
        "verdict": said or ["Nothing was measured in every run that could be compared."],
        "tables": first or runs,
        "more": [table for table in more if table.rows],
        "runs": runs if first and grouped else [],
        "caveats": _caveats(comparison, caveats, faults),
    }


def _caveats(comparison: Comparison, first: Sequence[str], faults: list[str]) -> list[str]:
    parts = _tried(lambda: sentences.part_of_the_samples(comparison), [], faults)
    said = _tried(lambda: sentences.remarks(comparison), [], faults)
    return list(dict.fromkeys([*first, *parts, *said]))


def _tried(make: Callable[[], T], otherwise: T, faults: list[str]) -> T:
    """Return what is made, or the other thing with the fault told: a file may hold anything."""
    try:
        return make()
    except FlatkitError as error:
        faults.append(str(error))
        return otherwise


def _title(comparison: Comparison) -> str:
    names = [entry.name for entry in comparison.entries]
    groups = comparison.groups
    if len(names) == 1:
        return names[0]
    listed = groups if len(groups) < len(names) else names
    if len(listed) > _LISTED:
        return f"{len(names)} runs"
    return ", ".join(listed[:-1]) + (" and " if len(listed) > 1 else "") + "".join(listed[-1:])


_LISTED = 5
"""More names make no title."""


def _functions(comparison: Comparison) -> list[str]:
    """Return the measured function in a line, or in a line for each that differs."""
    lines: dict[str, list[str]] = {}
    for entry in comparison.entries:
        lines.setdefault(objective_text(entry.report.objective), []).append(entry.name)
    # Of runs of one function it is said once, without their names.
    if len(lines) == 1:
        return [f"L: {line}" for line in lines]
    return [f"L of {', '.join(names)}: {line}" for line, names in lines.items()]


def _part(name: str) -> Markup:
    """Return a file of the page's own, which needs no escaping."""
    loader, environment = _ENVIRONMENT.loader, _ENVIRONMENT
    assert loader is not None
    return Markup(loader.get_source(environment, name)[0])


def _is_wide(picture: Picture) -> bool:
    """Return whether a figure takes the whole width of the page."""
    return picture.drawn.width > _HALF


_HALF = 520
"""CSS pixels."""

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("flatkit.render.html"),
    autoescape=True,
    # A name that the template lacks is a fault of ours, and no empty place.
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
