"""Iterated local search, where jumps of the gradient end every monotone climb early."""

import torch
from torch import Tensor

from flatkit.flatness.ascent import Ascents, Climb

NAME = "near the best"
_FLOCK, _STEPS = 4, 10
"""Walks at once; steps of each."""
_FIRST_STEP, _SHORTENING = 0.2, 0.8
"""Of the way to the linearised function's maximiser; then shorter each time."""
_NEAREST, _FARTHEST = 0.2, 0.6
"""How far from the best point walks begin, in radii: drawn log-uniformly."""


def wander(search: Ascents, best: Climb, generator: torch.Generator) -> Climb:
    """Walk again and again from near the best point, also downhill, until all is spent.

    A piecewise linear network has a gradient norm that jumps: a step that crosses a kink may lower
    it although the slope promised a rise, and a monotone climb stops there. So these walks take
    steps of fixed, falling lengths whatever they find, and the highest point of all is where the
    next ones begin (iterated local search, Lourenço, Martin and Stützle, 2003).

    Cost: 40 values and ascents a round; no more rounds than the budget allows.

    Args:
        search: the function, the radius and what was spent.
        best: the highest climb so far; it is not moved.
        generator: draws where walks begin.

    Returns:
        A climb of its own: its trail holds the best value after each round.
    """
    found = Climb(NAME, best.u, best.value, best.ascent, done=True)
    round_cost = _FLOCK * _STEPS * (search.function.value_cost + search.function.ascent_cost)
    while search.spent + round_cost <= search.budget:
        for u in _beginnings(search, found.u, generator).split(search.function.rows):
            _walk(search, u, found)
        found.trail.append(found.value)
    return found


def _beginnings(search: Ascents, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Return points [K, P] around a centre, as long as the ball allows."""
    geometry, radius = search.function.geometry, search.radius
    drawn = torch.randn(_FLOCK, centre.numel(), generator=generator).to(centre)
    uniform = torch.rand(_FLOCK, 1, generator=generator).to(centre)
    reach = _NEAREST * (_FARTHEST / _NEAREST) ** uniform
    return geometry.retract(centre + reach * geometry.maximiser(drawn, radius), radius)


def _walk(search: Ascents, u: Tensor, found: Climb) -> None:
    """Take the steps of some walks [K, P] and remember the highest point that any passes."""
    geometry, radius = search.function.geometry, search.radius
    fraction = _FIRST_STEP
    for _ in range(_STEPS):
        landing = search.land(u)
        ascents = search.ascents_of(landing)
        row = int(landing.values.argmax())
        if float(landing.values[row]) > found.value:
            found.u, found.value = u[row], float(landing.values[row])
            found.ascent = ascents[row]
        u = geometry.retract(u + fraction * geometry.maximiser(ascents, radius), radius)
        fraction *= _SHORTENING
