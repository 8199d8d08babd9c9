"""Grids from coarse to fine: the order in which points are measured, and what lies between them."""

from collections.abc import Sequence

import numpy

from flatkit.errors import InvalidArgumentError

COARSEST = 4
"""The coarsest grid has at least so many intervals along an axis, where there are as many."""


def axis_steps(
    low: float, high: float, points: int, *, exact: Sequence[float] = (0.0,)
) -> numpy.ndarray:
    """Return even steps from low to high, with the nearest moved onto each exact one between.

    Where the nearest is an end, or is taken, the exact step is put in beside it.

    Raises:
        InvalidArgumentError: fewer than 3 points, or no width.

    >>> axis_steps(-1, 1, 5).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    >>> axis_steps(0, 3, 4, exact=[0.9, 2.9]).tolist()
    [0.0, 0.9, 2.0, 2.9, 3.0]
    """
    if points < 3:
        raise InvalidArgumentError(f"points must be a whole number >= 3, got {points}")
    if not low < high:
        raise InvalidArgumentError(f"a range needs a width, got {low} to {high}")
    steps = numpy.linspace(low, high, points).tolist()
    taken = {0, points - 1}
    for value in exact:
        if not low < value < high:
            continue
        nearest = min(range(points), key=lambda i: abs(steps[i] - value))
        # Both ends stay, and so does a step that was moved onto another checkpoint.
        if nearest in taken and steps[nearest] != value:
            steps.append(value)
        else:
            steps[nearest] = float(value)
            taken.add(nearest)
    return numpy.array(sorted(set(steps)))


def levels(count: int, *, centre: int, coarsest: int = COARSEST) -> list[numpy.ndarray]:
    """Return the numbers of the steps on each level, each a part of the next; the last has all.

    Every level has both ends and the centre.

    Args:
        count: of the steps.
        centre: the number of the one in the middle.
        coarsest: the first level has about so many intervals, or up to twice as many.

    >>> [level.tolist() for level in levels(9, centre=4)]
    [[0, 2, 4, 6, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]]
    """
    stride = 1
    while 2 * stride * coarsest < count:
        stride *= 2
    found = []
    while stride >= 1:
        # Counted from the centre, so that it is on every level, and levels hold those before them.
        inside = {i for i in range(count) if (i - centre) % stride == 0}
        found.append(numpy.array(sorted(inside | {0, count - 1})))
        stride //= 2
    return found


def weights(known: numpy.ndarray, wanted: numpy.ndarray) -> numpy.ndarray:
    """Return the matrix [wanted, known] of cubic interpolation from some steps to others.

    Four neighbours each (fewer, if there are fewer), by Lagrange's formula: exact on cubics.

    >>> weights(numpy.array([0.0, 1.0, 2.0, 3.0]), numpy.array([1.5]))
    array([[-0.0625,  0.5625,  0.5625, -0.0625]])
    """
    # Cubic: with more neighbours a kink, as of ReLU, would ripple further.
    size = min(4, len(known))
    matrix = numpy.zeros((len(wanted), len(known)))
    for row, x in enumerate(wanted):
        exact = numpy.flatnonzero(known == x)
        if exact.size:
            matrix[row, exact[0]] = 1.0
            continue
        right = int(numpy.searchsorted(known, x))
        start = min(max(right - size // 2, 0), len(known) - size)
        near = known[start : start + size]
        for i in range(size):
            others = numpy.delete(near, i)
            matrix[row, start + i] = numpy.prod((x - others) / (near[i] - others))
    return matrix


def interpolate(values: numpy.ndarray, matrices: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """Return values [n] or [ny, nx] on finer steps, one matrix of `weights` per dimension.

    Infinite where all that an entry depends on is; no number where only some of it is finite.

    >>> matrix = weights(numpy.array([0.0, 1.0, 2.0]), numpy.array([0.0, 0.5, 1.0, 1.5, 2.0]))
    >>> interpolate(numpy.array([0.0, 1.0, 4.0]), [matrix]).tolist()
    [0.0, 0.25, 1.0, 2.25, 4.0]
    """
    finite = numpy.isfinite(values)
    found = _apply(numpy.where(finite, values, 0.0), matrices)
    touched = [(matrix != 0).astype(float) for matrix in matrices]
    spoiled = _apply((~finite).astype(float), touched)
    infinite = _apply(numpy.isposinf(values).astype(float), touched)
    everything = _apply(numpy.ones_like(values), touched)
    # Spoilt where any neighbour is not finite; infinite only where all of them are.
    found[spoiled > 0] = numpy.nan
    found[infinite == everything] = numpy.inf
    return found


def _apply(values: numpy.ndarray, matrices: Sequence[numpy.ndarray]) -> numpy.ndarray:
    if values.ndim == 1:
        return matrices[0] @ values
    return matrices[0] @ values @ matrices[1].T
