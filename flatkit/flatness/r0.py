"""Zeroth-order sharpness: the largest increase of the loss within a ρ-ball."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flatkit.devices import ordinary_torch
from flatkit.flatness.ball import BallMaximum, Search, search_ball
from flatkit.flatness.functions import LossIncrease
from flatkit.flatness.geometry import Geometry, check_radius
from flatkit.flatness.rounds import Start
from flatkit.flatness.widened import widened, within
from flatkit.objective.function import Objective
from flatkit.spectrum.steps import Steps


@ordinary_torch()
def max_loss_increase(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    starts: Mapping[str, Tensor] | None = None,
    geometry: Geometry | None = None,
    budget: int = 300,
    tolerance: float = 1e-7,
    generator: torch.Generator | None = None,
) -> BallMaximum:
    """Search R0_ρ(θ) = max over ‖δ‖ ≤ ρ of L(θ+δ) − L(θ) (Foret et al., 2021, eq. 1).

    The value is a LOWER bound of the maximum. At a minimum R0_ρ/ρ² → λmax/2 as ρ → 0.

    Cost: about `budget` gradients, starts that are not given among them.

    Args:
        objective: L.
        theta: the point [P]; the objective's own by default.
        rho: ρ > 0, in the units of the parameters, or relative to them if the geometry is.
        starts: coordinates u [P] by name, each within the ball; by default as those of
            `max_gradient_norm`.
        geometry: of the ball; round by default.
        budget: gradients of the loss that may be spent, about.
        tolerance: an ascent ends when a step gains less than this, relative to the value.
        generator: draws random starts, where none are given, and where walks begin.

    Raises:
        InvalidArgumentError: ρ is no number > 0, or below the rounding of θ.
        NonFiniteError: the loss is not finite somewhere in the ball.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ², at θ = 0
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> max_loss_increase(objective, torch.zeros(1), rho=0.5).value
    0.25
    """
    search = _search(objective, theta, rho, starts, geometry, tolerance, 0.0, generator)
    return _at_least_zero(within(search, _in_float32(objective, theta), budget))


def loss_increase_steps(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    starts: Mapping[str, Tensor] | Iterable[Start] | None = None,
    geometry: Geometry | None = None,
    tolerance: float = 1e-7,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Steps[BallMaximum]:
    """Search as `max_loss_increase` does, for as long as it is asked to.

    Where the objective computes in 16 bits, values are those of float32 at the points found.

    Args:
        objective: as of `max_loss_increase`, like all the others.
        theta: the point [P].
        rho: ρ > 0.
        starts: coordinates u [P] by name, or as of `search_steps`.
        geometry: of the ball.
        tolerance: gain, relative to the value, that ends an ascent.
        noise: of the loss, where it is more than the rounding of its dtype.
        generator: draws starts and where walks begin.
    """
    search = _search(objective, theta, rho, starts, geometry, tolerance, noise, generator)
    for ask in widened(search.steps(), _in_float32(objective, theta)):
        yield lambda ask=ask: _at_least_zero(ask())


def _search(
    objective: Objective,
    theta: Tensor | None,
    rho: float,
    starts: Mapping[str, Tensor] | Iterable[Start] | None,
    geometry: Geometry | None,
    tolerance: float,
    noise: float,
    generator: torch.Generator | None,
) -> Search:
    theta = objective.theta if theta is None else theta
    geometry = geometry or Geometry("l2")
    check_radius(rho, theta, geometry)
    function = LossIncrease(objective, theta, geometry)
    return search_ball(
        function,
        rho=rho,
        starts=starts,
        tolerance=tolerance,
        # A difference of two losses is known up to the rounding of both.
        noise=max(noise, 4.0 * torch.finfo(theta.dtype).eps * abs(function.base)),
        generator=generator,
    )


def _in_float32(objective: Objective, theta: Tensor | None) -> Callable[[Tensor], float] | None:
    """Return the increase at a displacement [P], of the same function in float32, if it has one."""
    exact, centre = objective.exact, objective.theta if theta is None else theta
    if exact is None:
        return None
    base = exact.loss(centre)
    return lambda way: exact.loss(centre + way) - base


def _at_least_zero(best: BallMaximum) -> BallMaximum:
    """Return the centre in the place of what is lower: the ball holds it, so R0 is 0 at least."""
    if best.value >= 0:
        return best
    centre = torch.zeros_like(best.coordinates)
    return replace(best, value=0.0, displacement=centre, coordinates=centre)
