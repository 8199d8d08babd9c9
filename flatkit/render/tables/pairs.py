"""The table of differences between groups: each with its interval and corrected p."""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from flatkit.comparison.quantities import Pair, Quantity
from flatkit.comparison.statistics import statistics
from flatkit.render.notation import significant, with_spread
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.results.comparison import Comparison

PAIR_COLUMNS = ("quantity", *(item.name for item in fields(Pair)))
"""Of the rows of `pairs_rows`."""
_ALIKE = 5
"""Columns before those that are the same in every row as a rule: how many runs, and how paired."""
_PAIRED = {"seed": "by seed", "samples": "by samples", "none": "no"}


def pairs_sheet(comparison: Comparison) -> Sheet:
    """Return the differences of every two groups (or runs) in every quantity.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> entries = [
    ...     Entry(name, name, Report([Result("top_eigenvalues", [top], [0.1], "residual")]))
    ...     for name, top in (("sgd", 3.0), ("gam", 1.0))
    ... ]
    >>> sheet = pairs_sheet(Comparison(entries))
    >>> [text.plain for text in sheet.rows[0]][:3]
    ['top eigenvalue λmax', 'sgd − gam', '2.00']
    """
    found = statistics(comparison)
    rows = [
        [Text(quantity.title), *_cells(pair)]
        for quantity in found.quantities.values()
        for pair in quantity.pairs
    ]
    titles = ("quantity", "pair", "difference", "95 % interval", "p (Holm)", "runs", "paired")
    columns = [
        Column(title, number=title not in ("quantity", "pair", "paired")) for title in titles
    ]
    notes = ["p: of no difference, corrected for all pairs of a quantity (Holm)"]
    alike = {tuple(text.plain for text in row[_ALIKE:]) for row in rows}
    if len(alike) == 1:  # which a line says as well as two columns
        ((runs, paired),) = alike
        notes.append(f"runs of each pair: {runs}, paired: {paired}")
        rows, columns = [row[:_ALIKE] for row in rows], columns[:_ALIKE]
    if any(row[2].strong for row in rows):
        notes.append("*: they differ, beyond all errors that are known, at 5 %")
    notes += unsampled(found.quantities.values())
    return Sheet(columns, rows, leading=2, warnings=list(found.caveats), notes=notes)


def unsampled(quantities: Iterable[Quantity]) -> list[str]:
    """Return of which quantities the error of the data sample is not known, a line for each reason.

    >>> unsampled([Quantity("trace", "trace tr H", "lower", "flatness", [], [], None, "", "few")])
    ['without the error of the data sample: trace tr H (few)']
    """
    whose: dict[str, list[str]] = {}
    for quantity in quantities:
        if quantity.unsampled:
            whose.setdefault(quantity.unsampled, []).append(quantity.title)
    return [
        f"without the error of the data sample: {', '.join(titles)} ({why})"
        for why, titles in whose.items()
    ]


def pairs_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the same as plain data, with all digits, by the attributes of `Pair`.

    Raises:
        ResultError: the comparison has no run.
    """
    return [
        {"quantity": quantity.key, **asdict(pair)}
        for quantity in statistics(comparison).quantities.values()
        for pair in quantity.pairs
    ]


def _cells(pair: Pair) -> list[Text]:
    low, high = pair.low, pair.high
    # As many digits as half the interval leaves certain, in all three numbers alike.
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    decimals = _like(pair.difference, half) if 0 < half < math.inf else None
    show = (lambda value: f"{value:.{decimals}f}") if decimals is not None else significant
    interval = f"{show(low)} to {show(high)}" if low is not None and high is not None else "unknown"
    return [
        Text(f"{pair.first} − {pair.second}"),
        Text(show(pair.difference) if half > 0 else significant(pair.difference, 3),
             strong=pair.differs),
        Text(interval),
        Text("unknown" if pair.p_holm is None else _p(pair.p_holm)),
        Text(str(pair.runs)),
        Text(_PAIRED[pair.paired_by]),
    ]  # fmt: skip


def _like(value: float, half: float) -> int | None:
    """Return how many decimals value and interval share; None where they need an exponent."""
    text = with_spread(value, half)
    if text.startswith("("):
        return None
    return len(text.partition(" ")[0].partition(".")[2])


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
