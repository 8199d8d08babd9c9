"""Maximise a smooth function over a ball: many starts, linearised ascent, successive halving."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.ascent import Ascents, Climb
from flatkit.flatness.fields import Field
from flatkit.flatness.sphere import polish

_SAME_PLACE = 1e-3
"""Distance, in radii, below which two climbs are at one maximum."""
_POLISHED = 2
"""Climbs that are left when L-BFGS takes over."""


@dataclass(frozen=True)
class BallMaximum:
    """The best point that a search in the ball ‖u‖ ≤ ρ found.

    Attributes:
        value: the function there: a LOWER bound of the maximum over the ball.
        displacement: δ = T u [P].
        coordinates: u [P].
        start: the name of the start that led there.
        stationarity: the angle, in radians, between u and the ascent direction there, 0 at a
            stationary point of the sphere; `None` for an inner point or a ball that is not round.
        linear_gap: what the linearised function could still gain in the ball, relative to the
            value; 0 at a stationary point of any ball. For a concave function nothing more can be
            gained; otherwise it says only how flat the end of the search is.
        status: `converged` if the best climb became stationary, else `budget`.
        trails: the values along each start's climb.
        evaluations: of the function.
        ascents: of its gradient.
        gradients: what all that cost, in gradients of the loss.
    """

    value: float
    displacement: Tensor
    coordinates: Tensor
    start: str
    stationarity: float | None
    linear_gap: float
    status: str
    trails: Mapping[str, list[float]]
    evaluations: int
    ascents: int
    gradients: int


def maximize_over_ball(
    function: Field,
    *,
    radius: float,
    starts: Mapping[str, Tensor],
    budget: int = 600,
    tolerance: float = 1e-7,
) -> BallMaximum:
    """Search the maximum of a function over the ball ‖u‖ ≤ ρ.

    From each start, u ← the maximiser over the ball of the function linearised at u: a step that
    never descends where φ is convex (the generalised power method, Journée et al. 2010) and is
    shortened until it ascends elsewhere (Frank and Wolfe, 1956). The budget is split evenly over
    rounds, and each round keeps the better half of the climbs (successive halving, Jamieson and
    Talwalkar 2016); of climbs at one place only one goes on. The last two climb by L-BFGS on the
    sphere, where the ball is round.

    The result is a feasible point, so its value is a LOWER bound of the maximum: a search that
    ends in a local maximum does not know it. The gradient of a piecewise linear network jumps, so
    there even the end of a climb need not be a local maximum.

    Args:
        function: φ.
        radius: ρ > 0.
        starts: coordinates u [P] by name, each within the ball, the most promising first: a budget
            that is too small for all drops the last ones.
        budget: gradients of the loss that may be spent, about; the starts and one step of the
            first are always taken.
        tolerance: a climb ends when a step gains less than this, relative to the value.

    Raises:
        InvalidArgumentError: no start, or an argument out of range.
        NonFiniteError: the function is not finite somewhere in the ball.
    """
    check_positive("rho", radius)
    check_positive("tolerance", tolerance)
    check_count("budget", budget)
    if not starts:
        raise InvalidArgumentError("starts must hold at least one displacement, got none")
    search = Ascents(function, radius, tolerance=tolerance, budget=budget)
    climbs = [Climb(name, u) for name, u in list(starts.items())[: _affordable(search, starts)]]
    search.begin(climbs)
    left, rounds = _apart(climbs, radius), 1 + math.ceil(math.log2(len(climbs)))
    share = (budget - search.spent) / rounds
    for number in range(1, rounds + 1):
        limit = budget - round(share * (rounds - number))
        if len(left) > _POLISHED or not function.geometry.is_round:
            search.advance(left, limit)
        else:
            for place, climb in enumerate(left, start=1):
                part = search.spent + (limit - search.spent) / (len(left) - place + 1)
                polish(search, climb, int(part))
        ranking = sorted(_apart(left, radius), key=lambda climb: -climb.value)
        if number < rounds:
            left = ranking[: max(1, -(-len(left) // 2))]
    best = max(climbs, key=lambda climb: climb.value)
    return _summary(search, climbs, best)


def _affordable(search: Ascents, starts: Mapping[str, Tensor]) -> int:
    """Return how many starts leave each of them two steps in the first round."""
    step = search.function.value_cost + search.function.ascent_cost
    count = len(starts)
    while count > 1 and count * step * (1 + 2 * (1 + math.log2(count))) > search.budget:
        count -= 1
    return count


def _apart(climbs: list[Climb], radius: float) -> list[Climb]:
    """Return the climbs without those that are at the place of a higher one."""
    kept: list[Climb] = []
    for climb in sorted(climbs, key=lambda climb: -climb.value):
        if all(float((climb.u - other.u).norm()) > _SAME_PLACE * radius for other in kept):
            kept.append(climb)
    return kept


def _summary(search: Ascents, climbs: list[Climb], best: Climb) -> BallMaximum:
    geometry, radius = search.function.geometry, search.radius
    target = geometry.maximiser(best.ascent, radius)
    gain = float(best.ascent.double() @ (target - best.u).double())
    return BallMaximum(
        value=best.value,
        displacement=geometry.displacement(best.u),
        coordinates=best.u,
        start=best.name,
        stationarity=_angle(best, target, radius) if geometry.is_round else None,
        linear_gap=max(0.0, gain) / abs(best.value) if best.value else 0.0,
        status="converged" if best.done else "budget",
        trails={climb.name: climb.trail for climb in climbs},
        evaluations=search.evaluations,
        ascents=search.ascents,
        gradients=search.spent,
    )


def _angle(climb: Climb, target: Tensor, radius: float) -> float | None:
    """Return the angle between a point on the sphere and its ascent direction."""
    u, target = climb.u.double(), target.double()
    length = float(u.norm())
    if length < 0.999 * radius or not bool(target.any()):
        return None
    across = target - u * float(u @ target) / length**2
    return math.atan2(float(across.norm()), float(u @ target) / length)
