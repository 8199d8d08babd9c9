"""L-BFGS on the sphere: the last part of a climb, where linearised steps become slow."""

from collections import deque
from typing import NamedTuple

from torch import Tensor

from flatkit.flatness.frank_wolfe import Ascents, Climb

_MEMORY = 6
_LONGEST_STEP = 1.0
"""In radii, before the point is brought back to the sphere."""
_SHORTENINGS = 8


class _Pair(NamedTuple):
    """A step and the change of the descent direction along it, both tangent to the sphere."""

    step: Tensor
    change: Tensor
    curvature: float


def polish(search: Ascents, climb: Climb, until: int) -> None:
    """Climb on the sphere by L-BFGS until the gain falls below the tolerance or all is spent.

    Tangent vectors move along by projection, a retraction brings the point back to the sphere
    (Huang, Gallivan and Absil, 2015), and steps are shortened until they ascend, so the value never
    falls. A point whose function grows inwards is left to linearised steps, which leave the sphere.

    Cost: a value and an ascent a step; memory 2·6 vectors.

    Args:
        search: the function, the radius and what was spent.
        climb: where to go on; it is moved.
        until: gradients at which to stop.
    """
    pairs: deque[_Pair] = deque(maxlen=_MEMORY)
    radius = search.radius
    if float(climb.u.double().norm()) < 0.999 * radius and not climb.done:
        search.advance([climb], until)  # inside: no sphere to climb on
    while search.spent < until and not climb.done:
        outward = float(climb.u.double() @ climb.ascent.double()) / radius
        on_sphere = float(climb.u.double().norm()) > 0.999 * radius
        if outward <= 0 or not on_sphere:
            search.step([climb])
            pairs.clear()
            continue
        slope = _tangent(climb.u, climb.ascent, radius)
        direction = _direction(slope, pairs, outward / radius, _LONGEST_STEP * radius)
        if not _move(search, climb, direction, slope, pairs):
            if not pairs:
                search.step([climb])
                return
            pairs.clear()  # once more, along the slope itself


def _move(
    search: Ascents, climb: Climb, direction: Tensor, slope: Tensor, pairs: deque[_Pair]
) -> bool:
    """Take the longest of some steps that ascends, and remember how the slope changed."""
    radius, fraction = search.radius, 1.0
    for _ in range(_SHORTENINGS):
        u = search.function.geometry.maximiser(climb.u + fraction * direction, radius)
        landing = search.land(u[None])
        value = float(landing.values[0])
        if value > climb.value:
            break
        fraction /= 3
    else:
        return False
    before = climb.u
    climb.move(u, value, search.ascents_of(landing)[0], search.least_gain(value))
    step = _tangent(u, u - before, radius)
    change = _tangent(u, slope, radius) - _tangent(u, climb.ascent, radius)
    curvature = float(step.double() @ change.double())
    if curvature > 1e-10 * float(step.norm()) * float(change.norm()):
        pairs.append(_Pair(step, change, curvature))
    return True


def _direction(slope: Tensor, pairs: deque[_Pair], stiffness: float, longest: float) -> Tensor:
    """Return the two-loop product of the inverse curvature with the slope, not too long.

    Without pairs the curvature of the sphere itself, ⟨u, ∇φ⟩/ρ², scales the slope: then the step is
    that of the linearised function.
    """
    direction, weights = slope.clone(), []
    for pair in reversed(pairs):
        weights.append(float(pair.step @ direction) / pair.curvature)
        direction -= weights[-1] * pair.change
    if pairs:
        stiffness = float(pairs[-1].change.double().norm()) ** 2 / pairs[-1].curvature
    direction = direction / stiffness
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        direction += (weight - float(pair.change @ direction) / pair.curvature) * pair.step
    if float(direction @ slope) <= 0:
        direction = slope / stiffness
    length = float(direction.norm())
    return direction * min(1.0, longest / length) if length > 0 else direction


def _tangent(u: Tensor, vector: Tensor, radius: float) -> Tensor:
    """Return the part of a vector that is tangent to the sphere at u."""
    return vector - u * (float(u.double() @ vector.double()) / radius**2)
