"""What runs side by side allow to say: means, spreads, and which row is flatter beyond them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatkit.errors import ResultError
from flatkit.measures.reading import Reading
from flatkit.render.notation import with_spread
from flatkit.render.readings import compared, rank, unknown, value_text
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.results.status import in_words

_SURE = {"residual": 1.0, "standard_error": 2.0, "exact": 1.0}
"""How many errors a single run must lie below another before it is called flatter."""
_ENOUGH_RUNS = 3
"""With fewer, the standard deviation says too little."""
_TEST = "which test samples (sha256)"


@dataclass(frozen=True)
class Cell:
    """One quantity of one row.

    Attributes:
        readings: one per run.
        flattest: lower than every other row beyond the spread, or higher where that is flatter.

    >>> readings = (Reading("x", "x", value, 0.1, "residual", "converged") for value in (1.0, 3.0))
    >>> Cell(tuple(readings)).mean
    2.0
    """

    readings: tuple[Reading, ...]
    flattest: bool = False

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
        """The mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the runs; of a single run, the error of its estimate.

        Runs that share their random probes can agree better than either is known, so the spread
        is never less than the mean error of the estimates.
        """
        if len(self.readings) == 1:
            return self.readings[0].error
        return max(statistics.stdev(self.values), self._mean_error())

    @property
    def converged(self) -> bool:
        """Whether the measurement converged in every run."""
        return all(reading.converged for reading in self.readings)

    def margin(self) -> float | None:
        """Return how far below another cell's interval this one must lie, or None if unknown."""
        if len(self.readings) >= _ENOUGH_RUNS:
            return max(statistics.stdev(self.values), _SURE["standard_error"] * self._mean_error())
        first = self.readings[0]
        if len(self.readings) > 1 or first.error is None or first.error_kind not in _SURE:
            return None
        return _SURE[first.error_kind] * first.error

    def _mean_error(self) -> float:
        return statistics.fmean(reading.error or 0.0 for reading in self.readings)

    def text(self) -> str:
        """Return mean ± spread; of a single run, its value with its standard error, if any."""
        first = self.readings[0]
        if len(self.readings) > 1:
            return with_spread(self.mean, self.spread or 0.0)
        if first.error_kind == "standard_error" and first.error is not None:
            return with_spread(first.value, first.error)
        return value_text(first).removeprefix("≥ ")  # the title of the column says it


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
    """

    titles: Mapping[str, str]
    rows: Sequence[Row]
    grouped: bool
    left_out: Sequence[str]
    differences: Sequence[str]
    unconverged: Sequence[str]
    unknown: Sequence[str] = ()


def summarise(comparison: Comparison) -> Summary:
    """Return the rows of a comparison.

    A row is called flattest in a column only if it is lower than every other row beyond doubt.
    Groups of three runs or more: all its runs lie below all the others' runs, and its mean +
    standard deviation below their mean - standard deviation. Single runs: the intervals of the
    estimates (value ± residual, ± 2 standard errors) do not meet; lower bounds, whose distance to
    the maximum nobody knows, are never told apart by one run. Nothing is called flattest if a
    measurement did not converge or if the runs measured different functions.

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
    titles, left_out = _shared(list(runs.values()))
    differences = objective_differences(comparison)
    parts = _parts(comparison)
    table = [
        {key: Cell(tuple(runs[entry.name][key] for entry in entries)) for key in titles}
        for _, entries in parts
    ]
    if not differences:
        table = _marked(table, list(titles))
    return Summary(
        titles=titles,
        rows=[
            Row(name, len(entries), cells)
            for (name, entries), cells in zip(parts, table, strict=True)
        ],
        grouped=_grouped(comparison),
        left_out=left_out,
        differences=differences,
        unconverged=_unconverged(runs, titles),
        unknown=sorted({name for entry in comparison.entries for name in unknown(entry.report)}),
    )


def objective_differences(comparison: Comparison) -> list[str]:
    """Return a line for each respect in which the runs measured different functions.

    Values of curvature and flatness compare only if loss, samples, data, BatchNorm mode, dtype
    and number of parameters agree.

    >>> reports = [Report([], objective={"loss": loss}) for loss in ("mse", "cross_entropy")]
    >>> entries = [Entry(name, name, report) for name, report in zip("ab", reports)]
    >>> objective_differences(Comparison(entries))
    ['loss: mse (a), cross_entropy (b)']
    """
    functions = [(entry.name, _function(entry.report)) for entry in comparison.entries]
    if not all(_TEST in function for _, function in functions):  # some read no test data
        for _, function in functions:
            function.pop(_TEST, None)
    lines: list[str] = []
    for aspect in dict.fromkeys(key for _, function in functions for key in function):
        names: dict[str, list[str]] = {}
        for name, function in functions:
            names.setdefault(function.get(aspect, "not recorded"), []).append(name)
        if len(names) > 1:
            values = (f"{value} ({_some(who)})" for value, who in names.items())
            lines.append(f"{aspect}: {', '.join(values)}")
    return lines


def _function(report: Report) -> dict[str, str]:
    """Return what identifies the measured function, as text."""
    objective = report.objective
    aspects = ["loss", "samples", "batchnorm", "dropout", "weight_decay", "dtype", "parameters"]
    if objective.get("batchnorm") == "train":
        aspects.append("chunk_size")  # batch statistics depend on the batches
    found = {key: str(objective[key]) for key in aspects if key in objective}
    if "indices_sha256" in objective:
        found["which samples (sha256)"] = str(objective["indices_sha256"])[:12]
    if objective.get("test"):
        found[_TEST] = str(objective["test"].get("indices_sha256"))[:12]
    data = report.checkpoint.get("data")
    if data:
        found["data"] = _data_text(data)
    return found


def _data_text(data: Any) -> str:
    if not isinstance(data, Mapping) or "sha256" not in data:
        return str(data)
    return f"{data.get('name', 'data')}, sha256 {str(data['sha256'])[:12]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def _grouped(comparison: Comparison) -> bool:
    return len(comparison.groups) < len(comparison.entries)


def _parts(comparison: Comparison) -> list[tuple[str, list[Entry]]]:
    if _grouped(comparison):
        return [(group, comparison.in_group(group)) for group in comparison.groups]
    return [(entry.name, [entry]) for entry in comparison.entries]


def _marked(table: list[dict[str, Cell]], keys: Sequence[str]) -> list[dict[str, Cell]]:
    """Return the table with the flattest cell of each column marked, where there is one."""
    for key in keys:
        column = [cells[key] for cells in table]
        best = min(range(len(column)), key=lambda index: column[index].sign * column[index].mean)
        others = column[:best] + column[best + 1 :]
        if others and all(_is_flatter(column[best], other) for other in others):
            table[best][key] = Cell(column[best].readings, flattest=True)
    return table


def _is_flatter(one: Cell, other: Cell) -> bool:
    """Return whether one cell lies on the flatter side of another beyond the spread of both."""
    cells = (one, other)
    if one.readings[0].role != "flatness" or not all(cell.converged for cell in cells):
        return False
    if (len(one.readings) == 1) != (len(other.readings) == 1):
        return False  # a run against a group: the spread of the first is not known
    margins, sign = (one.margin(), other.margin()), one.sign
    if margins[0] is None or margins[1] is None:
        return False
    if max(sign * value for value in one.values) >= min(sign * value for value in other.values):
        return False
    return sign * one.mean + margins[0] < sign * other.mean - margins[1]


def _shared(runs: Sequence[Mapping[str, Reading]]) -> tuple[dict[str, str], list[str]]:
    """Return key -> title of what every run has, and the titles of what only some have."""
    every = {key: reading for run in runs for key, reading in run.items()}
    ordered = sorted(every.values(), key=rank)
    common = [reading for reading in ordered if all(reading.key in run for run in runs)]
    left_out = [reading.title for reading in ordered if reading not in common]
    return {reading.key: reading.title for reading in common}, left_out


def _unconverged(runs: Mapping[str, Mapping[str, Reading]], titles: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {reading.title} ({in_words(reading.status)})"
        for name, run in runs.items()
        for key, reading in run.items()
        if key in titles and not reading.converged
    ]
