"""Where a search in the ball starts: the quadratic model's maximiser, known directions, chance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.flatness.functions import Field, product_cost
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.quadratic_model import QuadraticModel, Quantity, ScaledOperator
from flatkit.hessian import HessianOperator
from flatkit.objective.function import Objective, differentiate

NUM_VECTORS = 20
_ALONE, _MIXED, _ANYWHERE = 8, 64, 8
"""Eigenvectors that are starts, mixtures of all of them, and random points of the sphere."""
_FEWEST_PRODUCTS, _MOST_PRODUCTS, _MORE_PRODUCTS = 8, 60, 12
_FITS, _STANDS = 1e-4, 1e-8
"""Differences, relative to the maximum: at which the model fits, at which it stands still."""
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
        vectors: top eigenvectors [K, P], orthonormal.
        generator: draws the random ones.

    Most random starts are mixtures of the eigenvectors: the maxima of networks lie almost within
    their span, and a random point of the sphere almost across it.
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
    for number in range(2, min(_ALONE, len(vectors)) + 1):
        both(f"eigenvector {number}", vectors[number - 1])
    for number in range(1, _MIXED + 1):
        if len(directions) < room:
            drawn = torch.randn(len(vectors), generator=generator).to(vectors)
            directions[f"mixture {number}"] = drawn @ vectors
    for number in range(1, _ANYWHERE + 1):
        if len(directions) < room:
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
    function: Field,
    objective: Objective,
    theta: Tensor,
    *,
    rho: float,
    which: Quantity,
    budget: int = 600,
    generator: torch.Generator | None = None,
) -> Starts:
    """Return starts for a search around a point that nothing is known about.

    One Krylov basis from the gradient gives the maximiser of the quadratic model and approximate
    eigenvectors. Where the function agrees with the model there, nothing is better than a better
    model: the basis grows until its maximum stands still.

    Cost: a gradient and at most 60 Hessian-vector products, within a third of the budget (but eight
    products in any case), or two thirds where the model fits; memory 2 vectors a product.
    """
    generator, geometry = generator or torch.Generator().manual_seed(0), function.geometry
    hessian = ScaledOperator(HessianOperator(objective, theta), geometry)
    gradient = geometry.displacement(objective.gradient(theta))
    a_product = product_cost(objective)
    room = max(_FEWEST_PRODUCTS, _MOST_NUMBERS // (2 * max(1, hessian.size)))
    products = min(max(_FEWEST_PRODUCTS, budget // (3 * a_product)), _MOST_PRODUCTS, room)
    model = QuadraticModel(hessian, gradient, max_basis=products)
    spent = 1 + (len(model.basis) + 3) * a_product  # three: of two maxima and GAM's ascent
    if geometry.is_round:
        spent += _sharpen(model, function, which, rho, min(room, budget * 2 // (3 * a_product)))
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
    return Starts(points, spent)


def disagreement(objective: Objective, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Return ∇(L_A − L_B)(θ) [P] for the losses of a random half of the samples and of the others.

    Its covariance is that of the gradients of single samples, so that it lies where these, and with
    them the curvature, are large, and reaches much more of that than a few eigenvectors do.

    Cost: one gradient.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))  # L = (θ² + 4θ²) / 2
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> abs(disagreement(objective, torch.ones(1), torch.Generator()).item())  # ±(1 − 4)
    3.0
    """
    order = torch.randperm(objective.num_samples, generator=generator).to(objective.device)
    total = torch.zeros_like(theta)
    least = 2 if objective.batchnorm == "train" else 1  # BatchNorm refuses single samples
    for rows, sign in zip(order.chunk(2), (1.0, -1.0), strict=False):
        parts = min(math.ceil(len(rows) / objective.chunk_size), len(rows) // least)
        for part in rows.tensor_split(max(1, parts)):
            point = theta.detach().requires_grad_()
            loss = objective.chunk_loss(point, objective.rows(part), smooth=False)
            total += sign * differentiate(loss, point)
    objective.count(gradients=1)
    return total


def _sharpen(model: QuadraticModel, function: Field, which: Quantity, rho: float, most: int) -> int:
    """Let the basis grow while that raises the maximum, where the function fits the model.

    Returns:
        What it cost, in gradients.
    """
    found = model.maximum(which, rho=rho, slope=0.0)
    value, before = float(function(found.u[None]).values[0]), len(model.basis)
    spent, a_product = function.value_cost, max(2, function.ascent_cost)
    if abs(value - found.value) > _FITS * abs(value):
        return spent
    while len(model.basis) < most:
        count = len(model.basis)
        model.extend(min(most, count + _MORE_PRODUCTS))
        better = model.maximum(which, rho=rho, slope=0.0)
        spent += a_product  # of the maximum
        stands = better.value - found.value <= _STANDS * abs(better.value)
        found = better
        if stands or len(model.basis) == count:
            break
    return spent + (len(model.basis) - before) * a_product
