"""L-BFGS on the sphere, and how an ascent goes from rough to exact."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import EXACT, BallSearch, Iterate, Precision
from flatkit.flatness.geometry import Geometry
from flatkit.spectrum.dot import inner, norm

# Pairs of steps that approximate the curvature; Nocedal and Wright (2006) advise 3 to 20. Of large
# networks one finds room, as the searches of all balls wait beside each other. It costs little: of
# 32 searches on eight small networks 31 end after 100 gradients within 0.2 % of those with eight
# pairs, and one 10 % lower, which is one ascent that ends in another local maximum.
_MEMORY, _FEWEST = 8, 1
_MOST_NUMBERS = 2**25  # of these pairs together, where that is not fewer than the fewest
_LONGEST_STEP = 1.0  # in radii, before the point is brought back to the sphere
_SHORTENINGS = 5  # how often a step is divided by three before the direction is given up
# Of secants, until a step gains so little. A long one is blind to the kinks within it, where the
# gradient leads nowhere; `python -m benchmarks.flatness` chose them.
_ROUGH = (
    Precision(0.2, 1e-2),
    Precision(0.1, 1e-3),
    Precision(0.03, 3e-4),
    Precision(0.01, 1e-4),
)
_ROUGH_GRADIENT = (Precision(None, 1e-3),)


class _Pair(NamedTuple):
    """A step and the change of the descent direction along it, both tangent to the sphere."""

    step: Tensor
    change: Tensor
    curvature: float


def ascend(
    search: BallSearch, iterate: Iterate, go_on: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Ascend, ever more exactly, until a step along the gradient gains less than the tolerance.

    On the sphere of a round ball by L-BFGS: tangent vectors move along by projection, a retraction
    brings the point back to the sphere (Huang, Gallivan and Absil, 2015), and steps are shortened
    until they ascend, so the value never falls. Elsewhere by Frank-Wolfe steps. Where a function
    has secants these serve until they gain little.

    Cost: a value and an ascent a step, or two values with secants; memory 2·8 vectors, of large
    networks 2.

    Args:
        search: the function, the radius and what was spent.
        iterate: where to go on; it is moved, and `done` at the end.
        go_on: asked before the ascent becomes more exact; where it says no, the ascent is left.
    """
    fit = max(_FEWEST, _MOST_NUMBERS // (2 * iterate.u.numel()))
    pairs: deque[_Pair] = deque(maxlen=min(_MEMORY, fit))
    iterate.at = iterate.at or search.evaluate(iterate.u[None])
    for precision in (*(_ROUGH_GRADIENT if iterate.at.secants is None else _ROUGH), EXACT):
        iterate.done = False
        search.aim(iterate, precision)
        yield
        while not iterate.done:
            yield from _advance(search, iterate, precision, pairs)
        if precision is not EXACT and not go_on():
            iterate.done = False
            return


def _advance(
    search: BallSearch, iterate: Iterate, precision: Precision, pairs: deque[_Pair]
) -> Iterator[None]:
    """Take one step: of L-BFGS where the function grows outwards on a sphere."""
    radius = search.radius
    if not (search.function.geometry.is_round and norm(iterate.u) > 0.999 * radius):
        yield from search.step(iterate, precision)
        return
    if inner(iterate.u, iterate.ascent) <= 0:  # to the inside
        pairs.clear()
        yield from search.step(iterate, precision)
        return
    moved = yield from _move(search, iterate, precision, pairs)
    if not moved:
        if pairs:
            pairs.clear()  # once more, along the slope itself
        else:
            iterate.done = True


def _move(
    search: BallSearch, iterate: Iterate, precision: Precision, pairs: deque[_Pair]
) -> Generator[None, None, bool]:
    """Take the longest of some steps that ascends, and remember how the slope changed.

    What follows from the iterate and the pairs is made anew where it is needed: searches in several
    balls wait here for each other, and of a large network none has room for more than these.
    """
    geometry, radius = search.function.geometry, search.radius
    for shortening in range(_SHORTENINGS):
        make = partial(_onward, geometry, radius, iterate, pairs, 3**shortening)
        trial, at = search.attempt(make)
        yield
        if float(at.values[0]) > iterate.value:
            break
    else:
        return False
    before, slope, u = iterate.u, _tangent(iterate.u, iterate.ascent, radius), trial.u
    iterate.move(u, at, search.least_gain(float(at.values[0]), precision))
    search.aim(iterate, precision)
    _remember(pairs, iterate, before, slope, radius)
    del u, at, before, slope, trial, make
    search.trial = None
    yield
    return True


def _onward(
    geometry: Geometry, radius: float, iterate: Iterate, pairs: deque[_Pair], shortening: int
) -> Tensor:
    """Return the point [P] of the sphere to which a step leads, shortened so many times."""
    outward = inner(iterate.u, iterate.ascent) / radius
    slope = _tangent(iterate.u, iterate.ascent, radius)
    direction = _direction(slope, pairs, outward / radius, _LONGEST_STEP * radius)
    return geometry.maximiser(direction.div_(shortening).add_(iterate.u), radius)


def _remember(
    pairs: deque[_Pair], iterate: Iterate, before: Tensor, slope: Tensor, radius: float
) -> None:
    """Keep the step to an iterate and how the slope changed, each given as it was before."""
    u = iterate.u
    step = _tangent(u, u - before, radius)
    # Old minus new: the change of −∇φ, whose curvature is positive
    # where φ is concave along the step.
    change = _tangent(u, slope, radius) - _tangent(u, iterate.ascent, radius)
    curvature = inner(step, change)
    # A pair without positive curvature would turn the direction downhill.
    if curvature > 1e-10 * norm(step) * norm(change):
        pairs.append(_Pair(step, change, curvature))


def _direction(slope: Tensor, pairs: deque[_Pair], stiffness: float, longest: float) -> Tensor:
    """Return the two-loop product of the inverse curvature with the slope, not too long.

    The two-loop recursion is algorithm 7.4 of Nocedal and Wright (2006). Without pairs the
    curvature of the sphere itself, ⟨u, ∇φ⟩/ρ², scales the slope: a Frank-Wolfe step.
    """
    direction, weights = slope.clone(), []
    for pair in reversed(pairs):
        weights.append(inner(pair.step, direction) / pair.curvature)
        direction.sub_(pair.change, alpha=weights[-1])
    if pairs:
        # yᵀy/sᵀy of the newest pair, the first guess of the curvature (Nocedal and Wright, 7.20).
        stiffness = norm(pairs[-1].change) ** 2 / pairs[-1].curvature
    direction /= stiffness
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        direction.add_(pair.step, alpha=weight - inner(pair.change, direction) / pair.curvature)
    # Rounding, or pairs that were projected to another tangent space: then along the slope.
    if inner(direction, slope) <= 0:
        direction = slope / stiffness
    size = norm(direction)
    return direction.mul_(min(1.0, longest / size)) if size > 0 else direction


def _tangent(u: Tensor, vector: Tensor, radius: float) -> Tensor:
    """Return the part of a vector that is tangent to the sphere at u."""
    return torch.sub(vector, u, alpha=inner(u, vector) / radius**2)
