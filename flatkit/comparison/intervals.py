"""Intervals and tests of differences whose errors have several sources.

A difference is off by parts that are independent of each other, each with a standard error and the
degrees of freedom with which that is known, and by a bound that nothing exceeds (a residual, or
what a search in a ball leaves open). The parts add up in squares, their degrees of freedom by
Satterthwaite's formula (1946), so that an interval covers the truth as often as it says whichever
part is the largest; the bound widens it on both sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
_UNEQUAL = 2
"""Ratio of the sizes of two groups beyond which Welch's degrees of freedom promise too much."""


class Part(NamedTuple):
    """One source of error.

    Attributes:
        error: its standard error.
        freedom: degrees of freedom with which that is known; infinite if it is exact.
    """

    error: float
    freedom: float = math.inf


@dataclass(frozen=True)
class Interval:
    """What is known of a number.

    Attributes:
        low: of 95 %.
        high: of 95 %.
        p: how likely so large a number were by chance, if the true one were 0; two-sided.
    """

    low: float
    high: float
    p: float


def interval(value: float, parts: Sequence[Part], bound: float = 0.0) -> Interval:
    """Return the interval and test of a number.

    Args:
        value: the number.
        parts: of its error, independent; none if it is exact.
        bound: by which it may be off beside them.

    >>> found = interval(2.0, [Part(1.0)])
    >>> round(found.low, 2), round(found.high, 2), round(found.p, 4)
    (0.04, 3.96, 0.0455)
    >>> interval(2.0, [Part(0.6, 3), Part(0.8, 5)]).p > found.p
    True
    >>> interval(0.5, [], bound=1.0)
    Interval(low=-0.5, high=1.5, p=1.0)
    """
    from scipy.special import stdtr, stdtrit

    error, freedom = combined(parts)
    beyond = max(0.0, abs(value) - bound)
    if error == 0:
        return Interval(value - bound, value + bound, float(beyond == 0))
    reach = error * float(stdtrit(min(freedom, 1e12), (1 + CONFIDENCE) / 2)) + bound
    p = min(1.0, 2 * float(stdtr(min(freedom, 1e12), -beyond / error)))
    return Interval(value - reach, value + reach, p)


def combined(parts: Sequence[Part]) -> Part:
    """Return independent parts as one.

    >>> combined([Part(3.0), Part(4.0)])
    Part(error=5.0, freedom=inf)
    >>> combined([Part(1.0, 4), Part(1.0, 4)]).freedom
    8.0
    """
    total = math.fsum(part.error**2 for part in parts)
    below = math.fsum((part.error**2 / total) ** 2 / part.freedom for part in parts if total)
    return Part(math.sqrt(total), 1 / below if below else math.inf)


def of_mean(values: Sequence[float]) -> Part:
    """Return the error of the mean of independent values, two at least.

    >>> of_mean([1.0, 3.0])
    Part(error=1.0, freedom=1)
    """
    return Part(deviation(values) / math.sqrt(len(values)), len(values) - 1)


def of_difference(one: Sequence[float], other: Sequence[float]) -> Part:
    """Return the error of the difference of the means of independent values, two each at least.

    The degrees of freedom are Welch's (1947). Where one group is more than twice as large they are
    those of the smaller one alone (Hsu, 1938): of 3 values against 20 Welch's formula calls 7 % of
    equal normal groups different, and 13 % of skewed ones.

    >>> of_difference([1.0, 3.0], [2.0, 4.0])
    Part(error=1.4142135623730951, freedom=2.0)
    >>> of_difference([1.0, 3.0], [2.0, 4.0, 2.0, 4.0, 2.0]).freedom
    1
    """
    total = combined([of_mean(one), of_mean(other)])
    fewer, more = sorted((len(one), len(other)))
    return Part(total.error, fewer - 1) if more > _UNEQUAL * fewer else total


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of values, two at least; infinite if one of them is.

    >>> round(deviation([1.0, 3.0]), 3), deviation([1.0, math.inf])
    (1.414, inf)
    """
    return stdev(values) if all(map(math.isfinite, values)) else math.inf


def mean_of_rows(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each column of rows of one length.

    >>> mean_of_rows([[1.0, 2.0], [3.0, 4.0]])
    [2.0, 3.0]
    """
    return [fmean(column) for column in zip(*rows, strict=True)]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return the p of a family of tests so that any false one is as rare as each says (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    ranking = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    found, largest = [0.0] * len(probabilities), 0.0
    for rank, place in enumerate(ranking):
        largest = max(largest, min(1.0, (len(ranking) - rank) * probabilities[place]))
        found[place] = largest
    return found
