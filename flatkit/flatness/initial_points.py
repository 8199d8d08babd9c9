"""Where a search in the ball starts: the quadratic model's maximiser, known directions, chance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import BallFunction
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.quadratic_model import QuadraticModel, Quantity, ScaledOperator
from flatkit.objective.function import Objective
from flatkit.objective.passes import differentiate
from flatkit.spectrum.operators import SymmetricOperator

NUM_VECTORS = 20  # eigenvectors in whose span most of the random initial points lie
# Initial points that are eigenvectors, random combinations of all of them, and random points of
# the sphere. `python -m benchmarks.flatness networks` chose them.
_ALONE, _COMBINED, _ANYWHERE = 8, 64, 8
# Products for the Krylov basis: at first, at most, and each time it grows;
# `python -m benchmarks.flatness quadratics` chose them.
_FEWEST_PRODUCTS, _MOST_PRODUCTS, _MORE_PRODUCTS = 8, 60, 12
# Differences, relative to the maximum: at which the model fits, at which it stands still.
_FITS, _STANDS = 1e-4, 1e-8
# Of all the initial points together, so that those of a large network fit in memory.
_MOST_NUMBERS = 2**28


class FunctionOfObjective(BallFunction, Protocol):
    """The loss increase or the gradient norm of an objective, in a ball around a point.

    Attributes:
        objective: L.
        theta: the centre [P].
        hessian: of L at the centre.
        quantity: which of the two.
        product_cost: of a Hessian-vector product, in gradients.
    """

    objective: Objective
    theta: Tensor
    hessian: SymmetricOperator
    quantity: ClassVar[Quantity]
    product_cost: int


def search_starts(
    model: QuadraticModel,
    *,
    rho: float,
    geometry: Geometry,
    quantity: Quantity,
    vectors: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return initial points u [P] on the sphere by name, the most promising first.

    Most random ones are combinations of the eigenvectors: the maxima of networks lie almost within
    their span, and a random point of the sphere almost across it.

    Args:
        model: the quadratic model in the coordinates of the geometry.
        rho: the radius.
        geometry: of the ball.
        quantity: what will be maximised.
        vectors: top eigenvectors [K, P], orthonormal.
        generator: draws the random ones.
    """
    gradient = model.gradient
    directions: dict[str, Tensor] = {}

    def both(name: str, direction: Tensor) -> None:
        if bool(direction.any()):
            directions[name] = direction
            directions[f"{name}, reversed"] = -direction

    both("quadratic model", model.maximum(quantity, rho=rho).u)
    both("eigenvector 1", vectors[0])
    both("gradient", gradient)
    if bool(gradient.any()):
        directions["gradient-norm ascent"] = model.operator.matvec(gradient)
    room = max(4, _MOST_NUMBERS // max(1, gradient.numel()))
    for number in range(2, min(_ALONE, len(vectors)) + 1):
        both(f"eigenvector {number}", vectors[number - 1])
    for number in range(1, _COMBINED + 1):
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
class InitialPoints:
    """Initial points of a search and what it cost to find them.

    Attributes:
        points: coordinates u [P] by name.
        gradients: spent, a Hessian-vector product as `product_cost` says.
    """

    points: Mapping[str, Tensor]
    gradients: int


def initial_points(
    function: FunctionOfObjective,
    *,
    rho: float,
    budget: int = 600,
    generator: torch.Generator | None = None,
) -> InitialPoints:
    """Return initial points for a search around a point that nothing is known about.

    One Krylov basis from the gradient gives the maximiser of the quadratic model and approximate
    eigenvectors, from which `search_starts` goes on. Where the function agrees with the model at
    its maximiser, nothing is better than a better model: the basis grows until its maximum stands
    still.

    Cost: a gradient and at most 60 Hessian-vector products, within a third of the budget (but eight
    products in any case), or two thirds where the model fits; memory 2 vectors a product.
    """
    generator = generator or torch.Generator().manual_seed(0)
    objective, theta, geometry = function.objective, function.theta, function.geometry
    hessian = ScaledOperator(function.hessian, geometry)
    gradient = geometry.displacement(objective.gradient(theta))
    product = function.product_cost
    room = max(_FEWEST_PRODUCTS, _MOST_NUMBERS // (2 * max(1, hessian.size)))
    products = min(max(_FEWEST_PRODUCTS, budget // (3 * product)), _MOST_PRODUCTS, room)
    model = QuadraticModel(hessian, gradient, max_basis=products)
    spent = 1 + (len(model.basis) + 3) * product  # three: of two maxima and GAM's ascent
    if geometry.is_round:
        spent += _sharpen(model, function, rho, min(room, budget * 2 // (3 * product)))
    points = search_starts(
        model,
        rho=rho,
        geometry=geometry,
        quantity=function.quantity,
        vectors=model.ritz(min(NUM_VECTORS, hessian.size))[1],
        generator=generator,
    )
    return InitialPoints(points, spent)


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
    order = torch.randperm(objective.num_rows, generator=generator).to(objective.device)
    total = torch.zeros_like(theta)
    least = 1 if objective.divisible else 2  # BatchNorm refuses single samples
    for rows, sign in zip(order.chunk(2), (1.0, -1.0), strict=False):
        parts = min(math.ceil(len(rows) / objective.chunk_size), len(rows) // least)
        for part in rows.tensor_split(max(1, parts)):
            with objective.placed(theta, smooth=False) as point:
                loss = objective.chunk_loss(point, objective.rows(part))
                total += sign * differentiate(loss, point)
    objective.count(gradients=1)
    return total


def _sharpen(model: QuadraticModel, function: FunctionOfObjective, rho: float, most: int) -> int:
    """Let the basis grow while that raises the maximum, where the function fits the model.

    Returns:
        What it cost, in gradients.
    """
    quantity = function.quantity
    found = model.maximum(quantity, rho=rho)
    value, before = float(function(found.u[None]).values[0]), len(model.basis)
    spent, product = function.value_cost, max(2, function.ascent_cost)
    if abs(value - found.value) > _FITS * abs(value):
        return spent
    while len(model.basis) < most:
        count = len(model.basis)
        model.extend(min(most, count + _MORE_PRODUCTS))
        better = model.maximum(quantity, rho=rho)
        spent += product  # of the maximum
        stands = better.value - found.value <= _STANDS * abs(better.value)
        found = better
        if stands or len(model.basis) == count:
            break
    return spent + (len(model.basis) - before) * product
