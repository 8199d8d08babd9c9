"""What runs side by side allow to say: errors apart, paired differences, correlations, a verdict.

Three errors are told apart. That of the **solver**: a residual, a standard error over probes, or
what a search in a ball leaves open. That of the **seeds**: how the runs of a group differ, so that
it is about the method and not one run of it. That of the **data sample**: the measured loss is a
mean over samples, and other samples of the same population would have given other numbers; it
follows from what blocks of the samples contribute (`Reading.influence`), with the weights of the
network held fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from flatkit.comparison.caveats import caveats
from flatkit.comparison.correlation import Correlation, correlations
from flatkit.comparison.functions import objective_differences, rows_of, some, trainings
from flatkit.comparison.intervals import (
    CONFIDENCE,
    Part,
    combined,
    holm,
    interval,
    mean_of_rows,
    of_difference,
    of_mean,
)
from flatkit.comparison.quantities import GroupValue, Pair, PairedBy, Quantity
from flatkit.comparison.readings import compared, shared
from flatkit.comparison.searches import SEARCH_HOLDS, left_open_of
from flatkit.errors import ResultError
from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.status import in_words

__all__ = ["Correlation", "GroupValue", "Pair", "Quantity", "Statistics", "statistics"]

_ENOUGH_RUNS = 3
"""With fewer, the spread over the runs says too little for a verdict."""
_ALIKE = 1e-7
"""Spread relative to the values that may be all rounding, of single precision."""
_NOT_KNOWN = "not known: "
_NOT_SAID = "its measure does not say what the samples contribute"


@dataclass(frozen=True)
class Statistics:
    """What a comparison allows to say.

    Attributes:
        quantities: by key, in the order of the columns.
        correlations: of each measure of flatness with the gap and the error on test data.
        caveats: what weakens the comparison, in sentences.
        verdict: what it says, in sentences.
    """

    quantities: Mapping[str, Quantity]
    correlations: Sequence[Correlation]
    caveats: Sequence[str]
    verdict: Sequence[str]


def statistics(comparison: Comparison) -> Statistics:
    """Return what a comparison allows to say.

    Two groups are held against each other by the differences of runs of one seed, where they have
    such, else by their means (Welch); two runs by what each block of the samples contributes to
    their difference. Added in squares are the errors over seeds and over samples, and those over
    probes, which runs share, so that of a difference they add up before; residuals and what
    searches leave open widen the interval as they are. p is corrected for all pairs of a quantity
    (Holm), and a group is called flattest where it is flatter than every other at 5 %, with three
    runs a group or single runs alone, of which nothing is said about seeds.

    Raises:
        ResultError: the comparison has no run.

    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> entries = [
    ...     Entry(name, name, Report([Result("top_eigenvalues", [top], [0.1], "residual")]))
    ...     for name, top in (("sgd", 3.0), ("gam", 1.0))
    ... ]
    >>> found = statistics(Comparison(entries)).quantities["top_eigenvalues"]
    >>> found.flattest, [pair.differs for pair in found.pairs]
    ('gam', [True])
    """
    # Tables, figures and pages all ask, and intervals of correlations of many runs take seconds.
    if "_statistics" not in vars(comparison):
        object.__setattr__(comparison, "_statistics", _computed(comparison))
    return vars(comparison)["_statistics"]


def _computed(comparison: Comparison) -> Statistics:
    if not comparison.entries:
        raise ResultError("the comparison holds no run")
    runs = {entry.name: compared(entry.report) for entry in comparison.entries}
    differences = objective_differences(comparison)
    rows = rows_of(comparison)
    quantities = {
        key: _quantity(key, rows, runs, differences) for key in shared(list(runs.values()))[0]
    }
    found = list(quantities.values())
    return Statistics(
        quantities,
        correlations(comparison, runs),
        caveats(comparison, runs, differences),
        [_sentence(quantity) for quantity in found if quantity.role == "flatness"],
    )


def _quantity(
    key: str,
    rows: Sequence[tuple[str, Sequence[Entry]]],
    runs: Mapping[str, Mapping[str, Reading]],
    differences: Sequence[str],
) -> Quantity:
    left = left_open_of([run[key] for run in runs.values()])
    cells = [
        _Cell(name, entries, [runs[entry.name][key] for entry in entries], left)
        for name, entries in rows
    ]
    pairs = _corrected([_pair(one, other) for one, other in combinations(cells, 2)])
    first, values = cells[0].readings[0], [cell.value() for cell in cells]
    chosen = _flattest(cells, pairs, differences)
    unsampled = _unsampled(cells)
    return Quantity(key, first.title, first.better, first.role, values, pairs, *chosen, unsampled)


def _unsampled(cells: Sequence["_Cell"]) -> str:
    """Return why the error of the data sample is not known, of the first group of which it is not.

    Empty where it is known of all.
    """
    for cell in cells:
        if cell.sampling is None:
            said = [r.sampling_error_is for r in cell.readings if r.sampling_error is None]
            why = next((one for one in said if one.startswith(_NOT_KNOWN)), "")
            return why.removeprefix(_NOT_KNOWN) or _NOT_SAID
    return ""


@dataclass(frozen=True)
class _Cell:
    """The readings of a quantity by the runs of a group."""

    name: str
    entries: Sequence[Entry]
    readings: Sequence[Reading]
    left_open: float | None  # part by which a maximum may exceed a lower bound

    def value(self) -> GroupValue:
        values, several = [reading.value for reading in self.readings], len(self.trainings) > 1
        return GroupValue(
            group=self.name,
            runs=len(values),
            mean=fmean(self.trainings),
            solver=self.solver,
            seeds=of_mean(self.trainings).error if several else None,
            sampling=None if self.sampling is None else self.sampling.error,
        )

    @property
    def by_seed(self) -> dict[str, float]:
        """The mean over the runs of each seed that is known."""
        found = trainings(self.entries, [reading.value for reading in self.readings])
        return {seed: value for (what, seed), value in found.items() if what == "seed"}

    @property
    def trainings(self) -> list[float]:
        """A value a training."""
        return [*trainings(self.entries, [reading.value for reading in self.readings]).values()]

    @property
    def solver(self) -> float | None:
        """The mean error of the estimates: they may all be off to one side."""
        errors = [self._solver_error(reading) for reading in self.readings]
        known = [error for error in errors if error is not None]
        return fmean(known) if len(known) == len(errors) else None

    def _solver_error(self, reading: Reading) -> float | None:
        if reading.error_is_of_samples:
            return None
        if reading.error_kind == "lower_bound":
            return None if self.left_open is None else self.left_open * abs(reading.value)
        return 0.0 if reading.error_kind == "exact" else reading.error

    @property
    def is_over_probes(self) -> bool:
        return self.readings[0].error_kind == "standard_error"

    @property
    def blocks(self) -> list[float] | None:
        """What each block of the samples contributes to the mean over the runs."""
        rows = [reading.influence for reading in self.readings]
        same = len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
        return mean_of_rows(rows) if same else None

    @property
    def sampling(self) -> Part | None:
        errors = [r.sampling_error for r in self.readings if r.sampling_error is not None]
        if len(self.readings) == 1 and errors:
            # Of n blocks n − 1 degrees of freedom; of an error without blocks one, the most
            # cautious.
            return Part(errors[0], max(1, len(self.readings[0].influence) - 1))
        blocks = self.blocks
        if blocks is not None:
            return of_mean(blocks)
        # Runs over the same samples err together: their mean is as wrong as one of them.
        return Part(fmean(errors)) if len(errors) == len(self.readings) else None

    @property
    def bias(self) -> float:
        """By how much few samples make the mean too large."""
        return fmean(reading.sampling_bias or 0.0 for reading in self.readings)

    @property
    def may_judge(self) -> bool:
        """Whether what was measured is what was asked for, or its error covers the rest."""
        return all(
            reading.converged or (self.left_open is not None and reading.status in SEARCH_HOLDS)
            for reading in self.readings
        )


def _pair(one: _Cell, other: _Cell) -> Pair:
    """Return the difference of two cells with all the errors that are known."""
    difference, seeds, runs, by_seed = _over_seeds(one, other)
    sampling = _sampling_of_difference(one, other)
    parts = [part for part in (seeds, sampling) if part is not None]
    solver = _solver_of_difference(one, other, difference)
    bound = 0.0
    if solver is not None and one.is_over_probes:
        parts.append(Part(solver))
    # A bound adds to the interval; only probes are draws, whose error adds in squares.
    elif solver is not None:
        bound = solver
    known = solver is not None or seeds is not None  # else there is an interval, but no verdict
    # One run against several: of the method of the one no spread is known.
    single = seeds is None and max(len(one.readings), len(other.readings)) > 1
    rounding = _ALIKE * max(abs(reading.value) for reading in (*one.readings, *other.readings))
    stuck = seeds is not None and seeds.error <= rounding < abs(difference)  # no spread is known
    usable = (known or sampling is not None) and not single and not stuck
    # Norms and largest eigenvalues of few samples are too large; what both have of it is no news.
    # By how much few samples make one of the two larger than the other.
    few = 0.0 if sampling is None else one.bias - other.bias
    found = interval(difference - few, parts, bound) if usable else None
    by: PairedBy = "samples" if seeds is None and sampling is not None else "none"
    return Pair(
        first=one.name,
        second=other.name,
        difference=difference,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        p=found.p if found is not None and known else None,
        p_holm=None,
        runs=runs,
        paired_by="seed" if by_seed else by,
        differs=False,
    )


def _over_seeds(one: _Cell, other: _Cell) -> tuple[float, Part | None, int, bool]:
    """Return the difference, its error over the seeds, of how many runs, and whether in pairs."""
    first, second = one.by_seed, other.by_seed
    common = [seed for seed in first if seed in second]
    values = [one.trainings, other.trainings]
    fewer = min(len(found) for found in values)
    # In pairs only where that drops no run that would make the means better known.
    if len(common) > 1 and (len(common) >= _ENOUGH_RUNS or len(common) == fewer):
        differences = [first[seed] - second[seed] for seed in common]
        return fmean(differences), of_mean(differences), len(common), True
    difference = fmean(values[0]) - fmean(values[1])
    if fewer < 2:
        return difference, None, fewer, False
    return difference, of_difference(*values), fewer, False


def _sampling_of_difference(one: _Cell, other: _Cell) -> Part | None:
    first, second = one.blocks, other.blocks
    if first is not None and second is not None and len(first) == len(second):
        return of_mean([a - b for a, b in zip(first, second, strict=True)])
    parts = [part for part in (one.sampling, other.sampling) if part is not None]
    return combined(parts) if len(parts) == 2 else None


def _solver_of_difference(one: _Cell, other: _Cell, difference: float) -> float | None:
    """Return by how much the solver may have moved a difference, at its worst.

    Runs share their probes, and nobody knows how that ties their errors: they add up. A search
    finds a lower bound, so that only the smaller of two can be too small for the order to hold.
    """
    if one.readings[0].error_kind == "lower_bound":
        return (one if difference < 0 else other).solver
    if one.solver is None or other.solver is None:
        return None
    return one.solver + other.solver


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with their corrected p, and whether they differ."""
    tested = [pair.p for pair in pairs if pair.p is not None]
    corrected = iter(holm(tested))
    found: list[Pair] = []
    for pair in pairs:
        p = None if pair.p is None else next(corrected)
        # Holm's p are held against the level itself, as they are corrected.
        found.append(replace(pair, p_holm=p, differs=p is not None and p < 1 - CONFIDENCE))
    return found


def _flattest(
    cells: Sequence[_Cell], pairs: Sequence[Pair], differences: Sequence[str]
) -> tuple[str | None, str]:
    """Return the group that is flatter than all others, and why, or why there is none."""
    first = cells[0].readings[0]
    if first.role != "flatness":
        return None, "it is no measure of flatness"
    if len(cells) < 2:
        return None, "there is nothing to compare it with"
    if differences:
        return None, "different functions were measured"
    sign = -1 if first.better == "higher" else 1
    best = min(cells, key=lambda cell: sign * fmean(cell.trainings))
    for cell in cells:
        if not cell.may_judge:
            status = next(r.status for r in cell.readings if not r.converged)
            names = some([other.name for other in cells if not other.may_judge])
            return None, f"it did not converge in {names} ({in_words(status)})"
    few = next((c for c in cells if len(c.trainings) < _ENOUGH_RUNS and len(c.readings) > 1), None)
    if few is not None:
        runs, own = len(few.readings), len(few.trainings)
        seeds = f" of {own} training{'s' * (own > 1)}" if own < runs else ""
        return None, f"{few.name} has {runs} runs{seeds}, and 3 are the least"
    concerned = [pair for pair in pairs if best.name in (pair.first, pair.second)]
    for pair in concerned:
        other = pair.second if pair.first == best.name else pair.first
        if pair.p_holm is None:
            searched = first.error_kind == "lower_bound" or first.error_is_of_samples
            bounded = len(best.readings) == 1 and searched
            what = "how well their balls were searched" if bounded else "the spread over seeds"
            return None, f"of {best.name} and {other} {what} is not known"
        if not pair.differs or sign * pair.difference * (1 if pair.first == best.name else -1) > 0:
            return None, f"{best.name} and {other} do not differ (p = {pair.p_holm:.2g})"
    return best.name, _grounds(cells, concerned)


def _at_most(pairs: Sequence[Pair]) -> str:
    largest = max(pair.p_holm or 0.0 for pair in pairs)
    return "p < 0.001" if largest < 0.001 else f"p ≤ {largest:.2g}"


def _grounds(cells: Sequence[_Cell], pairs: Sequence[Pair]) -> str:
    """Return beyond which errors a group is the flattest; `pairs` are those that it is in."""
    known = ["solver"]
    single = len(cells[0].readings) == 1
    if not single:
        known.append("seeds")
    if all(cell.sampling is not None for cell in cells):
        known.append("data sample")
    errors = " and ".join([", ".join(known[:-1]), known[-1]] if len(known) > 1 else known)
    text = f"beyond the errors of the {errors} ({_at_most(pairs)})"
    missing = [] if "data sample" in known else ["on these samples"]
    missing += ["of these runs, whatever other seeds give"] if single else []
    return f"{text}; {', '.join(missing)}" if missing else text


def _flatter_pairs(quantity: Quantity) -> str:
    """Return which groups are flatter than which others, where nobody is flatter than all."""
    sign = -1 if quantity.better == "higher" else 1
    found: dict[str, list[str]] = {}
    for pair in quantity.pairs:
        if pair.differs:
            ordered = pair.first, pair.second
            low, high = ordered if sign * pair.difference < 0 else ordered[::-1]
            found.setdefault(high, []).append(low)
    lines = [f"{' and '.join(low)} flatter than {high}" for high, low in found.items()]
    return ", ".join(lines)


def _sentence(quantity: Quantity) -> str:
    if quantity.flattest is None:
        flatter = _flatter_pairs(quantity)
        # Beside numbers that did not converge, a pair would contradict that nobody is flattest.
        so_far = "as far as it was measured, " * quantity.why.startswith("it did not converge")
        beside = f"; {so_far}{flatter}" if flatter else ""
        return f"{quantity.title}: nobody is flattest: {quantity.why}{beside}"
    return f"{quantity.title}: {quantity.flattest} is flattest, {quantity.why}"
