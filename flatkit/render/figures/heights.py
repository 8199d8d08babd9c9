"""Which vertical axis suits the values: from zero, or logarithmic where they span decades."""

from collections.abc import Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes

# Conventions, not measured: with less, a linear axis still shows the differences of small values.
_WIDE, _STEEP = 20.0, 300.0


def spans_decades(values: Any) -> bool:
    """Return whether all finite values are positive, the largest over 20 times the smallest.

    >>> spans_decades([1.0, 2.0, 30.0]), spans_decades([0.0, 2.0, 30.0])
    (True, False)
    """
    finite = _finite(values)
    return bool(finite.size and finite.max() > _WIDE * finite.min() > 0)


def rises_steeply(values: Any) -> bool:
    """Return whether the largest finite value is over 300 times the median of the positive ones.

    The right question of a curve through a minimum, which has a value near zero in any case.

    >>> rises_steeply([0.0, 2.0, 2.0, 30.0]), rises_steeply([0.0, 2.0, 2.0, 3000.0])
    (False, True)
    """
    finite = _finite(values)
    positive = finite[finite > 0]
    return bool(positive.size and finite.max() > _STEEP * numpy.median(positive))


def scale_heights(axis: Axes, heights: Sequence[float]) -> None:
    """Let an axis start at zero, so that heights compare, or be logarithmic over decades.

    An axis with negative heights stays as it is.

    >>> from flatkit.render.style import panels
    >>> _, axes = panels(2, width=2.0, height=2.0)
    >>> for axis, heights in zip(axes, ([1.0, 3.0], [1.0, 100.0])):
    ...     scale_heights(axis, heights)
    >>> [axis.get_yscale() for axis in axes]
    ['linear', 'log']
    """
    if spans_decades(heights):
        axis.set_yscale("log")
    elif min(heights, default=-1.0) >= 0:
        axis.set_ylim(bottom=0.0)


def _finite(values: Any) -> numpy.ndarray:
    array = numpy.asarray(values, dtype=float)
    return array[numpy.isfinite(array)]
