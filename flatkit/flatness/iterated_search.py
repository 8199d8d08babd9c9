"""Iterated local search past kinks: subgradient walks, from far apart and from near the best.

The gradient norm of a piecewise linear network jumps. A step that crosses a kink may lower it
although the slope promised a rise, and an ascent that never descends ends there. A walk takes the
steps of the subgradient method instead: of geometrically falling length, whatever they find (Shor,
1985). Its best point counts, not its last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import BallSearch, Iterate

NAME = "walks"
DirectionSampler: TypeAlias = Callable[[torch.Generator], Tensor]
"""Draws a direction [P] that matters to the function, for a gradient of the loss."""

_MOST_NUMBERS = 2**28  # of the sampled directions together, and of the walks: 2 GiB in float64


@dataclass(frozen=True)
class Multistart:
    """The schedule of walks from far apart: some maxima are found from few starts of a thousand.

    They begin in the span of sampled directions and are cut down by successive halving (Jamieson
    and Talwalkar, 2016). The numbers were chosen on `python -m benchmarks.flatness networks`: with
    them the search reaches 0.999 of the best of 1000 random ascents at 2 % of their cost, also on
    untrained ReLU networks. Step, decay and steps are those of the ascents there.
    """

    share: float = 0.6  # of what is left of the budget
    span: int = 32  # directions that are sampled
    rank_tolerance: float = 1e-4  # relative length below which one of these is rounding
    fewest: int = 8  # walks; fewer are left out
    first_round: int = 5  # steps
    steps: int = 60  # of all rounds
    keep_one_in: int = 4  # of so many walks one enters the next round,
    growth: int = 2  # which has so many times the steps
    step: float = 0.5  # the first, as part of the way to the linearised function's maximiser
    decay: float = 0.95  # of each further step

    def walk_cost(self, step_cost: int) -> int:
        """Return what all rounds cost, for each walk that begins."""
        return step_cost * self.first_round * self.keep_one_in // (self.keep_one_in - self.growth)


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
    span: int = 17  # initial points, the most promising ones
    nearest: float = 0.1  # how far from the best point walks begin, in radii, drawn log-uniformly
    farthest: float = 1.2


_MULTISTART, _NEAR_BEST = Multistart(), NearBest()


@dataclass(eq=False)
class _Walk:
    """One walk: its point, its best value so far, and the length of its next step."""

    u: Tensor
    step: float
    best: float = 0.0


def iterated_local_search(
    search: BallSearch,
    best: Iterate,
    directions: Sequence[Tensor],
    explore: DirectionSampler | None,
    generator: torch.Generator,
) -> Iterate:
    """Walk again and again, also downhill, until all is spent.

    More than half of what is left goes to walks from far apart, the rest to walks from near the
    highest point of all.

    Cost: a value and an ascent a step; no more walks than the budget allows.

    Args:
        search: the function, the radius and what was spent.
        best: the highest iterate so far; it is not moved.
        directions: in the span of the first of which [P] the walks near the best begin.
        explore: draws where the others begin; without it there are none.
        generator: draws where walks begin.

    Returns:
        An iterate of its own: its trail holds the best value after each round and walk.
    """
    found, plan = Iterate(NAME, best.u, best.value, best.ascent, done=True), _NEAR_BEST
    if explore is not None:
        _successive_halving(search, found, explore, generator)
    while search.spent + plan.steps * search.step_cost <= search.budget:
        start = _near(search, found.u, directions[: plan.span], generator)
        _advance(search, [_Walk(start, plan.step)], plan.steps, plan.decay, found)
        found.trail.append(found.value)
    return found


def _successive_halving(
    search: BallSearch, found: Iterate, explore: DirectionSampler, generator: torch.Generator
) -> None:
    """Let many walks begin far apart, and fewer of them go on each round."""
    plan = _MULTISTART
    walks = [_Walk(u, plan.step) for u in _far_apart(search, found, explore, generator)]
    steps, taken = plan.first_round, 0
    while walks and taken < plan.steps:
        steps = min(steps, plan.steps - taken)
        _advance(search, walks, steps, plan.decay, found)
        found.trail.append(found.value)
        walks.sort(key=lambda walk: -walk.best)
        walks = walks[: max(1, len(walks) // plan.keep_one_in)]
        taken, steps = taken + steps, steps * plan.growth


def _far_apart(
    search: BallSearch, found: Iterate, explore: DirectionSampler, generator: torch.Generator
) -> list[Tensor]:
    """Return as many points [P] as the budget has walks for, in the span of sampled directions.

    The directions are made orthonormal, or the few that all have in common would rule every
    combination.
    """
    plan = _MULTISTART
    allowance = plan.share * (search.budget - search.spent)
    walk_cost, most = plan.walk_cost(search.step_cost), _MOST_NUMBERS // found.u.numel()
    span = min(plan.span, int(allowance) // walk_cost, max(1, most))
    count = min(int(allowance - span) // walk_cost, max(plan.fewest, most))
    if count < plan.fewest:
        return []
    sampled = torch.stack([explore(generator) for _ in range(span)])  # [span, P]
    search.explored += span
    sides, lengths, _ = torch.linalg.svd(sampled.T, full_matrices=False)
    basis = sides[:, lengths > plan.rank_tolerance * lengths[0]]  # [P, span or less]
    if basis.shape[1] == 0:
        return []
    weights = torch.randn(count, basis.shape[1], generator=generator).to(basis)
    geometry = search.function.geometry
    return [geometry.maximiser(basis @ weight, search.radius) for weight in weights]


def _near(
    search: BallSearch, centre: Tensor, directions: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """Return a point [P] around a centre, as long as the ball allows."""
    geometry, radius, plan = search.function.geometry, search.radius, _NEAR_BEST
    drawn = torch.zeros_like(directions[0])
    for direction in directions:
        drawn += float(torch.randn((), generator=generator)) * direction
    uniform = float(torch.rand((), generator=generator))
    distance = plan.nearest * (plan.farthest / plan.nearest) ** uniform
    return geometry.retract(centre + distance * geometry.maximiser(drawn, radius), radius)


def _advance(
    search: BallSearch, walks: list[_Walk], steps: int, decay: float, found: Iterate
) -> None:
    """Take so many steps with each and remember the highest point that any passes."""
    geometry, radius, size = search.function.geometry, search.radius, search.function.rows
    for first in range(0, len(walks), size):
        batch = walks[first : first + size]
        for _ in range(steps):
            values = search.evaluate(torch.stack([walk.u for walk in batch]))
            ascents = search.ascents_of(values)
            for row, walk in enumerate(batch):
                value = float(values.values[row])
                walk.best = max(walk.best, value)
                if value > found.value:
                    found.u, found.value, found.ascent = walk.u, value, ascents[row]
                onward = walk.step * geometry.maximiser(ascents[row], radius)
                walk.u = geometry.retract(walk.u + onward, radius)
                walk.step *= decay
