"""Numbers of a run with their errors, on the scale on which the effects of a claim are differences.

A flatness is held against another by its logarithm, an accuracy as it is. What is wrong with each
goes along to the effect, as `flatkit.comparison.statistics` counts it: what the solver leaves open
(a residual, on both sides; of a search that found a lower bound, upwards alone), standard errors
over probes, which runs share, so that those of two numbers add up, and what blocks of the samples
contribute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flatkit.comparison.intervals import Part, mean_of_rows, of_mean
from flatkit.comparison.searches import SEARCH_HOLDS
from flatkit.measures.reading import Reading
from flatkit.results.status import Status

_ERROR_HOLDS = (
    *(Status.CONVERGED, Status.BUDGET, Status.INTERRUPTED),
    *(Status.RANK, Status.MULTIPLICITY),
)
"""How an estimate may have ended whose error holds."""


@dataclass(frozen=True)
class Point:
    """A number of a run.

    Attributes:
        value: a logarithm, or the number itself.
        down: by how much the solver may have made it too large.
        up: by how much it may have made it too small.
        probes: its standard error over random probes.
        blocks: what equal blocks of the samples contribute, as of `Reading.influence`.
        bias: by how much few samples make it too large, in the mean.
    """

    value: float
    down: float = 0.0
    up: float = 0.0
    probes: float = 0.0
    blocks: tuple[float, ...] = ()
    bias: float = 0.0

    def minus(self, other: "Point") -> "Point":
        """Return a difference with the errors of both, at their worst.

        >>> Point(3.0, down=0.1, up=0.5).minus(Point(1.0, down=0.0, up=0.2))
        Point(value=2.0, down=0.30000000000000004, up=0.5, probes=0.0, blocks=(), bias=0.0)
        """
        # Blocks of other samples make no pairs; then nothing is known of the error over samples.
        same = len(self.blocks) == len(other.blocks)
        pairs = zip(self.blocks, other.blocks, strict=True) if same else ()
        return Point(
            self.value - other.value,
            self.down + other.up,
            self.up + other.down,
            # Not in squares: runs share their probes, and with them the errors.
            self.probes + other.probes,
            tuple(one - another for one, another in pairs),
            self.bias - other.bias,
        )


def between(one: Point, other: Point, share: float) -> Point:
    """Return the point on the straight line between two, so far from the first.

    >>> between(Point(1.0, up=0.2), Point(3.0), 0.5).value
    2.0
    """

    def mixed(first: float, second: float) -> float:
        return (1 - share) * first + share * second

    same = len(one.blocks) == len(other.blocks)
    pairs = zip(one.blocks, other.blocks, strict=True) if same else ()
    return Point(
        mixed(one.value, other.value),
        mixed(one.down, other.down),
        mixed(one.up, other.up),
        mixed(one.probes, other.probes),
        tuple(mixed(*pair) for pair in pairs),
        mixed(one.bias, other.bias),
    )


def scaled(reading: Reading, scale: float) -> Point:
    """Return a number in another unit.

    Args:
        reading: the number.
        scale: of the unit, positive.

    >>> scaled(Reading("x", "x", 50.0, 0.0, "exact", "converged"), 0.01).value
    0.5
    """
    error = scale * _error(reading)
    searched = reading.error_kind == "lower_bound"
    probes = reading.error_kind == "standard_error"
    # A lower bound has no error below, and what is above it is known of all searches together.
    bound = 0.0 if searched or probes else error
    return Point(
        scale * reading.value,
        bound,
        bound,
        error if probes else 0.0,
        tuple(scale * value for value in reading.influence),
        scale * (reading.sampling_bias or 0.0),
    )


def logarithm(reading: Reading, left_open: float | None) -> Point:
    """Return the logarithm of a positive number.

    Args:
        reading: the number.
        left_open: by what part the maximum over a ball may exceed what a search found.

    >>> point = logarithm(Reading("x", "x", 2.0, 1.0, "residual", "converged"), None)
    >>> round(point.down, 3), round(point.up, 3)
    (0.693, 0.405)
    """
    # As parts of the value, since d log x = dx / x.
    raw = scaled(reading, 1 / reading.value)
    # Not raw.up and raw.down: errors as large as the value are not small on a logarithm.
    up, down = math.log1p(raw.up), -math.log1p(-raw.down) if raw.down < 1 else math.inf
    if reading.error_kind == "lower_bound":
        # None where the search converged: without it `holds` refuses all others.
        up = math.log1p(left_open or 0.0)
    return Point(math.log(reading.value), down, up, raw.probes, raw.blocks, raw.bias)


def holds(reading: Reading, left_open: float | None) -> bool:
    """Whether a measurement did what it was asked, or its error covers what it did not.

    >>> ended = Reading("x", "x", 2.0, 1.0, "residual", "budget")
    >>> holds(ended, None), holds(Reading("x", "x", 2.0, None, "lower_bound", "budget"), None)
    (True, False)
    """
    if reading.error_kind == "lower_bound":
        return reading.converged or (left_open is not None and reading.status in SEARCH_HOLDS)
    return reading.converged or (reading.error is not None and reading.status in _ERROR_HOLDS)


def _error(reading: Reading) -> float:
    return 0.0 if reading.error_is_of_samples else reading.error or 0.0


@dataclass(frozen=True)
class Doubt:
    """What may be wrong with the mean of some effects, beside how they differ over the seeds.

    Attributes:
        down: by how much the solver may have made it too large.
        up: by how much it may have made it too small.
        parts: further independent errors: over probes, over samples.
        bias: by how much few samples make it too large.
    """

    down: float = 0.0
    up: float = 0.0
    parts: tuple[Part, ...] = ()
    bias: float = 0.0


def doubt(effects: Sequence[Point]) -> Doubt:
    """Return what may be wrong with the mean of effects, each of one seed.

    All may be off to one side, so that the mean is as wrong as they are.

    >>> doubt([Point(1.0, down=0.1), Point(2.0, down=0.3)]).down
    0.2
    """
    if not effects:
        return Doubt()
    rows = [point.blocks for point in effects]
    parts = [Part(probes)] if (probes := fmean(point.probes for point in effects)) else []
    if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
        parts.append(of_mean(mean_of_rows(rows)))
    return Doubt(
        # Means, not roots of squares: solvers err to one side for all seeds alike.
        fmean(point.down for point in effects),
        fmean(point.up for point in effects),
        tuple(parts),
        fmean(point.bias for point in effects),
    )
