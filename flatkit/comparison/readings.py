"""The numbers of results and reports, and which of them runs are compared by."""

from collections.abc import Mapping, Sequence

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
    return dict(sorted(found.items(), key=lambda item: rank(item[1])))


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
