"""First-order flatness: the largest gradient norm within a ρ-ball."""

from collections.abc import Mapping

from torch import Tensor

from flatkit.flatness.ball import BallMaximum, maximize_over_ball
from flatkit.hessian import HessianOperator
from flatkit.objective import Objective


class _GradientNorm:
    """‖∇L(θ+δ)‖ at one δ, and its gradient H(θ+δ)·g/‖g‖ from the same graph where it is kept."""

    def __init__(self, objective: Objective, point: Tensor) -> None:
        self._hessian = HessianOperator(objective, point)
        self._gradient = self._hessian.gradient()
        self.value = float(self._gradient.double().norm())

    def ascent(self) -> Tensor:
        if self.value == 0:
            return self._gradient
        return self._hessian.matvec(self._gradient / self.value)


def max_gradient_norm(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    starts: Mapping[str, Tensor],
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> BallMaximum:
    """Search max over ‖δ‖ ≤ ρ of ‖∇L(θ+δ)‖; ρ times it is R1_ρ(θ) (Zhang et al., 2023, eq. 3).

    The value is a LOWER bound of the maximum. At a minimum it tends to ρ·λmax as ρ → 0, and
    R1_ρ/ρ² to λmax; always R0_ρ ≤ R1_ρ for the true maxima.

    Cost: a gradient per evaluation and a Hessian-vector product per ascent.

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
    >>> start = {"top eigenvector": torch.tensor([0.5])}
    >>> max_gradient_norm(objective, torch.zeros(1), rho=0.5, starts=start).value
    1.0
    """
    theta = objective.theta if theta is None else theta
    return maximize_over_ball(
        lambda delta: _GradientNorm(objective, theta + delta),
        radius=rho,
        starts=starts,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
