"""Iterated local search, where jumps of the gradient end every monotone climb early."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatkit.flatness.ascent import Ascents, Climb

NAME = "near the best"
_STEPS = 20
"""Of a walk."""
_FIRST_STEP, _SHORTENING = 0.3, 0.9
"""Of the way to the linearised function's maximiser; then shorter each time."""
_NEAREST, _FARTHEST = 0.1, 1.2
"""How far from the best point walks begin, in radii: drawn log-uniformly."""


def wander(
    search: Ascents, best: Climb, directions: Sequence[Tensor], generator: torch.Generator
) -> Climb:
    """Walk again and again from near the best point, also downhill, until all is spent.

    A piecewise linear network has a gradient norm that jumps: a step that crosses a kink may lower
    it although the slope promised a rise, and a monotone climb stops there. So these walks take
    steps of fixed, falling lengths whatever they find, and the highest point of all is where the
    next ones begin (iterated local search, Lourenço, Martin and Stützle, 2003). The maxima of a
    network's gradient norm lie almost within the span of a few top eigenvectors, and so do the
    beginnings: in the whole space a random step would hardly change anything that matters.

    Cost: 20 values and ascents a walk; no more walks than the budget allows.

    Args:
        search: the function, the radius and what was spent.
        best: the highest climb so far; it is not moved.
        directions: whose span [P] the walks begin in, around the best point.
        generator: draws where walks begin.

    Returns:
        A climb of its own: its trail holds the best value after each walk.
    """
    found = Climb(NAME, best.u, best.value, best.ascent, done=True)
    a_walk = _STEPS * (search.function.value_cost + search.function.ascent_cost)
    while search.spent + a_walk <= search.budget:
        _walk(search, _beginning(search, found.u, directions, generator), found)
        found.trail.append(found.value)
    return found


def _beginning(
    search: Ascents, centre: Tensor, directions: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """Return a point [P] around a centre, as long as the ball allows."""
    geometry, radius = search.function.geometry, search.radius
    drawn = torch.zeros_like(centre)
    for direction in directions:
        drawn += float(torch.randn((), generator=generator)) * direction
    uniform = float(torch.rand((), generator=generator))
    reach = _NEAREST * (_FARTHEST / _NEAREST) ** uniform
    return geometry.retract(centre + reach * geometry.maximiser(drawn, radius), radius)


def _walk(search: Ascents, u: Tensor, found: Climb) -> None:
    """Take the steps of a walk from u [P] and remember the highest point that it passes."""
    geometry, radius = search.function.geometry, search.radius
    fraction = _FIRST_STEP
    for _ in range(_STEPS):
        landing = search.land(u[None])
        ascent, value = search.ascents_of(landing)[0], float(landing.values[0])
        if value > found.value:
            found.u, found.value, found.ascent = u, value, ascent
        u = geometry.retract(u + fraction * geometry.maximiser(ascent, radius), radius)
        fraction *= _SHORTENING
