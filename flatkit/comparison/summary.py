"""What runs side by side allow to say: means, spreads, and which row is flatter beyond them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flatkit.comparison.functions import grouped, objective_differences, rows_of, trainings
from flatkit.comparison.intervals import deviation
from flatkit.comparison.readings import compared, shared, unknown, unmeasured
from flatkit.comparison.statistics import statistics
from flatkit.errors import ResultError
from flatkit.measures.reading import Reading
from flatkit.measures.registry import MEASURES
from flatkit.results.comparison import Comparison
from flatkit.results.status import Status, in_words

_FEW = 3
"""Measurements of one status that are named one by one."""
_ENDED: dict[str, str] = {
    Status.KINKS: "ended at kinks, where the gradient jumps: their bounds hold, and what they "
    "leave open counts in the verdict",
    Status.BUDGET: "ended with their budget: their bounds hold, more work may raise them",
    Status.INTERRUPTED: "were interrupted: their bounds hold, more work may raise them",
    Status.ROUNDING: "are hidden by rounding of the dtype; a wider one helps",
    Status.SEARCH_MISSED_MAXIMUM: "missed a larger value that another search proves",
}
"""How searches in balls ended, in words that follow their number."""


@dataclass(frozen=True)
class Cell:
    """One quantity of one row.

    Attributes:
        readings: one per run.
        flattest: lower than every other row beyond the spread, or higher where that is flatter.
        trainings: a value a training, of which runs of one seed are one; empty where each is.

    >>> readings = (Reading("x", "x", value, 0.1, "residual", "converged") for value in (1.0, 3.0))
    >>> Cell(tuple(readings)).mean
    2.0
    """

    readings: tuple[Reading, ...]
    flattest: bool = False
    trainings: tuple[float, ...] = ()

    @property
    def values(self) -> list[float]:
        """The value of each run."""
        return [reading.value for reading in self.readings]

    @property
    def sign(self) -> int:
        """-1 where a higher value is the flatter one, else 1."""
        return -1 if self.readings[0].better == "higher" else 1

    @property
    def mean(self) -> float:
        """The mean over the trainings, as that of the differences between groups."""
        return fmean(self.trainings or self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the trainings; of a single run, the error of its estimate.

        Runs that share their random probes can agree better than either is known, so the spread
        is never less than the mean error of the estimates.
        """
        # One run has no spread; what is known of it is how exactly it was measured.
        if len(self.readings) == 1:
            return self.readings[0].error
        several = self.trainings if len(self.trainings) > 1 else self.values
        return max(deviation(several), self._mean_error())

    @property
    def converged(self) -> bool:
        """Whether the measurement converged in every run."""
        return all(reading.converged for reading in self.readings)

    def _mean_error(self) -> float:
        return fmean(reading.error or 0.0 for reading in self.readings)


@dataclass(frozen=True)
class Row:
    """A group of runs, or a run.

    Attributes:
        name: of the group or run.
        runs: how many.
        cells: by the key of the quantity.
    """

    name: str
    runs: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Summary:
    """Rows of quantities that every run has.

    Attributes:
        titles: key -> title, in the order of the columns.
        rows: groups if one of them has several runs, else runs.
        grouped: whether the rows are groups.
        left_out: titles of the quantities that only some of the runs have.
        differences: how the measured functions differ; empty if the rows compare.
        unconverged: which measurements did not converge, in words.
        unknown: measures of packages that are not installed here.
        unmeasured: which measures have no value, in which runs and why, in words.
        apart: what was measured, but is no number to compare.
    """

    titles: Mapping[str, str]
    rows: Sequence[Row]
    grouped: bool
    left_out: Sequence[str]
    differences: Sequence[str]
    unconverged: Sequence[str]
    unknown: Sequence[str] = ()
    unmeasured: Sequence[str] = ()
    apart: Sequence[str] = ()

    @property
    def absent(self) -> list[str]:
        """What a table of it does not hold, a line each."""
        found: list[str] = []
        if self.left_out:
            found.append(f"not measured in every run, so left out: {', '.join(self.left_out)}")
        if self.unknown:
            names = ", ".join(self.unknown)
            found.append(f"of packages that are not installed here, so left out: {names}")
        return [*found, *(f"not measured: {text}" for text in self.unmeasured)]


def summarise(comparison: Comparison) -> Summary:
    """Return the rows of a comparison.

    A row is called flattest in a column only if it is flatter than every other beyond all errors
    that are known, as `flatkit.comparison.statistics` says.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> entries = [
    ...     Entry(name, name, Report([Result("top_eigenvalues", [top], [0.1], "residual")]))
    ...     for name, top in (("sgd", 3.0), ("gam", 1.0))
    ... ]
    >>> rows = summarise(Comparison(entries)).rows
    >>> [(row.name, [cell.flattest for cell in row.cells.values()]) for row in rows]
    [('sgd', [False]), ('gam', [True])]
    """
    if not comparison.entries:
        raise ResultError("the comparison holds no run")
    runs = {entry.name: compared(entry.report) for entry in comparison.entries}
    titles, left_out = shared(list(runs.values()))
    said = statistics(comparison)
    rows = [
        Row(
            name,
            len(entries),
            {
                key: Cell(
                    tuple(runs[entry.name][key] for entry in entries),
                    flattest=said.quantities[key].flattest == name,
                    trainings=tuple(
                        trainings(entries, [runs[e.name][key].value for e in entries]).values()
                    ),
                )
                for key in titles
            },
        )
        for name, entries in rows_of(comparison)
    ]
    return Summary(
        titles=titles,
        rows=rows,
        grouped=grouped(comparison),
        left_out=left_out,
        differences=objective_differences(comparison),
        unconverged=_unconverged(runs, titles),
        unknown=sorted({name for entry in comparison.entries for name in unknown(entry.report)}),
        unmeasured=_unmeasured(comparison),
        apart=_apart(comparison, runs),
    )


def _unmeasured(comparison: Comparison) -> list[str]:
    """Return a line for each measure that was asked for and has no value, and each reason."""
    whose: dict[tuple[str, str], list[str]] = {}
    for entry in comparison.entries:
        for measure, why in unmeasured(entry.report).items():
            whose.setdefault((measure, why), []).append(entry.name)
    everywhere, lines = len(comparison.entries), list[str]()
    for (measure, why), names in whose.items():
        some = "" if len(names) == everywhere else f" in {', '.join(names[:_FEW])}"
        more = f" and {len(names) - _FEW} more" if some and len(names) > _FEW else ""
        lines.append(f"{measure}{some}{more} ({why})")
    return lines


def _apart(comparison: Comparison, runs: Mapping[str, Mapping[str, Reading]]) -> list[str]:
    """Return the measures that have results, and no number that runs are compared by."""
    compared_by = {reading.measure for run in runs.values() for reading in run.values()}
    there = (result.measure for entry in comparison.entries for result in entry.report)
    return [name for name in dict.fromkeys(there) if name in MEASURES and name not in compared_by]


def _unconverged(runs: Mapping[str, Mapping[str, Reading]], titles: Mapping[str, str]) -> list[str]:
    """Return what did not converge, one by one where it is little, else a line for each status."""
    readings = [(n, r) for n, run in runs.items() for key, r in run.items() if key in titles]
    lines: list[str] = []
    for status in dict.fromkeys(r.status for _, r in readings if not r.converged):
        those = [(name, reading) for name, reading in readings if reading.status == status]
        searches = all(reading.error_kind == "lower_bound" for _, reading in those)
        if len(those) <= _FEW and not searches:
            lines += [f"{name}: {reading.title} ({in_words(status)})" for name, reading in those]
        elif searches:
            of = sum(reading.error_kind == "lower_bound" for _, reading in readings)
            lines.append(f"{len(those)} of {of} searches {_ENDED.get(status, in_words(status))}")
        else:
            whose = dict.fromkeys(reading.title for _, reading in those)
            lines.append(f"{len(those)} numbers ({in_words(status)}): {', '.join(whose)}")
    return lines
