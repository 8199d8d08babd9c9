"""Numbers of a picture: width, asymmetry, barrier, roughness, so that eyes need not compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy
from scipy.interpolate import interpn

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.surface import Surface


@dataclass(frozen=True)
class Numbers:
    """Numbers of one line of a surface, through the centre along one axis.

    Attributes:
        axis: `t`, `x` or `y`.
        level: the rise of the loss above its value at the centre, that ends the basin.
        width: length, in parameter space, of the set around the centre where the loss is below
            the level; None if it reaches the edge.
        asymmetry: of the two sides of that set: 0 if they are equal, towards 1 if the right one
            is longer.
        roughness: how much further the curve goes up and down than a single valley would.
        width_rounding: how far losses in 16 bits may put the width off: infinitely, if the set may
            reach the edge; 0 for losses in 32 bits.
        asymmetry_rounding: the same of the asymmetry.
        roughness_rounding: the same of the roughness.

    >>> Numbers("t", level=0.1, width=None, asymmetry=None, roughness=0.0).axis
    't'
    """

    axis: str
    level: float
    width: float | None
    asymmetry: float | None
    roughness: float
    width_rounding: float = 0.0
    asymmetry_rounding: float = 0.0
    roughness_rounding: float = 0.0


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises between two checkpoints of a surface.

    Attributes:
        first: name of one.
        second: name of the other.
        height: the largest rise above the straight line between the two losses; on a plane, of
            the surface interpolated linearly.
        rounding: how far losses in 16 bits may put it off; 0 of those in 32 bits.

    >>> Barrier("sgd", "gam", 0.25).height
    0.25
    """

    first: str
    second: str
    height: float
    rounding: float = 0.0


def surface_numbers(
    surface: Surface, *, level: float = 0.1, quantity: str = "loss"
) -> list[Numbers]:
    """Return the numbers of a surface along each axis, through the centre (the step nearest 0).

    Raises:
        InvalidArgumentError: no such quantity, or a level that is not positive.

    >>> line = Surface({"t": [-2.0, -1.0, 0.0, 1.0, 2.0]}, {"loss": [4.0, 1.0, 0.0, 1.0, 4.0]})
    >>> (found,) = surface_numbers(line, level=1.0)
    >>> found.width, found.asymmetry
    (2.0, 0.0)
    """
    measured, off = _values(surface, quantity), _roundings(surface, quantity)
    found: list[Numbers] = []
    centres = {name: int(numpy.abs(steps).argmin()) for name, steps in surface.axes.items()}
    for axis, length in zip(surface.axes, surface.lengths, strict=True):
        # Through the step nearest to 0, as a range need not hold the centre.
        others = tuple(
            slice(None) if name == axis else centres[name] for name in reversed(list(surface.axes))
        )
        values = measured[others]
        steps = surface.axes[axis] * length
        width, asymmetry = basin(steps, values, level=level)
        one = Numbers(axis, level, width, asymmetry, roughness(values))
        found.append(one if off is None else _with_rounding(one, steps, values, off[others]))
    return found


def barriers(surface: Surface, *, quantity: str = "loss") -> list[Barrier]:
    """Return the barrier between every two checkpoints that lie in the surface.

    Raises:
        InvalidArgumentError: no such quantity.

    >>> markers = [{"name": "a", "at": [0.0]}, {"name": "b", "at": [1.0]}]
    >>> line = Surface({"t": [0.0, 0.5, 1.0]}, {"loss": [1.0, 4.0, 2.0]}, {"markers": markers})
    >>> barriers(line)
    [Barrier(first='a', second='b', height=2.5, rounding=0.0)]
    """
    values, off = _values(surface, quantity), _roundings(surface, quantity)
    inside = [marker for marker in surface.header.get("markers", ()) if _lies_in(marker, surface)]
    return [
        Barrier(
            first["name"], second["name"], *_height(surface, values, off, first["at"], second["at"])
        )
        for first, second in combinations(inside, 2)
    ]


def basin(
    steps: numpy.ndarray, values: numpy.ndarray, *, level: float
) -> tuple[float | None, float | None]:
    """Return width and asymmetry of the connected set around 0 where L ≤ L(0) + level.

    The crossings r > 0 and −l < 0 are found by linear interpolation between the steps; the width
    is r + l, the asymmetry (r − l)/(r + l): 0 for a symmetric basin, towards +1 if it is flat to
    the right. Error of an even grid of spacing h: at most h² max|L''| / (8 |L'|) at a crossing.

    Args:
        steps: displacements [n], increasing.
        values: L [n].
        level: rise above L(0), > 0.

    Returns:
        (None, None) if the basin reaches an edge of the grid, or L(0) is not finite.

    >>> steps = numpy.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    >>> basin(steps, abs(steps), level=1.5), basin(steps, abs(steps), level=2.5)
    ((3.0, 0.0), (None, None))
    """
    if not (math.isfinite(level) and level > 0):
        raise InvalidArgumentError(f"level must be a finite number > 0, got {level!r}")
    centre = int(numpy.abs(steps).argmin())
    if not math.isfinite(values[centre]):
        return None, None
    rise = values - values[centre] - level
    right = _crossing(steps[centre:], rise[centre:])
    left = _crossing(steps[centre::-1], rise[centre::-1])
    if right is None or left is None:
        return None, None
    width = right - left
    # Both crossings are places, not distances: r = right − centre, and l = centre − left.
    return width, float(right + left - 2 * steps[centre]) / width


def barrier_height(steps: numpy.ndarray, values: numpy.ndarray) -> float:
    """Return max over t of L(t) − the straight line between L at the two ends (Garipov, 2018).

    Zero or more; infinite if a value between is. Ends that are not finite give infinity.
    A lower bound of that of the continuous path: only the steps of the grid are seen.

    >>> barrier_height(numpy.array([0.0, 0.5, 1.0]), numpy.array([1.0, 4.0, 2.0]))
    2.5
    """
    if not numpy.isfinite(values).all():
        return math.inf
    share = (steps - steps[0]) / (steps[-1] - steps[0])
    return float((values - (1 - share) * values[0] - share * values[-1]).max())


def roughness(values: numpy.ndarray) -> float:
    """Return how much further the curve goes up and down than a single valley would.

    Total variation Σ|L(tᵢ₊₁) − L(tᵢ)| over that of the monotone descent from the left end to the
    minimum and ascent to the right end, minus 1: 0 for any curve with one valley, 1 if it moves
    twice as far. 0 for a constant, infinite if a value is not finite.

    >>> roughness(numpy.array([4.0, 1.0, 0.0, 1.0, 4.0]))
    0.0
    >>> roughness(numpy.array([1.0, 0.0, 1.0, 0.0, 1.0]))
    1.0
    """
    if not numpy.isfinite(values).all():
        return math.inf
    # One descent to the minimum and one ascent from it: the variation of a single valley.
    least = float(values[0] + values[-1] - 2 * values.min())
    total = float(numpy.abs(numpy.diff(values)).sum())
    found = total / least - 1.0 if least > 0 else 0.0
    # Less is rounding of the sums, which may also be below 0.
    return found if found > 1e-12 else 0.0


_BETWEEN = 201
"""Points of the segment between two checkpoints of a plane, beside its crossings of the grid."""


def _values(surface: Surface, quantity: str) -> numpy.ndarray:
    if quantity not in surface.quantities:
        have = ", ".join(surface.quantities)
        raise InvalidArgumentError(f"the surface has no {quantity!r}; it has {have}")
    return surface.quantities[quantity]


def _lies_in(marker: Mapping[str, Any], surface: Surface) -> bool:
    """Whether a checkpoint lies in the line or plane, and inside its range."""
    return not marker.get("off_plane") and all(
        steps[0] <= step <= steps[-1]
        for step, steps in zip(marker["at"], surface.axes.values(), strict=True)
    )


def _roundings(surface: Surface, quantity: str) -> numpy.ndarray | None:
    """Return what 16 bits may have put the values off; None of those in 32 bits."""
    off = surface.quantities.get(f"{quantity}_rounding")
    return None if off is None else numpy.abs(off)


def _with_rounding(
    found: Numbers, steps: numpy.ndarray, values: numpy.ndarray, off: numpy.ndarray
) -> Numbers:
    """Return numbers with what they may be off where each value may be off by so much [n]."""
    return replace(
        found,
        **_basin_rounding(found, steps, values, off),
        roughness_rounding=_roughness_rounding(found.roughness, values, off),
    )


def _basin_rounding(
    found: Numbers, steps: numpy.ndarray, values: numpy.ndarray, off: numpy.ndarray
) -> dict[str, float]:
    """Return what width and asymmetry may be off."""
    if found.width is None or found.asymmetry is None:
        return {}
    sides: list[tuple[float, float]] = []
    for sign in (1.0, -1.0):  # narrowest where all but the centre is higher, then widest
        moved, centre = values + sign * off, int(numpy.abs(steps).argmin())
        moved[centre] = values[centre] - sign * off[centre]
        width, asymmetry = basin(steps, moved, level=found.level)
        if width is None or asymmetry is None:
            return {"width_rounding": math.inf, "asymmetry_rounding": math.inf}
        sides.append((width * (1 - asymmetry) / 2, width * (1 + asymmetry) / 2))
    (least_left, least_right), (left, right) = sides
    least = (least_right - left) / (least_right + left)
    most = (right - least_left) / (right + least_left)
    widths = (least_left + least_right, left + right)
    return {
        "width_rounding": max(abs(width - found.width) for width in widths),
        "asymmetry_rounding": max(abs(each - found.asymmetry) for each in (least, most)),
    }


def _roughness_rounding(found: float, values: numpy.ndarray, off: numpy.ndarray) -> float:
    """Return what the roughness may be off; infinity where the valley may be none."""
    if not (math.isfinite(found) and numpy.isfinite(off).all()):
        return math.inf
    least = float(values[0] + values[-1] - 2 * values.min())
    total = float(numpy.abs(numpy.diff(values)).sum())
    # Each term of the total changes by what both its ends are off.
    more = float((off[1:] + off[:-1]).sum())
    deeper = float(off[0] + off[-1] + 2 * off.max())
    if least <= deeper:
        return math.inf
    most = (total + more) / (least - deeper) - 1.0
    fewest = max(0.0, (total - more) / (least + deeper) - 1.0)
    return max(most - found, found - fewest)


def _height(
    surface: Surface,
    values: numpy.ndarray,
    off: numpy.ndarray | None,
    start: Sequence[float],
    end: Sequence[float],
) -> tuple[float, float]:
    """Return the barrier along the straight way from one point to another, and what it is off."""
    shares = numpy.linspace(0.0, 1.0, _BETWEEN)
    for steps, a, b in zip(surface.axes.values(), start, end, strict=True):
        if a != b:
            # Between lines of the grid the surface is smooth: what stands out lies on one.
            crossings = (steps - a) / (b - a)
            shares = numpy.union1d(shares, crossings[(crossings > 0) & (crossings < 1)])
    way = numpy.outer(1 - shares, start) + numpy.outer(shares, end)  # [n, D]
    # Without rounding, which could put an end a hair outside of the grid.
    way[0], way[-1] = start, end
    axes = tuple(reversed(list(surface.axes.values())))
    loss = interpn(axes, values, way[:, ::-1], method="linear")
    height = barrier_height(shares, loss)
    if off is None:
        return height, 0.0
    wrong = interpn(axes, off, way[:, ::-1], method="linear")
    known = bool(numpy.isfinite(wrong).all())
    return height, float(wrong.max() + max(wrong[0], wrong[-1])) if known else math.inf


def _crossing(steps: numpy.ndarray, rise: numpy.ndarray) -> float | None:
    """Return where the rise first exceeds zero, walking from the first step."""
    for i in range(1, len(steps)):
        if math.isnan(rise[i]):
            return None
        if rise[i] >= 0:
            # Towards infinity no point in between can be told.
            if math.isinf(rise[i]):
                return float(steps[i])
            share = -rise[i - 1] / (rise[i] - rise[i - 1])
            return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
    return None
