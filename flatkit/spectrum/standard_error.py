"""Standard errors of means over few random draws, and when to look at them."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

WIDENED = "standard error, wider where draws are few"
CAUTIOUS = "jackknife, on average at least the standard error"
EXACT = "rounding alone: every entry of the diagonal was taken"
"""What the error of an estimate is, for its notes."""

# Student's t with fewer degrees of freedom has tails that no multiple of the error covers.
_LEAST_FREEDOM = 1.0


def stretch(freedom: float) -> float:
    """Return by how much a standard error that was itself estimated is to be widened.

    Two of the widened ones hold the mean as often (95.4 %) as two known ones of a normal would: the
    quotient of the quantiles of Student's t and of the normal distribution.

    Args:
        freedom: degrees of freedom of the estimated variance; below 1 it counts as 1.

    >>> round(stretch(7), 3), round(stretch(1000), 3)
    (1.214, 1.001)
    """
    return float(stdtrit(max(freedom, _LEAST_FREEDOM), ndtr(2.0))) / 2


def freedom_of(count: int, total: float, squares: float) -> float:
    """Return the degrees of freedom of a variance, from independent estimates of it.

    Those of the χ² distribution with the mean and the variance of their mean (Satterthwaite, 1946);
    infinite if they are all the same.

    Args:
        count: of the estimates.
        total: their sum.
        squares: the sum of their squares.

    >>> freedom_of(2, 1.0, 1.0), freedom_of(2, 2.0, 2.0)
    (2.0, inf)
    """
    if count < 2:
        return math.inf
    scatter = (squares - total * total / count) / (count - 1) / count
    return 2 * (total / count) ** 2 / scatter if scatter > 0 else math.inf


def mean(draws: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the mean of draws and its standard error, widened as Student's t.

    The draw that lies farthest off counts twice in the variance: of a skewed distribution a few
    draws show too little of the tail, so that without it one run in ten lies beyond two errors.

    Args:
        draws: at least 2, else the error is infinite.

    >>> value, error = mean([1.0, 3.0])
    >>> value, round(error / (math.sqrt(1.5) * stretch(1)), 12)
    (2.0, 1.0)
    """
    values = np.asarray(draws, dtype=np.float64)
    scale, count = float(np.abs(values).max()), len(values)
    if scale == 0:
        return 0.0, 0.0
    values = values / scale  # squares of large numbers overflow, those of small ones vanish
    average = float(values.mean())
    if count < 2:
        return scale * average, math.inf
    squares = np.square(values - average)
    variance = float(squares.sum() + squares.max()) / (count - 1)
    return scale * average, scale * math.sqrt(variance / count) * stretch(count - 1)


def rounding_error(rounding: float, *, frobenius: float, value: float) -> float:
    """Return the error of a trace that the rounding of the products makes.

    A product zᵀ(Az + e) is off by zᵀe, which is about ‖e‖ as e does not depend on z, and at most
    the same share of the trace where e is a multiple of Az. It does not average out.

    Args:
        rounding: ‖e‖/‖Az‖.
        frobenius: ‖A‖_F, about the length of a product Az.
        value: the trace.

    >>> rounding_error(1e-7, frobenius=2.0, value=-3.0)
    3e-07
    """
    return rounding * max(frobenius, abs(value))


def half_more(first: int, *, skewed: bool) -> int:
    """Return how many draws a standard error takes to be trusted.

    Where one or two eigenvalues decide, all of 16 draws are far too small once in 70,000 runs, with
    errors to match; of 24 once in ten million.

    >>> half_more(16, skewed=False), half_more(16, skewed=True)
    (16, 24)
    """
    return first + first // 2 if skewed else first


def next_look(count: int, needed: float, most: int) -> int:
    """Return at how many draws to look at the error again.

    An estimate that stops as soon as its own error looks small stops when it happens to be small.
    With few looks that happens seldom: at least an eighth more draws each time, at most twice as
    many.

    Args:
        count: how many there are.
        needed: how many should be enough.
        most: the budget.

    >>> next_look(16, 20.5, 400), next_look(16, 1e9, 400), next_look(16, 17, 400)
    (21, 32, 19)
    """
    enough = min(2.0 * count, math.ceil(min(needed, 2.0 * count)))
    # `needed` is itself an estimate: an eighth more at least, twice as many at most.
    return int(min(most, max(count + count // 8 + 1, enough)))
