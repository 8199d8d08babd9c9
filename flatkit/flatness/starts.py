"""Where a search in the ball starts: the quadratic model's maximiser, known directions, chance."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.flatness.fields import product_cost
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.model import QuadraticModel, Quantity, ScaledOperator
from flatkit.hessian import HessianOperator
from flatkit.objective import Objective

NUM_RANDOM, NUM_VECTORS = 16, 8
_FEWEST_PRODUCTS, _MOST_PRODUCTS = 8, 60
_MOST_NUMBERS = 2**28
"""Of all the starts together, so that those of a large network fit in memory."""


def search_starts(
    model: QuadraticModel,
    *,
    rho: float,
    geometry: Geometry,
    which: Quantity,
    slope: float,
    vectors: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return coordinates u [P] on the sphere by name, the most promising first.

    Args:
        model: the quadratic model in the coordinates of the geometry.
        rho: the radius.
        geometry: of the ball.
        which: what will be maximised.
        slope: |λ|max of the model.
        vectors: top eigenvectors [K, P].
        generator: draws the random ones.
    """
    gradient = model.gradient
    directions: dict[str, Tensor] = {}

    def both(name: str, direction: Tensor) -> None:
        if bool(direction.any()):
            directions[name] = direction
            directions[f"{name}, reversed"] = -direction

    both("quadratic model", model.maximum(which, rho=rho, slope=slope).u)
    both("eigenvector 1", vectors[0])
    both("gradient", gradient)
    if bool(gradient.any()):
        directions["gradient-norm ascent"] = model.operator.matvec(gradient)
    room = max(4, _MOST_NUMBERS // max(1, gradient.numel()))
    for number in range(2, len(vectors) + 1):
        both(f"eigenvector {number}", vectors[number - 1])
    for number in range(1, NUM_RANDOM + 1):
        if len(directions) >= room:
            break
        drawn = torch.randn(gradient.numel(), generator=generator).to(gradient)
        directions[f"random {number}"] = drawn
    return {
        name: geometry.maximiser(direction, rho)
        for name, direction in directions.items()
        if bool(direction.any())
    }


@dataclass(frozen=True)
class Starts:
    """Starts of a search and what it cost to find them.

    Attributes:
        points: coordinates u [P] by name.
        gradients: spent, a Hessian-vector product as `product_cost` says.
    """

    points: Mapping[str, Tensor]
    gradients: int


def default_starts(
    objective: Objective,
    theta: Tensor,
    *,
    rho: float,
    geometry: Geometry,
    which: Quantity,
    budget: int = 600,
    generator: torch.Generator | None = None,
) -> Starts:
    """Return starts for a search around a point that nothing is known about.

    One Krylov basis from the gradient gives the maximiser of the quadratic model and approximate
    eigenvectors.

    Cost: a gradient and at most 60 Hessian-vector products, within a third of the budget (but eight
    products in any case); memory 2 vectors a product.
    """
    generator = generator or torch.Generator().manual_seed(0)
    hessian = ScaledOperator(HessianOperator(objective, theta), geometry)
    gradient = geometry.displacement(objective.gradient(theta))
    a_product = product_cost(objective)
    products = min(max(_FEWEST_PRODUCTS, budget // (3 * a_product)), _MOST_PRODUCTS)
    products = min(products, max(_FEWEST_PRODUCTS, _MOST_NUMBERS // (2 * max(1, hessian.size))))
    model = QuadraticModel(hessian, gradient, max_basis=products)
    values, vectors, residuals = model.ritz(min(NUM_VECTORS, hessian.size))
    points = search_starts(
        model,
        rho=rho,
        geometry=geometry,
        which=which,
        slope=float(values.abs()[0] + residuals[0]),
        vectors=vectors,
        generator=generator,
    )
    # Two products more: of the model's maximum and of GAM's ascent.
    return Starts(points, 1 + (len(model.basis) + 2) * a_product)
