"""Zeroth-order sharpness: the largest increase of the loss within a ρ-ball."""

from collections.abc import Mapping

from torch import Tensor

from flatkit.flatness.ball import BallMaximum, maximize_over_ball
from flatkit.objective import Objective


class _LossIncrease:
    """L(θ+δ) − L(θ) at one δ; one gradient gives the value and the ascent direction."""

    def __init__(self, objective: Objective, theta: Tensor, base: float, delta: Tensor) -> None:
        loss, self._gradient = objective.loss_and_gradient(theta + delta)
        self.value = loss - base

    def ascent(self) -> Tensor:
        return self._gradient


def max_loss_increase(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    starts: Mapping[str, Tensor],
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> BallMaximum:
    """Search R0_ρ(θ) = max over ‖δ‖ ≤ ρ of L(θ+δ) − L(θ) (Foret et al., 2021, eq. 1).

    The value is a LOWER bound of the maximum. At a minimum R0_ρ/ρ² → λmax/2 as ρ → 0.

    Cost: a gradient per evaluation.

    Args:
        objective: L.
        theta: the point [P]; the objective's own by default.
        rho: ρ > 0, in the units of the parameters.
        starts: displacements [P] by name, each within the ball.
        tolerance: see `maximize_over_ball`.
        max_iterations: likewise.

    >>> import torch
    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ², at θ = 0
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> start = {"gradient": torch.tensor([0.5])}
    >>> max_loss_increase(objective, torch.zeros(1), rho=0.5, starts=start).value
    0.25
    """
    theta = objective.theta if theta is None else theta
    base = objective.loss(theta)
    return maximize_over_ball(
        lambda delta: _LossIncrease(objective, theta, base, delta),
        radius=rho,
        starts=starts,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
