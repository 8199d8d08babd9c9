"""Maximise a function over a ball: many starts, Frank-Wolfe ascent, successive halving."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.frank_wolfe import BallFunction, BallSearch, Iterate
from flatkit.flatness.initial_points import FunctionOfObjective, disagreement, initial_points
from flatkit.flatness.iterated_search import DirectionSampler, iterated_local_search
from flatkit.flatness.sphere_lbfgs import ascend_on_sphere
from flatkit.status import Status

_SAME_POINT = 1e-3  # distance, in radii, below which two iterates are at one maximum
_ON_SPHERE = 2  # iterates that are left when L-BFGS takes over from Frank-Wolfe steps
# Angle, in radians, to the ascent direction at which no ascent of a smooth function ends: those
# of the tanh networks in `python -m benchmarks.flatness networks` end closer, those of untrained
# ReLU networks do not.
_KINK_ANGLE = 3e-3
_ROUNDINGS = 8  # units of rounding of a value within which a gain is none
# Part of the budget that is kept for walks once an ascent ended at a kink; chosen on the ReLU
# networks of the same benchmark.
_RESERVE = 0.8


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
        status: `CONVERGED` if the best ascent became stationary; `KINKS` if it ended where the
            gradient jumps, as that of a piecewise linear network does; else `BUDGET`.
        trails: the values along the ascent from each start.
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


@ordinary_torch()
def maximize_over_ball(
    function: BallFunction,
    *,
    radius: float,
    starts: Mapping[str, Tensor],
    budget: int = 600,
    tolerance: float = 1e-7,
    noise: float = 0.0,
    explore: DirectionSampler | None = None,
    generator: torch.Generator | None = None,
) -> BallMaximum:
    """Search the maximum of a function over the ball ‖u‖ ≤ ρ.

    From each start, Frank-Wolfe steps go to the maximiser over the ball of the function linearised
    at u: they never descend where φ is convex (the generalised power method, Journée et al., 2010)
    and are shortened until they ascend elsewhere (Frank and Wolfe, 1956). The budget is split
    evenly over rounds, and each round keeps the better half (successive halving, Jamieson and
    Talwalkar, 2016); of ascents that meet only one goes on. The last two go on by L-BFGS on the
    sphere, where the ball is round. Where one of them ends at a kink, a jump of the gradient, what
    is left of the budget goes to walks that pass kinks (`iterated_local_search`).

    The result is a feasible point, so its value is a LOWER bound of the maximum: a search that
    ends in a local maximum does not know it. The gradient of a piecewise linear network jumps, so
    there even the end of an ascent need not be a local maximum.

    Args:
        function: φ.
        radius: ρ > 0.
        starts: coordinates u [P] by name, each within the ball, the most promising first: a budget
            that is too small for all drops the last ones.
        budget: gradients of the loss that may be spent, about; the starts and one step of the
            first are always taken.
        tolerance: an ascent ends when a step gains less than this, relative to the value.
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
    search = BallSearch(function, radius, tolerance=tolerance, budget=budget, noise=noise)
    iterates = [Iterate(name, u) for name, u in list(starts.items())[: _affordable(search, starts)]]
    search.start(iterates)
    _successive_halving(search, iterates)
    best = max(iterates, key=lambda iterate: iterate.value)
    if any(_ends_at_kink(search, iterate) for iterate in iterates):
        generator = generator or torch.Generator().manual_seed(0)
        walked = iterated_local_search(search, best, list(starts.values()), explore, generator)
        iterates.append(walked)
        best = walked if walked.value > best.value else best
    return _summary(search, iterates, best)


def search_ball(
    function: FunctionOfObjective,
    *,
    rho: float,
    starts: Mapping[str, Tensor] | None,
    budget: int,
    tolerance: float,
    noise: float,
    generator: torch.Generator | None,
) -> BallMaximum:
    """Search the maximum of a function of an objective, from nothing but the point if need be.

    Walks explore the directions in which halves of the samples disagree.

    Args:
        function: φ.
        rho: ρ.
        starts: coordinates u [P] by name; None for `initial_points`, which the budget then pays.
        budget: in gradients of the loss, as of `maximize_over_ball`.
        tolerance: gain, relative to the value, that ends an ascent.
        noise: by how much rounding may change a value.
        generator: draws the initial points, if they are not given, and where walks begin.
    """
    spent = 0
    if starts is None:
        found = initial_points(function, rho=rho, budget=budget, generator=generator)
        starts, spent = found.points, found.gradients

    def explore(generator: torch.Generator) -> Tensor:
        direction = disagreement(function.objective, function.theta, generator)
        return function.geometry.displacement(direction)

    best = maximize_over_ball(
        function,
        radius=rho,
        starts=starts,
        budget=max(1, budget - spent),
        tolerance=tolerance,
        noise=noise,
        explore=explore,
        generator=generator,
    )
    return replace(best, gradients=best.gradients + spent)


def _successive_halving(search: BallSearch, iterates: list[Iterate]) -> None:
    """Let the ascents go on in rounds of equal cost, the better half of them in each."""
    left, rounds = _distinct(iterates, search.radius), 1 + math.ceil(math.log2(len(iterates)))
    for rounds_left in range(rounds, 0, -1):
        kinked = any(_ends_at_kink(search, iterate) for iterate in left)
        most = search.budget * (1.0 - _RESERVE if kinked else 1.0)
        limit = search.spent + (most - search.spent) / rounds_left
        if len(left) > _ON_SPHERE or not search.function.geometry.is_round:
            search.advance(left, int(limit))
        else:
            for place, iterate in enumerate(left, start=1):
                part = search.spent + (limit - search.spent) / (len(left) - place + 1)
                ascend_on_sphere(search, iterate, int(part))
        ranking = sorted(_distinct(left, search.radius), key=lambda iterate: -iterate.value)
        if rounds_left > 1:
            left = ranking[: max(1, -(-len(left) // 2))]


def _ends_at_kink(search: BallSearch, iterate: Iterate) -> bool:
    """Return whether an ascent has ended although the slope there promises more."""
    geometry, radius = search.function.geometry, search.radius
    if not (iterate.done and geometry.is_round and bool(iterate.ascent.any())):
        return False
    target, size = geometry.maximiser(iterate.ascent, radius), abs(iterate.value)
    gain, rounding = _linear_gain(iterate, target), torch.finfo(iterate.u.dtype).eps * size
    if gain <= max(search.noise, _ROUNDINGS * rounding):
        return False
    angle = _angle(iterate, target, radius)
    return gain > 0.5 * _KINK_ANGLE**2 * size if angle is None else angle > _KINK_ANGLE


def _affordable(search: BallSearch, starts: Mapping[str, Tensor]) -> int:
    """Return how many starts leave each of them two steps in the first round."""
    step, count = search.step_cost, len(starts)
    while count > 1 and count * step * (1 + 2 * (1 + math.log2(count))) > search.budget:
        count -= 1
    return count


def _distinct(iterates: list[Iterate], radius: float) -> list[Iterate]:
    """Return the iterates without those that are at the point of a higher one."""
    kept: list[Iterate] = []
    for iterate in sorted(iterates, key=lambda iterate: -iterate.value):
        if all(float((iterate.u - other.u).norm()) > _SAME_POINT * radius for other in kept):
            kept.append(iterate)
    return kept


def _summary(search: BallSearch, iterates: list[Iterate], best: Iterate) -> BallMaximum:
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
        trails={iterate.name: iterate.trail for iterate in iterates},
        evaluations=search.evaluations,
        ascents=search.ascents,
        gradients=search.spent,
    )


def _status(search: BallSearch, best: Iterate) -> Status:
    if _ends_at_kink(search, best):
        return Status.KINKS
    return Status.CONVERGED if best.done else Status.BUDGET


def _linear_gain(iterate: Iterate, target: Tensor) -> float:
    return float(iterate.ascent.double() @ (target - iterate.u).double())


def _angle(iterate: Iterate, target: Tensor, radius: float) -> float | None:
    """Return the angle between a point on the sphere and its ascent direction."""
    u, target = iterate.u.double(), target.double()
    size = float(u.norm())
    if size < 0.999 * radius or not bool(target.any()):
        return None
    across = target - u * float(u @ target) / size**2
    return math.atan2(float(across.norm()), float(u @ target) / size)
