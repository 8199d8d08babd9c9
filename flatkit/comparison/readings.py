"""The numbers of results and reports, and which of them runs are compared by."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import hypot
from typing import Any

from flatkit.errors import ResultError
from flatkit.measures.reading import Reading, plain_readings
from flatkit.measures.registry import MEASURES
from flatkit.results.report import Report
from flatkit.results.result import Result

_OF_VERIFY = ("verdict", "rounding_radius", "gradient_jump")
"""Results that `verify` adds; they are of no measure."""


def readings(result: Result) -> list[Reading]:
    """Return the numbers that a result holds; none for slices, planes and other structures.

    Raises:
        ResultError: the result lacks what its measure always has, or a measure of another package
            fails to read it.

    >>> result = Result("first_order_flatness", 0.5, error_kind="lower_bound",
    ...                 settings={"rho": 0.1})
    >>> [(reading.title, round(reading.value, 6)) for reading in readings(result)]
    [('R1 (ρ = 0.1)', 0.5), ('R1/ρ² (ρ = 0.1)', 50.0)]
    """
    if result.measure not in MEASURES:
        return plain_readings(result)
    read, outsider = MEASURES[result.measure].read, MEASURES.outsider(result.measure)
    # The result may come from a file: what is not of its measure's shape is the file's fault. The
    # code of others may raise anything.
    own = (KeyError, TypeError, ValueError, ArithmeticError)
    expected: tuple[type[Exception], ...] = (Exception,) if outsider else own
    try:
        return read(result)
    except expected as error:
        fault = f"malformed result of {result.measure}"
        if outsider:
            fault = f"{outsider} cannot read its result"
        raise ResultError(f"{fault}: {error!r}") from error


def unknown(report: Report) -> list[str]:
    """Return the measures of a report that are not installed here, so that none are compared.

    >>> unknown(Report([Result("trace", 8.0), Result("weight_norm", 2.0)]))
    ['weight_norm']
    """
    known = (*MEASURES, *_OF_VERIFY)
    return list(dict.fromkeys(one.measure for one in report if one.measure not in known))


def unmeasured(report: Report) -> Mapping[str, str]:
    """Return the measures that were asked for and have no result, each with the reason.

    >>> unmeasured(Report([], analysis={"unmeasured": {"accuracy": "the model is no classifier"}}))
    {'accuracy': 'the model is no classifier'}
    """
    found: Any = report.analysis.get("unmeasured")
    there = {result.measure for result in report}
    items: Any = found.items() if isinstance(found, Mapping) else ()
    return {str(name): str(why) for name, why in items if name not in there}


def compared(report: Report) -> dict[str, Reading]:
    """Return by key the readings that tables and figures compare, in the order of the table.

    >>> list(compared(Report([Result("trace", 8.0, 0.1, error_kind="standard_error")])))
    ['trace']
    """
    found: dict[str, Reading] = {}
    for result in report:
        for reading in readings(result) if result.measure in MEASURES else ():
            if reading.role != "detail":
                found.setdefault(reading.key, reading)
    found |= {gap.key: gap for gap in _gaps(found)}
    return dict(sorted(found.items(), key=lambda item: rank(item[1])))


def _gaps(found: Mapping[str, Reading]) -> list[Reading]:
    """Return by how much a network does worse on test data: what it fails to generalise."""
    gaps = [
        _gap(found, "test_loss", "train_loss", "loss_gap", "loss gap (test - train)"),
        _gap(found, "train_accuracy", "test_accuracy", "accuracy_gap", "accuracy gap (%)"),
    ]
    return [gap for gap in gaps if gap is not None]


def _gap(
    found: Mapping[str, Reading], large: str, small: str, key: str, title: str
) -> Reading | None:
    """Return the difference of two readings on samples that have nothing to do with each other."""
    if large not in found or small not in found:
        return None
    one, other = found[large], found[small]
    # What rounding does to the one, it may do to the other the opposite way: bounds add up.
    bounds = [reading.error for reading in (one, other) if reading.error is not None]
    worse = other if one.converged else one
    errors = [r.sampling_error for r in (one, other) if r.sampling_error is not None]
    blocks = [one.influence, other.influence]
    paired = zip(*blocks, strict=True) if len(blocks[0]) == len(blocks[1]) else ()
    return replace(
        one,
        key=key,
        title=title,
        value=one.value - other.value,
        error=sum(bounds) if len(bounds) == 2 else None,
        status=worse.status,
        better="lower",
        drawn=False,
        place=2,
        sampling_error=hypot(*errors) if len(errors) == len(blocks) else None,
        sampling_error_is=next(
            (r.sampling_error_is for r in (one, other) if r.sampling_error is None),
            one.sampling_error_is,
        ),
        influence=tuple(a - b for a, b in paired),
    )


def rank(reading: Reading) -> tuple[int, int, float]:
    """Return the place of a reading in a table: that of its measure, then its own, then the radius.

    >>> small, large = (
    ...     Reading("R0", "R0", 1.0, None, "lower_bound", "budget", rho=rho) for rho in (0.1, 0.2)
    ... )
    >>> rank(small) < rank(large)
    True
    """
    names = list(MEASURES)
    measure = names.index(reading.measure) if reading.measure in names else len(names)
    return (measure, reading.place, reading.rho or 0.0)


def shared(runs: Sequence[Mapping[str, Reading]]) -> tuple[dict[str, str], list[str]]:
    """Return key -> title of what every run has, and the titles of what only some have.

    >>> one, other = ({key: Reading(key, key, 1.0, 0.0, "exact", "converged") for key in keys}
    ...               for keys in ("ab", "b"))
    >>> shared([one, other])
    ({'b': 'b'}, ['a'])
    """
    every = {key: reading for run in runs for key, reading in run.items()}
    ordered = sorted(every.values(), key=rank)
    common = [reading for reading in ordered if all(reading.key in run for run in runs)]
    left_out = [reading.title for reading in ordered if reading not in common]
    return {reading.key: reading.title for reading in common}, left_out
