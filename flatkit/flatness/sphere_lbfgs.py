"""L-BFGS on the sphere: the last part of an ascent, where Frank-Wolfe steps become slow."""

from collections import deque
from typing import NamedTuple

from torch import Tensor

from flatkit.flatness.frank_wolfe import BallSearch, Iterate

# Pairs of steps that approximate the curvature; Nocedal and Wright (2006) advise 3 to 20.
_MEMORY = 6
_LONGEST_STEP = 1.0  # in radii, before the point is brought back to the sphere
_SHORTENINGS = 8  # how often a step is divided by three before the direction is given up


class _Pair(NamedTuple):
    """A step and the change of the descent direction along it, both tangent to the sphere."""

    step: Tensor
    change: Tensor
    curvature: float


def ascend_on_sphere(search: BallSearch, iterate: Iterate, until: int) -> None:
    """Ascend on the sphere by L-BFGS until the gain falls below the tolerance or all is spent.

    Tangent vectors move along by projection, a retraction brings the point back to the sphere
    (Huang, Gallivan and Absil, 2015), and steps are shortened until they ascend, so the value never
    falls. A point whose function grows inwards is left to Frank-Wolfe steps, which leave the
    sphere.

    Cost: a value and an ascent a step; memory 2·6 vectors.

    Args:
        search: the function, the radius and what was spent.
        iterate: where to go on; it is moved.
        until: gradients at which to stop.
    """
    pairs: deque[_Pair] = deque(maxlen=_MEMORY)
    radius = search.radius
    if float(iterate.u.double().norm()) < 0.999 * radius and not iterate.done:
        search.advance([iterate], until)  # inside: no sphere to ascend on
    while search.spent < until and not iterate.done:
        outward = float(iterate.u.double() @ iterate.ascent.double()) / radius
        on_sphere = float(iterate.u.double().norm()) > 0.999 * radius  # 32 bits round it
        if outward <= 0 or not on_sphere:
            search.step([iterate])
            pairs.clear()
            continue
        slope = _tangent(iterate.u, iterate.ascent, radius)
        direction = _direction(slope, pairs, outward / radius, _LONGEST_STEP * radius)
        if not _move(search, iterate, direction, slope, pairs):
            if not pairs:
                search.step([iterate])
                return
            pairs.clear()  # once more, along the slope itself


def _move(
    search: BallSearch, iterate: Iterate, direction: Tensor, slope: Tensor, pairs: deque[_Pair]
) -> bool:
    """Take the longest of some steps that ascends, and remember how the slope changed."""
    radius, fraction = search.radius, 1.0
    for _ in range(_SHORTENINGS):
        u = search.function.geometry.maximiser(iterate.u + fraction * direction, radius)
        found = search.evaluate(u[None])
        value = float(found.values[0])
        if value > iterate.value:
            break
        fraction /= 3
    else:
        return False
    before = iterate.u
    iterate.move(u, value, search.ascents_of(found)[0], search.least_gain(value))
    step = _tangent(u, u - before, radius)
    change = _tangent(u, slope, radius) - _tangent(u, iterate.ascent, radius)
    curvature = float(step.double() @ change.double())
    # A pair without positive curvature would turn the direction downhill.
    if curvature > 1e-10 * float(step.norm()) * float(change.norm()):
        pairs.append(_Pair(step, change, curvature))
    return True


def _direction(slope: Tensor, pairs: deque[_Pair], stiffness: float, longest: float) -> Tensor:
    """Return the two-loop product of the inverse curvature with the slope, not too long.

    The two-loop recursion is algorithm 7.4 of Nocedal and Wright (2006). Without pairs the
    curvature of the sphere itself, ⟨u, ∇φ⟩/ρ², scales the slope: a Frank-Wolfe step.
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
    size = float(direction.norm())
    return direction * min(1.0, longest / size) if size > 0 else direction


def _tangent(u: Tensor, vector: Tensor, radius: float) -> Tensor:
    """Return the part of a vector that is tangent to the sphere at u."""
    return vector - u * (float(u.double() @ vector.double()) / radius**2)
