"""One search in the ball, of the loss or of its gradient norm, from nothing but the point."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flatkit.flatness.ball import BallMaximum, maximize_over_ball
from flatkit.flatness.functions import Field
from flatkit.flatness.initial_points import default_starts, disagreement
from flatkit.flatness.quadratic_model import Quantity
from flatkit.objective.function import Objective


def search_ball(
    function: Field,
    objective: Objective,
    theta: Tensor,
    *,
    rho: float,
    which: Quantity,
    starts: Mapping[str, Tensor] | None,
    budget: int,
    tolerance: float,
    noise: float,
    generator: torch.Generator | None,
) -> BallMaximum:
    """Search the maximum of a function of the objective around θ, exploring where samples disagree.

    Args:
        function: φ.
        objective: L.
        theta: θ [P].
        rho: ρ.
        which: of the two quantities φ is.
        starts: coordinates u [P] by name; None for those of `default_starts`, which the budget
            then pays for.
        budget: in gradients of the loss, see `maximize_over_ball`.
        tolerance: likewise.
        noise: likewise.
        generator: likewise, and of `default_starts`.
    """
    spent = 0
    if starts is None:
        found = default_starts(
            function, objective, theta, rho=rho, which=which, budget=budget, generator=generator
        )
        starts, spent = found.points, found.gradients
    best = maximize_over_ball(
        function,
        radius=rho,
        starts=starts,
        budget=max(1, budget - spent),
        tolerance=tolerance,
        noise=noise,
        explore=lambda drawn: function.geometry.displacement(disagreement(objective, theta, drawn)),
        generator=generator,
    )
    return replace(best, gradients=best.gradients + spent)
