"""Average-case sharpness: the mean increase of the loss under Gaussian noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flatkit.checks import check_count
from flatkit.devices import ordinary_torch
from flatkit.flatness.geometry import Geometry, check_radius
from flatkit.objective.function import Objective
from flatkit.objective.narrowing import refuse_narrow
from flatkit.spectrum.standard_error import mean
from flatkit.spectrum.steps import Steps, finish


class AverageIncrease(NamedTuple):
    """A mean over random draws.

    Attributes:
        value: the mean loss increase.
        error: its standard error.
        sigma: the standard deviation of a coordinate.
        samples: pairs of draws.
    """

    value: float
    error: float
    sigma: float
    samples: int


@ordinary_torch()
def average_loss_increase(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    geometry: Geometry | None = None,
    samples: int = 32,
    generator: torch.Generator,
) -> AverageIncrease:
    """Return E[L(θ + T ε)] − L(θ) over ε ~ N(0, σ²I) with σ = ρ/√P, so that E‖ε‖² = ρ².

    Drawn in pairs ±ε, which cancels the gradient; the standard error is over the pairs, wider where
    these are few or one lies far off. As ρ → 0 the mean tends to ρ²/(2P)·tr(T H T).

    Cost: 2·samples + 1 forward passes.

    Args:
        objective: L.
        theta: the point [P]; the objective's own by default.
        rho: the root mean square length of the noise.
        geometry: T; its norm plays no role here.
        samples: pairs of draws, at least 2.
        generator: draws the noise.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ²: the mean is ρ²
    >>> found = average_loss_increase(Objective(nn.Linear(1, 1, bias=False), "mse", data),
    ...     torch.zeros(1), rho=0.5, samples=400, generator=torch.Generator().manual_seed(0))
    >>> abs(found.value - 0.25) < 3 * found.error
    True
    """
    theta = objective.theta if theta is None else theta
    geometry = geometry or Geometry("l2")
    refuse_narrow(objective, "the average increase")
    check_radius(rho, theta, geometry)
    check_count("samples", samples, minimum=2)
    sigma, base = rho / math.sqrt(theta.numel()), objective.loss(theta)
    return finish(_steps(objective, theta, base, geometry, sigma, samples, generator))


def average_steps(
    objective: Objective,
    base: float,
    *,
    rho: float,
    geometry: Geometry,
    samples: int = 32,
    generator: torch.Generator,
) -> Steps[AverageIncrease]:
    """Yield what is known of `average_loss_increase` after each pair.

    Args:
        objective: L, around its own point.
        base: the loss there.
        rho: as of `average_loss_increase`, like the rest.
        geometry: T.
        samples: pairs of draws in the end.
        generator: draws the noise.
    """
    refuse_narrow(objective, "the average increase")
    check_radius(rho, objective.theta, geometry)
    sigma = rho / math.sqrt(objective.num_parameters)
    return _steps(objective, objective.theta, base, geometry, sigma, samples, generator)


def _steps(
    objective: Objective,
    theta: Tensor,
    base: float,
    geometry: Geometry,
    sigma: float,
    samples: int,
    generator: torch.Generator,
) -> Steps[AverageIncrease]:
    means: list[float] = []
    for _ in range(samples):
        noise = sigma * torch.randn(theta.numel(), generator=generator).to(theta)
        step = geometry.displacement(noise)
        means.append(0.5 * (objective.loss(theta + step) + objective.loss(theta - step)) - base)
        del noise, step  # which every radius would keep while the others draw
        known = tuple(means)
        yield lambda known=known: AverageIncrease(*mean(known), sigma, len(known))
