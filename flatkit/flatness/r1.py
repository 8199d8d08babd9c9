"""First-order flatness: the largest gradient norm within a ρ-ball."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from flatkit.devices import ordinary_torch
from flatkit.flatness.ball import BallMaximum, Search, search_ball
from flatkit.flatness.functions import GradientNorm
from flatkit.flatness.geometry import Geometry, check_radius
from flatkit.flatness.rounds import Start
from flatkit.flatness.widened import widened, within
from flatkit.objective.function import Objective
from flatkit.spectrum.steps import Steps


@ordinary_torch()
def max_gradient_norm(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    starts: Mapping[str, Tensor] | None = None,
    geometry: Geometry | None = None,
    budget: int = 600,
    tolerance: float = 1e-7,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> BallMaximum:
    """Search max over ‖δ‖ ≤ ρ of ‖∇L(θ+δ)‖; ρ times it is R1_ρ(θ) (Zhang et al., 2023, eq. 3).

    The value is a LOWER bound of the maximum. At a minimum it tends to ρ·λmax as ρ → 0, and
    R1_ρ/ρ² to λmax; always R0_ρ ≤ R1_ρ for the true maxima. In another geometry than the round one
    the gradient is measured in the dual norm.

    Cost: about `budget` gradients, starts that are not given among them; a Hessian-vector product
    counts as 2, or 3 with several chunks.

    Args:
        objective: L.
        theta: the point [P]; the objective's own by default.
        rho: ρ > 0, in the units of the parameters, or relative to them if the geometry is.
        starts: coordinates u [P] by name, each within the ball; by default the maximiser of the
            quadratic model, top eigenvectors and the gradient, both ways, GAM's ascent, random
            combinations of the eigenvectors and random points.
        geometry: of the ball; round by default.
        budget: gradients of the loss that may be spent, about.
        tolerance: an ascent ends when a step gains less than this, relative to the value.
        noise: the rounding of ‖∇L‖, if it is known; smaller gains are none.
        generator: draws random starts, where none are given, and where walks begin.

    Raises:
        InvalidArgumentError: ρ is no number > 0, or below the rounding of θ.
        NonFiniteError: the loss or its gradient is not finite somewhere in the ball.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ², at θ = 0
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> max_gradient_norm(objective, torch.zeros(1), rho=0.5).value
    1.0
    """
    search = _search(objective, theta, rho, starts, geometry, tolerance, noise, generator)
    return within(search, _in_float32(objective, theta, geometry), budget)


def gradient_norm_steps(
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
    """Search as `max_gradient_norm` does, for as long as it is asked to.

    Where the objective computes in 16 bits, values are those of float32 at the points found.

    Args:
        objective: as of `max_gradient_norm`, like all the others.
        theta: the point [P].
        rho: ρ > 0.
        starts: coordinates u [P] by name, or as of `search_steps`.
        geometry: of the ball.
        tolerance: gain, relative to the value, that ends an ascent.
        noise: the rounding of ‖∇L‖.
        generator: draws starts and where walks begin.
    """
    search = _search(objective, theta, rho, starts, geometry, tolerance, noise, generator)
    return widened(search.steps(), _in_float32(objective, theta, geometry))


def _in_float32(
    objective: Objective, theta: Tensor | None, geometry: Geometry | None
) -> Callable[[Tensor], float] | None:
    """Return the norm at a displacement [P] by the same function in float32, if there is one."""
    exact, around = objective.exact, geometry or Geometry("l2")
    centre = objective.theta if theta is None else theta
    if exact is None:
        return None
    return lambda way: float(around.dual_norm(around.displacement(exact.gradient(centre + way))))


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
    return search_ball(
        GradientNorm(objective, theta, geometry),
        rho=rho,
        starts=starts,
        tolerance=tolerance,
        noise=noise,
        generator=generator,
    )
