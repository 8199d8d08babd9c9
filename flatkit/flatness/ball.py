"""Maximise a smooth function over a ball: many starts, linearised ascent, successive halving."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.frank_wolfe import Ascents, Climb
from flatkit.flatness.functions import Field
from flatkit.flatness.iterated_search import Explore, wander
from flatkit.flatness.sphere_lbfgs import polish
from flatkit.status import Status

_SAME_PLACE = 1e-3
"""Distance, in radii, below which two climbs are at one maximum."""
_POLISHED = 2
"""Climbs that are left when L-BFGS takes over."""
_ROUGH = 3e-3
"""Angle, in radians, to the ascent direction at which no climb over a smooth function ends."""
_ROUNDINGS = 8
"""Units of rounding of a value that a climb does not see."""
_RESERVE = 0.8
"""Part of the budget that is kept for walks once a climb ended at a jump of the gradient."""


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
        status: `CONVERGED` if the best climb became stationary; `KINKS` if it ended where the
            gradient jumps, as that of a piecewise linear network does; else `BUDGET`.
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
    status: Status
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
    noise: float = 0.0,
    explore: Explore | None = None,
    generator: torch.Generator | None = None,
) -> BallMaximum:
    """Search the maximum of a function over the ball ‖u‖ ≤ ρ.

    From each start, u ← the maximiser over the ball of the function linearised at u: a step that
    never descends where φ is convex (the generalised power method, Journée et al. 2010) and is
    shortened until it ascends elsewhere (Frank and Wolfe, 1956). The budget is split evenly over
    rounds, and each round keeps the better half of the climbs (successive halving, Jamieson and
    Talwalkar 2016); of climbs at one place only one goes on. The last two climb by L-BFGS on the
    sphere, where the ball is round. Where the best of them ends at a jump of the gradient, what is
    left of the budget goes to walks that do not mind jumps (`wander`).

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
        noise: by how much rounding may change a value; smaller gains are none.
        explore: draws a direction [P] for a walk from far away, at a gradient of the loss each,
            such as that in which two halves of the samples disagree; without it all walks begin
            near the best point.
        generator: draws where the walks begin, if there are any.

    Raises:
        InvalidArgumentError: no start, or an argument out of range.
        NonFiniteError: the function is not finite somewhere in the ball.

    >>> from torch import nn
    >>> from flatkit import Objective
    >>> from flatkit.flatness.geometry import Geometry
    >>> from flatkit.flatness.functions import LossIncrease
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ², at θ = 1
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> function = LossIncrease(objective, torch.ones(1), Geometry("l2"))
    >>> found = maximize_over_ball(function, radius=0.5, starts={"left": torch.tensor([-0.5])})
    >>> found.value, found.displacement
    (1.25, tensor([0.5000]))
    """
    check_positive("rho", radius)
    check_positive("tolerance", tolerance)
    check_count("budget", budget)
    if not starts:
        raise InvalidArgumentError("starts must hold at least one displacement, got none")
    search = Ascents(function, radius, tolerance=tolerance, budget=budget, noise=noise)
    climbs = [Climb(name, u) for name, u in list(starts.items())[: _affordable(search, starts)]]
    search.begin(climbs)
    _halve(search, climbs)
    best = max(climbs, key=lambda climb: climb.value)
    if any(_is_rough(search, climb) for climb in climbs):
        generator = generator or torch.Generator().manual_seed(0)
        walked = wander(search, best, list(starts.values()), explore, generator)
        climbs.append(walked)
        best = walked if walked.value > best.value else best
    return _summary(search, climbs, best)


def _halve(search: Ascents, climbs: list[Climb]) -> None:
    """Let the climbs go on in rounds of equal cost, fewer in each."""
    left, rounds = _apart(climbs, search.radius), 1 + math.ceil(math.log2(len(climbs)))
    for rounds_left in range(rounds, 0, -1):
        rough = any(_is_rough(search, climb) for climb in left)
        most = search.budget * (1.0 - _RESERVE if rough else 1.0)
        limit = search.spent + (most - search.spent) / rounds_left
        if len(left) > _POLISHED or not search.function.geometry.is_round:
            search.advance(left, int(limit))
        else:
            for place, climb in enumerate(left, start=1):
                part = search.spent + (limit - search.spent) / (len(left) - place + 1)
                polish(search, climb, int(part))
        ranking = sorted(_apart(left, search.radius), key=lambda climb: -climb.value)
        if rounds_left > 1:
            left = ranking[: max(1, -(-len(left) // 2))]


def _is_rough(search: Ascents, climb: Climb) -> bool:
    """Return whether a climb has ended although the slope there promises more."""
    geometry, radius = search.function.geometry, search.radius
    if not (climb.done and geometry.is_round and bool(climb.ascent.any())):
        return False
    target = geometry.maximiser(climb.ascent, radius)
    gain, rounding = _linear_gain(climb, target), torch.finfo(climb.u.dtype).eps * abs(climb.value)
    if gain <= max(search.noise, _ROUNDINGS * rounding):
        return False
    angle = _angle(climb, target, radius)
    return gain > 0.5 * _ROUGH**2 * abs(climb.value) if angle is None else angle > _ROUGH


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
    gain = _linear_gain(best, target)
    return BallMaximum(
        value=best.value,
        displacement=geometry.displacement(best.u),
        coordinates=best.u,
        start=best.name,
        stationarity=_angle(best, target, radius) if geometry.is_round else None,
        linear_gap=max(0.0, gain) / abs(best.value) if best.value else 0.0,
        status=_status(search, best),
        trails={climb.name: climb.trail for climb in climbs},
        evaluations=search.evaluations,
        ascents=search.ascents,
        gradients=search.spent,
    )


def _status(search: Ascents, best: Climb) -> Status:
    if _is_rough(search, best):
        return Status.KINKS
    return Status.CONVERGED if best.done else Status.BUDGET


def _linear_gain(climb: Climb, target: Tensor) -> float:
    return float(climb.ascent.double() @ (target - climb.u).double())


def _angle(climb: Climb, target: Tensor, radius: float) -> float | None:
    """Return the angle between a point on the sphere and its ascent direction."""
    u, target = climb.u.double(), target.double()
    length = float(u.norm())
    if length < 0.999 * radius or not bool(target.any()):
        return None
    across = target - u * float(u @ target) / length**2
    return math.atan2(float(across.norm()), float(u @ target) / length)
