"""The tables of a page: cells with the number that they are sorted by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatkit.comparison.readings import readings
from flatkit.comparison.statistics import Pair, Quantity, Statistics
from flatkit.comparison.summary import Cell as GroupCell
from flatkit.comparison.summary import Summary
from flatkit.errors import ResultError
from flatkit.measures.reading import Reading
from flatkit.measures.registry import MEASURES
from flatkit.render.notation import significant, with_spread
from flatkit.render.readings import error_text, value_text
from flatkit.render.tables.pairs import unsampled
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.results.status import Status, in_words


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: as it is read.
        number: that it is sorted by; None sorts the text.
        mark: `flattest`, `open` (not converged), or nothing.
        note: what is said of it when asked.
    """

    text: str
    number: float | None = None
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it holds.
        columns: their titles; the first names the row.
        rows: of cells.
        legend: what signs in it mean.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    legend: str = ""

    def is_text(self, column: int) -> bool:
        """Return whether a column holds no number, so that it stands to the left."""
        return all(row[column].number is None for row in self.rows)


_COST = ("L", "∇L", "Hv", "s")
_OF_REPORT = (
    "exact: no solver or sampling error over these samples. residual: an eigenvalue lies within "
    "it. ±: one standard error. ≥: a lower bound, the best point that a search found. "
    "L, ∇L, Hv: losses, gradients and Hessian-vector products over all samples; s: seconds."
)
_SEVERAL, _SINGLE = (
    "Mean ± standard deviation over the runs of a group, or the error of the estimates if that is "
    "larger. ",
    "±: one standard error of the estimate. ",
)
_MARKS = (
    "≥: lower bounds. Bold, with a star: flattest beyond all errors that are known. "
    "!: not converged in some run."
)
_OF_PAIRS = (
    "p is of the hypothesis that there is no difference, corrected for all pairs of a quantity "
    "(Holm). Runs are paired by seed, or block by block of the samples, where they can be. The "
    "interval covers the errors of the solver, the seeds and the data sample as far as they are "
    "known."
)


def report_table(report: Report) -> tuple[Table, list[str]]:
    """Return the numbers of a report, and what could not be read.

    >>> table, faults = report_table(Report([Result("trace", 8.04, 0.1, "standard_error")]))
    >>> [cell.text for cell in table.rows[0]][:4], faults
    (['trace tr H', '8.04', '± 0.10', 'converged'], [])
    """
    rows: list[list[Cell]] = []
    faults: list[str] = []
    for result in report:
        try:
            rows += _rows(result)
        except ResultError as error:
            faults.append(str(error))
    columns = ("quantity", "value", "error", "status", *_COST)
    return Table("Every number, with how wrong it may be", columns, rows, _OF_REPORT), faults


def _rows(result: Result) -> Iterator[list[Cell]]:
    """Yield a row for each reading, the cost on the first only."""
    spent = result.cost
    counts = (spent.losses, spent.gradients, spent.matvecs)
    cost = [Cell(f"{n:,}", n) for n in counts] + [Cell(f"{spent.seconds:.1f}", spent.seconds)]
    status = _status(result.status)
    found = readings(result)
    if result.measure == "verdict":
        return  # a table of its own
    if not found:
        title = result.measure.replace("_", " ")
        yield [Cell(title), Cell(_size(result)), Cell("see the figures"), status, *cost]
    for reading in found:
        value = Cell(value_text(reading), reading.value)
        yield [Cell(reading.title), value, Cell(error_text(reading), reading.error), status, *cost]
        # All readings of a result have its cost in common, which would be counted twice.
        cost = [Cell("")] * len(cost)


def claim_table(comparison: Comparison) -> Table:
    """Return what `verify` found of each claim of the theory; no rows without it.

    >>> claim = {"claim": "R0 ≤ R1", "verdict": "holds", "reason": "by 3 %"}
    >>> report = Report([Result("verdict", [claim])])
    >>> [[c.text for c in row] for row in claim_table(Comparison([Entry("a", "a", report)])).rows]
    [['R0 ≤ R1', 'holds', 'by 3 %']]
    """
    several = len(comparison.entries) > 1
    rows = [
        [
            Cell(str(claim.get("claim"))),
            *([Cell(entry.name)] if several else []),
            Cell(str(claim.get("verdict")), mark=_VERDICTS.get(str(claim.get("verdict")), "open")),
            Cell(str(claim.get("reason", ""))),
        ]
        for entry in comparison.entries
        for claim in _claims(entry.report)
    ]
    columns = ("claim", *(["run"] if several else []), "verdict", "why")
    return Table("Does the theory hold here?", columns, rows)


_VERDICTS = {"holds": "flattest"}


def _claims(report: Report) -> list[dict[str, Any]]:
    found = report.find("verdict")
    claims = found.value if found is not None and isinstance(found.value, list) else []
    return [claim for claim in claims if isinstance(claim, dict)]


def _size(result: Result) -> str:
    known = result.measure in MEASURES and isinstance(result.value, dict)
    try:
        return MEASURES[result.measure].size(result) if known else "-"
    except (KeyError, TypeError) as error:
        raise ResultError(f"malformed result of {result.measure}: {error!r}") from error


def _status(status: Status | str) -> Cell:
    if status == Status.CONVERGED:
        return Cell("converged")
    return Cell(f"! {in_words(status)}", mark="open")


def group_tables(summary: Summary, statistics: Statistics) -> list[Table]:
    """Return a row a group or run, a table for each kind of quantity: fit, curvature, balls."""
    first = ["group", "runs"] if summary.grouped else ["run"]
    tables: list[Table] = []
    for caption, keys in _families(statistics.quantities).items():
        rows = [
            [
                Cell(row.name),
                *([Cell(str(row.runs), row.runs)] if summary.grouped else []),
                *(_of_group(row.cells[key], statistics.quantities[key]) for key in keys),
            ]
            for row in summary.rows
        ]
        titles = [statistics.quantities[key].title for key in keys]
        tables.append(Table(caption, [*first, *titles], rows))
    if tables:
        legend = (_SEVERAL if summary.grouped else _SINGLE) + _MARKS
        last = tables[-1]
        tables[-1] = Table(last.caption, last.columns, last.rows, legend)
    return tables


def _of_group(cell: GroupCell, quantity: Quantity) -> Cell:
    mark = "flattest" if cell.flattest else ("" if cell.converged else "open")
    signs = ("" if cell.converged else " !") + (" ★" if cell.flattest else "")
    why = quantity.why if quantity.role == "flatness" else ""
    return Cell(_cell_text(cell) + signs, cell.mean, mark, why)


def _cell_text(cell: GroupCell) -> str:
    """Return mean ± spread; of a single run, its value with its standard error, if any."""
    first = cell.readings[0]
    if len(cell.readings) > 1:
        bound = "≥ " if first.error_kind == "lower_bound" else ""
        return bound + with_spread(cell.mean, cell.spread or 0.0)
    if first.error_kind == "standard_error" and first.error is not None:
        return with_spread(first.value, first.error)
    return value_text(first)


def _families(
    quantities: Mapping[str, Quantity] | Mapping[str, Reading],
) -> dict[str, Sequence[str]]:
    """Return caption -> keys: what fits, then a table for each symbol of a flatness in balls."""
    found: dict[str, list[str]] = {}
    for key, quantity in quantities.items():
        symbol = quantity.title.partition(" (ρ")[0]
        in_ball = symbol != quantity.title
        own = "How well it fits" if quantity.role == "fit" else "Curvature"
        caption = symbol if in_ball else own
        found.setdefault(caption, []).append(key)
    return {name: part for caption, keys in found.items() for name, part in _parts(caption, keys)}


def _parts(caption: str, keys: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the columns in even parts, as a wide table would break its numbers."""
    # Rounded up; the parts are then as even as they can be.
    count = -(-len(keys) // _WIDE)
    size = -(-len(keys) // count)
    for number, first in enumerate(range(0, len(keys), size), start=1):
        yield (
            caption if count == 1 else f"{caption} ({number} of {count})",
            keys[first : first + size],
        )


_WIDE = 5
"""More columns of value ± spread do not fit 1,100 pixels."""


def run_tables(comparison: Comparison) -> list[Table]:
    """Return a row a run, as `group_tables` a row a group; what a run lacks is left empty."""
    runs = [(entry, _compared(entry.report)) for entry in comparison.entries]
    first = ["run", "group", *(["seed"] if any(entry.seed for entry, _ in runs) else [])]
    every = {key: reading for _, found in runs for key, reading in found.items()}
    tables: list[Table] = []
    for caption, keys in _families(every).items():
        rows = [
            [*_who(entry, first), *(_of_run(found.get(k)) for k in keys)] for entry, found in runs
        ]
        tables.append(Table(caption, [*first, *(every[key].title for key in keys)], rows))
    return tables


def _who(entry: Entry, columns: Sequence[str]) -> list[Cell]:
    seed = entry.seed if "seed" in columns else None
    more = [] if seed is None else [Cell(seed, float(seed) if seed.isdecimal() else None)]
    return [Cell(entry.name), Cell(entry.group), *more]


def _of_run(reading: Reading | None) -> Cell:
    if reading is None:
        return Cell("not measured")
    mark = "" if reading.converged else "open"
    note = error_text(reading) if reading.converged else f"{error_text(reading)}; not converged"
    return Cell(value_text(reading) + (" !" if mark else ""), reading.value, mark, note)


def _compared(report: Report) -> dict[str, Reading]:
    """Return what can be compared of a report; what cannot be read is told elsewhere."""
    found: dict[str, Reading] = {}
    for result in report:
        try:
            for reading in readings(result) if result.measure in MEASURES else ():
                if reading.role != "detail":
                    found.setdefault(reading.key, reading)
        except ResultError:
            continue
    return found


def pair_table(statistics: Statistics) -> Table:
    """Return the differences of every two groups, with intervals and corrected tests."""
    rows = [
        [
            Cell(quantity.title),
            Cell(f"{pair.first} − {pair.second}"),
            Cell(significant(pair.difference, 3), pair.difference),
            _interval(pair),
            Cell("?" if pair.p_holm is None else significant(pair.p_holm, 2), pair.p_holm),
            Cell({"none": "not paired"}.get(pair.paired_by, f"by {pair.paired_by}")),
            Cell("differ" if pair.differs else "cannot tell", mark="flattest" * pair.differs),
        ]
        for quantity in statistics.quantities.values()
        for pair in quantity.pairs
    ]
    columns = ("quantity", "groups", "difference", "95 % interval", "p", "paired", "verdict")
    return Table("Differences", columns, rows, _OF_PAIRS)


def _interval(pair: Pair) -> Cell:
    if pair.low is None or pair.high is None:
        return Cell("not known")
    return Cell(f"{significant(pair.low, 3)} to {significant(pair.high, 3)}", pair.low)


def error_table(statistics: Statistics) -> Table:
    """Return the three errors of the mean of each group apart.

    >>> from flatkit.comparison.statistics import GroupValue, Quantity
    >>> value = GroupValue("gam", 3, 2.0, solver=0.01, seeds=0.1, sampling=None)
    >>> quantity = Quantity("trace", "trace tr H", "lower", "flatness", [value], [], None, "")
    >>> table = error_table(Statistics({"trace": quantity}, [], [], []))
    >>> [cell.text for cell in table.rows[0]]
    ['trace tr H', 'gam', '3', '2.000', '0.010', '0.10', 'not known']
    """
    rows = [
        [
            Cell(quantity.title),
            Cell(value.group),
            Cell(str(value.runs), value.runs),
            Cell(significant(value.mean), value.mean),
            *(_error(error) for error in (value.solver, value.seeds, value.sampling)),
        ]
        for quantity in statistics.quantities.values()
        for value in quantity.rows
    ]
    columns = ("quantity", "group", "runs", "mean", "solver", "seeds", "data sample")
    without = [
        f"{line[0].upper()}{line[1:]}." for line in unsampled(statistics.quantities.values())
    ]
    legend = " ".join([_OF_ERRORS, *without])
    return Table("The three errors apart", columns, rows, legend)


_OF_ERRORS = (
    "Of the mean of a group. Solver: how exactly the numbers were found. Seeds: the standard error "
    "over the runs, unknown for one run. Data sample: the standard error over samples of the data, "
    "at these weights."
)


def _error(error: float | None) -> Cell:
    return Cell("not known") if error is None else Cell(significant(error, 2), error)


def correlation_table(statistics: Statistics) -> Table:
    """Return how each measure of flatness goes along with what the network does on test data."""
    rows = [
        [
            Cell(one.title),
            Cell(f"{one.tau:+.2f}", one.tau),
            Cell(f"{one.low:+.2f} to {one.high:+.2f}", one.low)
            if one.low is not None
            else Cell("?"),
            Cell(str(one.runs), one.runs),
            Cell(one.warning),
        ]
        for one in statistics.correlations
    ]
    legend = "Kendall's τ over the runs: 1 where they stand in the same order, −1 in the reverse."
    columns = ("quantity", "τ", "95 % interval", "runs", "beware")
    return Table("Does flatness go along with generalisation?", columns, rows, legend)
