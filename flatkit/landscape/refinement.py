"""Which points to measure next: all of them from coarse to fine, or only where the surface bends.

A level has every second step of the next. Cubic interpolation of a level predicts the next; half
the distance makes half of the miss at a kink (as the gradient norm has at a minimum, or that of
ReLU networks anywhere), and a sixteenth where the surface is smooth. So where a measured point
misses its prediction by more than twice the tolerance, the finer points around it are measured;
elsewhere they are interpolated. The first two levels are measured whole.

A miss is a share of the range, on the scale on which surfaces are drawn: logarithmic where all
values are positive, over at most four decades. On one that goes from 0.1 to 10, a share of 0.01 is
4.6 % of the value at every point; relative to the value alone, the bottom of a valley that is
decades deep would take most of the points, and no picture would show it.

This is an estimate, no bound: a feature that lies between the points of the second level can be
overlooked. Held against planes measured whole, losses and gradient norms were within the tolerance,
and accuracies, which go in steps, within three times it (`python -m benchmarks.landscape refined`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy

from flatkit.landscape.grids import COARSEST, interpolate, levels, weights

_Level = Sequence[Sequence[int] | numpy.ndarray]

_FALL = 2.0
"""The miss of a level over that of the next, at worst."""

_NARROWEST, _WIDEST = 1.001, 1e4
"""The least and the most that the largest value counts over the smallest."""

ERRORS = ("_residual", "_rounding")
"""How the names end of what says how wrong another quantity may be."""

_REACH = 2
"""Refine within so many steps of the coarser grid around a point that missed."""


class Refinement:
    """The points of a grid, level by level.

    Args:
        axes: name -> steps, as in `Surface`.
        tolerance: None for every point; else the miss that is small enough, as a share of the
            range (logarithmic, see the module; of accuracies: of 1), e.g. 0.02.
        coarse_first: whether there are levels; without them (and without a tolerance) all points
            are one, in the order of their indices.
        coarsest: the intervals of the first level, about.

    Attributes:
        values: name -> what is known so far, NaN elsewhere, in the shape of the surface.
        measured: where a value was measured.

    >>> t = numpy.linspace(-1.0, 1.0, 33)
    >>> job = Refinement({"t": t}, tolerance=0.01)
    >>> for points in job.levels():
    ...     for (i,) in points:
    ...         job.put((i,), {"loss": t[i] ** 2 + 1})
    >>> int(job.measured.sum()), bool(abs(job.filled("loss") - t**2 - 1).max() < 1e-12)
    (9, True)
    """

    def __init__(
        self,
        axes: Mapping[str, numpy.ndarray],
        *,
        tolerance: float | None = None,
        coarse_first: bool = True,
        coarsest: int = COARSEST,
    ) -> None:
        self._steps = list(reversed(list(axes.values())))  # as the dimensions of the values
        self._tolerance = tolerance
        self.shape = tuple(len(steps) for steps in self._steps)
        self.values: dict[str, numpy.ndarray] = {}
        self.measured = numpy.zeros(self.shape, bool)
        parts = [
            levels(len(s), centre=int(numpy.abs(s).argmin()), coarsest=coarsest)
            for s in self._steps
        ]
        depth = max(len(part) for part in parts)
        # A short axis is whole on the finest levels, and on those before them too.
        self._levels = [
            [part[max(0, number - depth + len(part))] for part in parts] for number in range(depth)
        ]
        if tolerance is None and not coarse_first:
            self._levels = self._levels[-1:]
        self._done = 0

    def levels(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield the points to measure on each level, as indices of the values; put them all."""
        seen = numpy.zeros(self.shape, bool)
        wanted = numpy.ones(self.shape, bool)
        for number, indices in enumerate(self._levels):
            level = numpy.zeros(self.shape, bool)
            level[numpy.ix_(*indices)] = True
            new = level & ~seen & wanted
            self._done = number + 1
            yield [tuple(map(int, point)) for point in numpy.argwhere(new)]
            if self._tolerance is not None and number > 0:
                wanted = self._around(self._missed(number, new, self._tolerance), number)
            seen |= level

    def put(self, point: tuple[int, ...], values: Mapping[str, float]) -> None:
        """Keep what was measured at a point."""
        for name, value in values.items():
            if name not in self.values:
                self.values[name] = numpy.full(self.shape, math.nan)
            self.values[name][point] = value
        self.measured[point] = True

    def grid(self, number: int) -> Sequence[Sequence[int]]:
        """Return the numbers of the steps of a level, of each dimension of the values."""
        return [list(map(int, part)) for part in self._levels[number]]

    def filled(self, name: str) -> numpy.ndarray:
        """Return a quantity everywhere: measured, or interpolated from the whole levels so far."""
        known = self._on_level(name, max(self._done - 1, 0))
        coarse = self._levels[max(self._done - 1, 0)]
        found = interpolate(known, self._matrices(coarse, [range(n) for n in self.shape]))
        return numpy.where(self.measured, self.values[name], found)

    def _on_level(self, name: str, number: int) -> numpy.ndarray:
        """Return a quantity on all points of a level."""
        indices = self._levels[number]
        own = self.values[name][numpy.ix_(*indices)]
        if number == 0:
            return own
        predicted = self._predicted(name, number)
        return numpy.where(self.measured[numpy.ix_(*indices)], own, predicted)

    def _predicted(self, name: str, number: int) -> numpy.ndarray:
        """Return on the points of a level what the level before says."""
        coarse, fine = self._levels[number - 1], self._levels[number]
        return interpolate(self._on_level(name, number - 1), self._matrices(coarse, fine))

    def _missed(self, number: int, new: numpy.ndarray, tolerance: float) -> numpy.ndarray:
        """Return where, of the new points of a level, the prediction was wrong."""
        missed = numpy.zeros(self.shape, bool)
        grid = numpy.ix_(*self._levels[number])
        for name in self.values:
            if name.endswith(ERRORS):  # as rough as noise
                continue
            # Where both are infinite the difference is no number, and the prediction was right.
            own, predicted = self.values[name][grid], self._predicted(name, number)
            scale = 1.0 if name.endswith("accuracy") else self._range(name, own)
            with numpy.errstate(invalid="ignore"):
                # No finer point tells more than the rounding of 16 bits lets it.
                allowed = _FALL * tolerance * scale + self._rounding(name, number)
                close = numpy.isfinite(own) & (numpy.abs(own - predicted) <= allowed)
            missed[grid] |= ~(close | (own == predicted))
        return missed & new

    def _rounding(self, name: str, number: int) -> numpy.ndarray | float:
        """Return what rounding to 16 bits may put points of a level off their prediction."""
        error = f"{name}_rounding"
        if error not in self.values:
            return 0.0
        own = self.values[error][numpy.ix_(*self._levels[number])]
        return own + numpy.abs(self._predicted(error, number))

    def _range(self, name: str, own: numpy.ndarray) -> numpy.ndarray | float:
        """Return what a share of 1 is at points with such values."""
        known = self.values[name][self.measured]
        known = known[numpy.isfinite(known)]
        if not known.size:
            return 0.0
        low, high = float(known.min()), float(known.max())
        if low > 0:
            # A share s of the range ln(high/low) is a relative change of s·ln(high/low) anywhere.
            return numpy.abs(own) * math.log(min(max(high / low, _NARROWEST), _WIDEST))
        return max(high - low, (_NARROWEST - 1) * max(abs(low), abs(high)))

    def _around(self, missed: numpy.ndarray, number: int) -> numpy.ndarray:
        """Return the points within reach of those that missed."""
        indices = self._levels[number]
        spread = missed[numpy.ix_(*indices)]
        wanted = missed.copy()
        for point in numpy.argwhere(spread):
            box = tuple(
                slice(int(part[max(i - _REACH, 0)]), int(part[min(i + _REACH, len(part) - 1)]) + 1)
                for part, i in zip(indices, point, strict=True)
            )
            wanted[box] = True
        return wanted

    def _matrices(self, coarse: _Level, fine: _Level) -> list[numpy.ndarray]:
        return [
            weights(steps[list(a)], steps[list(b)])
            for steps, a, b in zip(self._steps, coarse, fine, strict=True)
        ]
