"""Iterated local search past kinks: subgradient walks, from far apart and from near the best.

The gradient norm of a piecewise linear network jumps. A step that crosses a kink may lower it
although the slope promised a rise, and an ascent that never descends ends there. A walk takes the
steps of the subgradient method instead: of geometrically falling length, whatever they find (Shor,
1985). Its best point counts, not its last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import BallSearch, Iterate, Point, Precision

NAME = "walks"
DirectionSampler: TypeAlias = Callable[[torch.Generator], Tensor]
"""Draws a direction [P] that matters to the function, for a gradient of the loss."""

_MOST_NUMBERS = 2**28  # of the sampled directions together, and of the walks: 2 GiB in float64
_MOST_AT_ONCE = 16  # points, so that there is news often
_PRECISION = Precision(0.03)


@dataclass(frozen=True)
class Multistart:
    """The schedule of walks from far apart: some maxima are found from few starts of a thousand.

    They begin in the span of sampled directions and are cut down by successive halving (Jamieson
    and Talwalkar, 2016). The numbers were chosen on `python -m benchmarks.flatness networks`.
    Step, decay and steps are those of the ascents there.
    """

    span: int = 32  # directions that are sampled
    rank_tolerance: float = 1e-4  # relative length below which one of these is rounding
    first_round: int = 5  # steps
    steps: int = 60  # of all rounds
    keep_one_in: int = 4  # of so many walks one enters the next round,
    growth: int = 2  # which has so many times the steps
    step: float = 0.5  # the first, as part of the way to the linearised function's maximiser
    decay: float = 0.95  # of each further step


@dataclass(frozen=True)
class NearBest:
    """The schedule of walks from near the best point (Lourenço, Martin and Stützle, 2003).

    They begin in the span of the initial points, in which the maxima of a network's gradient norm
    almost lie: in the whole space a random step would hardly change anything that matters. The
    numbers were chosen on the same benchmark as those of `Multistart`.
    """

    steps: int = 20  # of a walk
    step: float = 0.3  # the first, as part of the way to the linearised function's maximiser
    decay: float = 0.9  # of each further step
    nearest: float = 0.1  # how far from the best point walks begin, in radii, drawn log-uniformly
    farthest: float = 1.2


_MULTISTART, _NEAR_BEST = Multistart(), NearBest()


@dataclass(eq=False)
class _Walk:
    """One walk: its point, its best value so far, and the length of its next step."""

    u: Tensor
    step: float
    best: float = 0.0


def walk_far_apart(
    search: BallSearch,
    found: Iterate,
    count: int,
    explore: DirectionSampler,
    generator: torch.Generator,
) -> Iterator[None]:
    """Let many walks begin far apart, and fewer of them go on each round.

    Cost: as many gradients as there are walks and directions, at most 32, and a value and an ascent
    a step: 10 steps a walk.

    Args:
        search: the function, the radius and what was spent.
        found: moves to the highest point; its trail holds the best value after each round.
        count: walks; fewer where memory does not allow as many.
        explore: draws where they begin.
        generator: of the draws.
    """
    plan = _MULTISTART
    starts: list[Tensor] = []
    count = min(count, max(1, _MOST_NUMBERS // found.u.numel()))
    yield from _far_apart(search, count, explore, generator, starts)
    walks = [_Walk(u, plan.step) for u in starts]
    steps, taken = plan.first_round, 0
    while walks and taken < plan.steps:
        last = len(walks) == 1
        steps = min(steps, plan.steps - taken)
        yield from _advance(search, walks, steps, plan.decay, found)
        found.trail.append(found.value)
        walks.sort(key=lambda walk: -walk.best)
        # The last one alone still takes a round; then there is nobody left to be better than.
        walks = [] if last else walks[: max(1, len(walks) // plan.keep_one_in)]
        taken, steps = taken + steps, steps * plan.growth


def walk_near(
    search: BallSearch,
    found: Iterate,
    directions: Sequence[Callable[[], Tensor]],
    generator: torch.Generator,
) -> Iterator[None]:
    """Take one walk from near the highest point. Cost: a value and an ascent for each of 20 steps.

    Args:
        search: the function, the radius and what was spent.
        found: the highest point, from near which it begins; it moves where the walk is higher.
        directions: make those [P] in the span of which the walk begins.
        generator: draws where.
    """
    walk = _Walk(_near(search, found.u, directions, generator), _NEAR_BEST.step)
    yield from _advance(search, [walk], _NEAR_BEST.steps, _NEAR_BEST.decay, found)
    found.trail.append(found.value)


def _far_apart(
    search: BallSearch,
    count: int,
    explore: DirectionSampler,
    generator: torch.Generator,
    starts: list[Tensor],
) -> Iterator[None]:
    """Add points [P] in the span of sampled directions.

    The directions are made orthonormal, or the few that all have in common would rule every
    combination.
    """
    sampled: list[Tensor] = []
    for _ in range(min(_MULTISTART.span, count)):
        sampled.append(explore(generator))
        search.explored += 1
        yield
    sides, lengths, _ = torch.linalg.svd(torch.stack(sampled).T, full_matrices=False)
    basis = sides[:, lengths > _MULTISTART.rank_tolerance * lengths[0]]  # [P, span or less]
    if basis.shape[1]:
        # Normal weights in an orthonormal basis: uniform on the sphere of its span.
        weights = torch.randn(count, basis.shape[1], generator=generator).to(basis)
        geometry = search.function.geometry
        starts += [geometry.maximiser(basis @ weight, search.radius) for weight in weights]


def _near(
    search: BallSearch,
    centre: Tensor,
    directions: Sequence[Callable[[], Tensor]],
    generator: torch.Generator,
) -> Tensor:
    """Return a point [P] around a centre, as long as the ball allows."""
    geometry, radius, plan = search.function.geometry, search.radius, _NEAR_BEST
    drawn = torch.zeros_like(centre)
    for direction in directions:
        drawn += float(torch.randn((), generator=generator)) * direction()
    uniform = float(torch.rand((), generator=generator))
    distance = plan.nearest * (plan.farthest / plan.nearest) ** uniform
    return geometry.retract(centre + distance * geometry.maximiser(drawn, radius), radius)


def _advance(
    search: BallSearch, walks: list[_Walk], steps: int, decay: float, found: Iterate
) -> Iterator[None]:
    """Take so many steps with each and remember the highest point that any passes."""
    geometry, radius = search.function.geometry, search.radius
    size = min(search.function.rows, _MOST_AT_ONCE)
    for first in range(0, len(walks), size):
        batch = walks[first : first + size]
        for _ in range(steps):
            values = search.evaluate(torch.stack([walk.u for walk in batch]))
            yield
            points = torch.stack([walk.u for walk in batch])
            ascents = search.ascents_of(points, values, _PRECISION)
            for row, walk in enumerate(batch):
                value = float(values.values[row])
                walk.best = max(walk.best, value)
                if value > found.value:
                    found.point, found.value, found.ascent = Point(walk.u), value, ascents[row]
                    found.at, found.done = None, False
                # Steps of a given length, whatever the slope: a subgradient
                # does not shrink towards a maximum.
                onward = walk.step * geometry.maximiser(ascents[row], radius)
                walk.u = geometry.retract(walk.u + onward, radius)
                walk.step *= decay
            del points, values, ascents  # which other searches would wait beside
            yield
