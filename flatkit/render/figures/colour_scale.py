"""One colour scale for all panels, logarithmic where all values are positive."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

COLOURS = "viridis"
"""Even in lightness, also for colour-blind readers and in print."""

# Conventions of these pictures, not measured. With more levels the lines of a small panel merge.
# Colours end at 10⁴ times the smallest value, and before the highest fiftieth of the values if
# that is over ten times the rest: else far corners of a plane would take all colours. The bar has
# an arrow then.
_LEVELS = 24
_MOST = 1e4
_OUTLIER, _USUAL = 10.0, 0.98


@dataclass(frozen=True)
class Scale:
    """The colour scale that all panels share.

    Attributes:
        norm: from values to [0, 1].
        levels: of filled contours, from the lowest value to the highest that has its own colour.
        lines: the levels that get a contour line.
        ticks: of the colour bar.
        extend: `max` if values lie above the highest level, else `neither`.
    """

    norm: Normalize
    levels: numpy.ndarray
    lines: numpy.ndarray
    ticks: numpy.ndarray
    extend: Any

    @property
    def low(self) -> float:
        """The lowest value."""
        return float(self.levels[0])

    @property
    def top(self) -> float:
        """The highest value that has its own colour."""
        return float(self.levels[-1])

    @property
    def is_log(self) -> bool:
        """Whether equal ratios have equal distances."""
        return isinstance(self.norm, LogNorm)

    def heights(self, values: Any) -> numpy.ndarray:
        """Return how high values are drawn in three dimensions.

        What lies above the scale is cut off at its top; what is not finite has no height.

        >>> scale_of([numpy.array([1.0, 100.0])]).heights([10.0, 1000.0, numpy.inf]).tolist()
        [1.0, 2.0, nan]
        """
        cut = numpy.where(numpy.isfinite(values), numpy.minimum(values, self.top), numpy.nan)
        return numpy.log10(cut) if self.is_log else cut

    @property
    def range(self) -> tuple[float, float]:
        """The heights at which the scale begins and ends."""
        low, top = self.heights([self.low, self.top]).tolist()
        return low, top


def scale_of(arrays: Iterable[Any], *, linear: bool = False) -> Scale:
    """Return the scale of all finite values.

    Args:
        arrays: the values of each panel; one of them at least must be finite.
        linear: whether the scale is linear in any case, as for accuracies.

    >>> scale = scale_of([numpy.array([0.01, 1.0]), numpy.array([numpy.inf, 10.0])])
    >>> scale.is_log, scale.ticks.tolist()
    (True, [0.01, 0.1, 1.0, 10.0])
    """
    values = numpy.concatenate([numpy.asarray(array).ravel() for array in arrays])
    values = values[numpy.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    # A constant plane has no ratios to show, and 1e-9 is far above the rounding of `high / low`.
    if linear or low <= 0 or high / low < 1 + 1e-9:
        return _linear(low, high)
    usual = float(numpy.quantile(values, _USUAL))
    top = min(high, low * _MOST)
    if top > _OUTLIER * usual > _OUTLIER * low:
        top = usual
    lines = _nice_powers(low, top)
    levels = numpy.unique([low, *lines, top])
    extend = "max" if high > top else "neither"
    return Scale(LogNorm(low, top), levels, lines, _log_ticks(low, top), extend)


def _linear(low: float, high: float) -> Scale:
    # A plane without height still needs two ends.
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    lines = _even_steps(low, high, _LEVELS)
    lines = lines[(lines > low) & (lines < high)]
    levels = numpy.unique([low, *lines, high])
    return Scale(Normalize(low, high), levels, lines, _even_steps(low, high, 6), "neither")


def _even_steps(low: float, high: float, most: int) -> numpy.ndarray:
    """Return round values within, evenly spaced."""
    steps = numpy.asarray(MaxNLocator(most).tick_values(low, high))
    return steps[(steps >= low) & (steps <= high)]


def _nice_powers(low: float, top: float) -> numpy.ndarray:
    """Return levels 10^(k/m) strictly between, about as many as wanted.

    m is a power of two, so that two figures share all levels, or every second one.

    >>> _nice_powers(0.5, 30.0).round(3).tolist()[:4]
    [0.562, 0.649, 0.75, 0.866]
    """
    decades = math.log10(top / low)
    per_decade = min((1, 2, 4, 8, 16, 32, 64), key=lambda m: abs(m * decades - _LEVELS))
    first = math.floor(per_decade * math.log10(low)) - 1
    last = math.ceil(per_decade * math.log10(top)) + 1
    levels = 10.0 ** (numpy.arange(first, last + 1) / per_decade)
    # Both ends are levels already; rounding must not bring them in a second time.
    return levels[(levels > low * (1 + 1e-9)) & (levels < top * (1 - 1e-9))]


def _log_ticks(low: float, top: float) -> numpy.ndarray:
    """Return round values within: powers of ten, or 1, 2, 5 times them, or even steps."""
    # The fewest digits that give four ticks.
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = numpy.array(
            [
                float(f"{digit}e{power}")
                for power in range(math.floor(math.log10(low)), math.ceil(math.log10(top)) + 1)
                for digit in digits
            ]
        )
        ticks = ticks[(ticks >= low) & (ticks <= top)]
        if len(ticks) >= 4:
            return ticks
    return _even_steps(low, top, 5)
