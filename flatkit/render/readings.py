"""The readings of results, as tables and figures show them; each measure's file makes its own."""

from flatkit.comparison.readings import compared, rank, readings, unknown
from flatkit.measures.reading import Reading
from flatkit.render.notation import at_least, bound, significant, to_error

__all__ = ["compared", "error_text", "rank", "readings", "unknown", "value_text"]


def value_text(reading: Reading) -> str:
    """Return the value with the digits that its error allows, a lower bound as `≥`.

    >>> value_text(Reading("trace", "trace tr H", 12.04, 0.5, "standard_error", "converged"))
    '12.04'
    """
    if reading.error_kind == "lower_bound":
        return at_least(reading.value)
    if reading.error_kind == "exact" or reading.error is None:
        return significant(reading.value)
    # Of a standard error two digits are worth reading, of a bound one.
    digits = 2 if reading.error_kind == "standard_error" else 1
    return to_error(reading.value, reading.error, digits=digits)


def error_text(reading: Reading) -> str:
    """Return how wrong the value may be, in words, or what the measure says in place of it.

    >>> error_text(Reading("trace", "trace tr H", 12.0, 0.5, "standard_error", "converged"))
    '± 0.50'
    """
    if reading.remark:
        return reading.remark
    if reading.error_kind in ("lower_bound", "exact"):
        return reading.error_kind.replace("_", " ")
    if reading.error is None:
        return "unknown"
    if reading.error_kind == "standard_error":
        return f"± {significant(reading.error, 2)}"
    return f"{reading.error_kind} {bound(reading.error)}"
