"""Numbers as text: as many digits as the error allows, and never more."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

_FIXED = range(-3, 5)
"""Powers of ten that are written without an exponent."""
_MOST_DIGITS = 6  # float32 holds seven, and the last is rounding


def significant(value: float, digits: int = 4, *, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return a number with so many significant digits.

    >>> significant(0.123456), significant(1234567.0), significant(1.2e-7, 2)
    ('0.1235', '1.235e6', '1.2e-7')
    >>> significant(math.inf - math.inf)
    'no number'
    """
    if value == 0 or not math.isfinite(value):
        return _special(value)
    return _text(value, decimals=digits - 1 - _power(value), rounding=rounding)


def radius(rho: float) -> str:
    """Return a radius with two digits at most, for labels.

    >>> radius(0.05), radius(0.0338), radius(0.000187), radius(12.0)
    ('0.05', '0.034', '1.9e-4', '12')
    """
    return f"{rho:.2g}" if 1e-3 <= rho < 100 else significant(rho, 2)


def at_least(value: float) -> str:
    """Return a lower bound with three digits, rounded down so that it remains one.

    >>> at_least(0.12399), at_least(-0.12301)
    ('≥ 0.123', '≥ -0.124')
    """
    # 12 digits first: 0.5/0.1² is 50 in decimals and 49.99... in binary.
    return f"≥ {significant(float(f'{value:.12g}'), 3, rounding=ROUND_FLOOR)}"


def bound(error: float) -> str:
    """Return an error bound with one digit, rounded up so that it remains one.

    >>> bound(2.1e-6), bound(9.6e-7), bound(0.0)
    ('3e-6', '1e-6', '0')
    """
    return significant(error, 1, rounding=ROUND_CEILING)


def to_error(value: float, error: float, *, digits: int = 2) -> str:
    """Return a value with as many digits as its error leaves certain, six at most.

    Args:
        value: the number.
        error: its error, >= 0.
        digits: how many decimal places of the error itself count as certain enough to print.

    >>> to_error(123.456, 2.34), to_error(12.345678, 3e-9), to_error(8.123, 40.0)
    ('123.5', '12.3457', '8')
    """
    if not math.isfinite(value) or not math.isfinite(error):
        return significant(value)
    if error == 0:
        return significant(value)
    decimals = digits - 1 - _power(error)
    if value == 0:
        return _text(0.0, decimals=decimals)
    return _text(value, decimals=min(decimals, _MOST_DIGITS - 1 - _power(value)))


def with_spread(value: float, spread: float) -> str:
    """Return value ± spread to the same decimal, the spread with two digits.

    >>> with_spread(123.456, 2.34), with_spread(1.2345e-6, 3.21e-8), with_spread(0.5, 0.0)
    ('123.5 ± 2.3', '(1.234 ± 0.032)e-6', '0.5000 ± 0')
    >>> with_spread(3.0, 1e-40)
    '3.000000000000000 ± 0.000000000000000'
    """
    if not math.isfinite(spread):
        return f"{significant(value)} ± ?"
    if spread == 0:
        return f"{significant(value)} ± 0"
    if not math.isfinite(value):
        return f"{_special(value)} ± {significant(spread, 2)}"
    # By the larger of both, so that they share one exponent.
    power = max(_power(value) if value else _power(spread), _power(spread))
    # float64 holds 16 digits; more would be made up, and Decimal counts 28 at most.
    decimals = min(1 - _power(spread), 15 - power)
    scale = 0 if power in _FIXED else power
    texts = [
        _fixed(Decimal(repr(float(number))).scaleb(-scale), decimals + scale, ROUND_HALF_EVEN)
        for number in (value, spread)
    ]
    return " ± ".join(texts) if scale == 0 else f"({' ± '.join(texts)})e{scale}"


def duration(seconds: float) -> str:
    """Return a time with two digits or so, for readers.

    >>> [duration(seconds) for seconds in (0.00213, 8.04, 75.0, 252.0, 7500.0)]
    ['2.1 ms', '8 s', '75 s', '4.2 min', '2.1 h']
    """
    for unit, least in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        # 75 s, not 1.2 min: one and a half of the larger unit at least.
        if seconds >= least * (1.5 if least > 1 else 1.0):
            return f"{float(f'{seconds / least:.2g}'):g} {unit}"
    return f"{float(f'{seconds * 1e3:.2g}'):g} ms"


def _special(value: float) -> str:
    if math.isnan(value):  # as the difference of two losses that are infinite
        return "no number"
    return "0" if value == 0 else f"{'-' if value < 0 else ''}∞"


def _power(value: float) -> int:
    # Of the shortest decimals that mean this float, and not of its binary tail.
    return Decimal(repr(float(value))).adjusted()


def _text(value: float, *, decimals: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return the value rounded at a decimal place, with an exponent where zeros would pile up."""
    number = Decimal(repr(float(value)))
    if number == 0 or number.adjusted() in _FIXED:
        return _fixed(number, decimals, rounding)
    # Rounded first: 9.6e-7 with one digit is 1e-6, not 10e-7.
    rounded = number.quantize(Decimal(1).scaleb(-decimals), rounding=rounding)
    power, digits = (rounded or number).adjusted(), decimals + number.adjusted()
    mantissa = _fixed(number / Decimal(10) ** power, max(0, digits), rounding)
    return f"{mantissa}e{power}"


def _fixed(number: Decimal, decimals: int, rounding: str) -> str:
    rounded = number.quantize(Decimal(1).scaleb(-decimals), rounding=rounding)
    if rounded == 0:
        rounded = abs(rounded)  # no minus zero
    return f"{rounded:.{max(0, decimals)}f}"
