"""Walks that go on where jumps of the gradient end every monotone climb early."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import Ascents, Climb

NAME = "walks"
Explore: TypeAlias = Callable[[torch.Generator], Tensor]
"""Draws a direction [P] that matters to the function, for a gradient of the loss."""

_AFAR = 0.6
"""Part of what is left that goes to walks from anywhere."""
_SPAN = 32
"""Directions in whose span these begin."""
_NEW = 1e-4
"""Length, relative to the largest, below which a direction among these is rounding."""
_MOST_NUMBERS = 2**28
"""Of these directions together, and of walks, so that those of a large network fit in memory."""
_FEWEST = 8
"""Walks from anywhere; fewer are left out."""
_SPRINT, _LONGEST = 5, 60
"""Steps of the first round of these, and of all rounds."""
_KEPT, _GROWTH = 4, 2
"""Of so many walks one enters the next round, which has so many times the steps."""
_STRIDE, _TIRING = 0.5, 0.95
"""First step of these, as part of the way to the linearised function's maximiser, and the factor
of each further one."""
_STEPS = 20
"""Of a walk near the best point."""
_FIRST_STEP, _SHORTENING = 0.3, 0.9
"""Likewise of these."""
_MOST_DIRECTIONS = 17
"""In whose span these begin: the most promising ones."""
_NEAREST, _FARTHEST = 0.1, 1.2
"""How far from the best point walks begin, in radii: drawn log-uniformly."""


@dataclass(eq=False)
class _Walker:
    u: Tensor
    best: float
    stride: float


def wander(
    search: Ascents,
    best: Climb,
    directions: Sequence[Tensor],
    explore: Explore | None,
    generator: torch.Generator,
) -> Climb:
    """Walk again and again, also downhill, until all is spent.

    A piecewise linear network has a gradient norm that jumps: a step that crosses a kink may lower
    it although the slope promised a rise, and a monotone climb stops there. So these walks take
    steps of falling lengths whatever they find. More than half of what is left goes to many walks
    from far apart, of which the best quarter goes on each time (successive halving): some maxima
    are found from a few starts of a thousand. The rest goes to walks from near the highest point of
    all (iterated local search, Lourenço, Martin and Stützle, 2003). Those begin in the span of the
    directions, in which the maxima of a network's gradient norm almost lie: in the whole space a
    random step would hardly change anything that matters.

    Cost: a value and an ascent a step; no more walks than the budget allows.

    Args:
        search: the function, the radius and what was spent.
        best: the highest climb so far; it is not moved.
        directions: in the span of the first of which [P] the walks near the best begin.
        explore: draws where the others begin; without it there are none.
        generator: draws where walks begin.

    Returns:
        A climb of its own: its trail holds the best value after each round and walk.
    """
    found = Climb(NAME, best.u, best.value, best.ascent, done=True)
    a_step = search.function.value_cost + search.function.ascent_cost
    if explore is not None:
        _roam(search, found, explore, generator, _AFAR * (search.budget - search.spent), a_step)
    while search.spent + _STEPS * a_step <= search.budget:
        start = _near(search, found.u, directions[:_MOST_DIRECTIONS], generator)
        _walk(search, [_Walker(start, 0.0, _FIRST_STEP)], _STEPS, _SHORTENING, found)
        found.trail.append(found.value)
    return found


def _roam(
    search: Ascents,
    found: Climb,
    explore: Explore,
    generator: torch.Generator,
    allowance: float,
    a_step: int,
) -> None:
    """Let many walks begin far apart, and fewer of them go on each round.

    They begin in the span of some explored directions, with no regard to the lengths of these.
    """
    a_walk = a_step * _SPRINT * _KEPT // (_KEPT - _GROWTH)  # all rounds, for each that begins
    most = _MOST_NUMBERS // found.u.numel()
    span = min(_SPAN, int(allowance) // a_walk, max(1, most))
    count = min(int(allowance - span) // a_walk, max(_FEWEST, most))
    if count < _FEWEST:
        return
    drawn = torch.stack([explore(generator) for _ in range(span)])
    search.drawn += span
    # Orthonormal, or the few directions that all have in common would rule every mixture.
    sides, lengths, _ = torch.linalg.svd(drawn.T, full_matrices=False)
    basis = sides[:, lengths > _NEW * lengths[0]]  # [P, span or less]
    if basis.shape[1] == 0:
        return
    parts = torch.randn(count, basis.shape[1], generator=generator).to(basis)
    walkers = [
        _Walker(search.function.geometry.maximiser(basis @ part, search.radius), 0.0, _STRIDE)
        for part in parts
    ]
    length, taken = _SPRINT, 0
    while walkers and taken < _LONGEST:
        length = min(length, _LONGEST - taken)
        _walk(search, walkers, length, _TIRING, found)
        found.trail.append(found.value)
        walkers.sort(key=lambda walker: -walker.best)
        walkers = walkers[: max(1, len(walkers) // _KEPT)]
        taken, length = taken + length, length * _GROWTH


def _near(
    search: Ascents, centre: Tensor, directions: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """Return a point [P] around a centre, as long as the ball allows."""
    geometry, radius = search.function.geometry, search.radius
    drawn = _mixture(directions, generator)
    uniform = float(torch.rand((), generator=generator))
    reach = _NEAREST * (_FARTHEST / _NEAREST) ** uniform
    return geometry.retract(centre + reach * geometry.maximiser(drawn, radius), radius)


def _mixture(directions: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    drawn = torch.zeros_like(directions[0])
    for direction in directions:
        drawn += float(torch.randn((), generator=generator)) * direction
    return drawn


def _walk(
    search: Ascents, walkers: list[_Walker], steps: int, shortening: float, found: Climb
) -> None:
    """Take so many steps with each and remember the highest point that any passes."""
    geometry, radius, size = search.function.geometry, search.radius, search.function.rows
    for first in range(0, len(walkers), size):
        group = walkers[first : first + size]
        for _ in range(steps):
            landing = search.land(torch.stack([walker.u for walker in group]))
            ascents = search.ascents_of(landing)
            for row, walker in enumerate(group):
                value = float(landing.values[row])
                walker.best = max(walker.best, value)
                if value > found.value:
                    found.u, found.value, found.ascent = walker.u, value, ascents[row]
                onward = walker.stride * geometry.maximiser(ascents[row], radius)
                walker.u = geometry.retract(walker.u + onward, radius)
                walker.stride *= shortening
