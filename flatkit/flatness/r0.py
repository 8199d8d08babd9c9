"""Zeroth-order sharpness: the largest increase of the loss within a ρ-ball."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flatkit.devices import ordinary_torch
from flatkit.flatness.ball import BallMaximum, search_ball
from flatkit.flatness.functions import LossIncrease
from flatkit.flatness.geometry import Geometry, check_radius
from flatkit.objective.function import Objective


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
    theta = objective.theta if theta is None else theta
    geometry = geometry or Geometry("l2")
    check_radius(rho, theta, geometry)
    function = LossIncrease(objective, theta, geometry)
    best = search_ball(
        function,
        rho=rho,
        starts=starts,
        budget=budget,
        tolerance=tolerance,
        noise=4.0 * torch.finfo(theta.dtype).eps * abs(function.base),
        generator=generator,
    )
    return best if best.value >= 0 else _centre(best, theta)


def _centre(best: BallMaximum, theta: Tensor) -> BallMaximum:
    """Return the centre, which the ball holds: R0 is 0 at least, whatever a search found."""
    return replace(
        best, value=0.0, displacement=torch.zeros_like(theta), coordinates=torch.zeros_like(theta)
    )
