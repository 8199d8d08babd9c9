"""Where a search in the ball starts: the quadratic model's maximiser, known directions, chance."""

import math
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import BallFunction
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.quadratic_model import QuadraticModel, Quantity, ScaledOperator
from flatkit.flatness.rounds import Start
from flatkit.objective.function import Objective
from flatkit.objective.passes import differentiate
from flatkit.spectrum.operators import SymmetricOperator

_NUM_VECTORS = 20  # eigenvectors in whose span most of the random initial points lie
# Initial points that are eigenvectors, random combinations of all of them, and random points of
# the sphere. `python -m benchmarks.flatness networks` chose them.
_ALONE, _COMBINED, _ANYWHERE = 8, 64, 8
# Products for the Krylov basis of a point that nothing is known about, at first and at most.
_FEWEST_PRODUCTS, _MOST_PRODUCTS = 5, 200
_MORE_PRODUCTS = 12  # before the model's maximum is compared with that before
# Differences, relative to the maximum: at which the model fits, at which it stands still.
_FITS, _STANDS = 1e-4, 1e-8
# Of the basis of a model and its products, so that those of a large network fit in memory.
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
    generator: torch.Generator,
    without: Collection[str] = (),
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield what makes initial points u [P] on the sphere, by name, the most promising first.

    Most random ones are combinations of the eigenvectors: the maxima of networks lie almost within
    their span, and a random point of the sphere almost across it. Cost: no product; memory none
    beside the model's, as searches in several balls wait for each other.

    Args:
        model: the quadratic model in the coordinates of the geometry.
        rho: the radius.
        geometry: of the ball.
        quantity: what will be maximised.
        generator: draws the random ones.
        without: names of those that are left out.
    """
    for name, direction in _directions(model, rho, quantity, generator):
        if name not in without and bool(direction().any()):
            yield name, partial(_on_sphere, direction, geometry, rho)


def _on_sphere(direction: Callable[[], Tensor], geometry: Geometry, rho: float) -> Tensor:
    return geometry.maximiser(direction(), rho)


def _directions(
    model: QuadraticModel,
    rho: float,
    quantity: Quantity,
    generator: torch.Generator,
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield what makes directions, by name."""
    gradient, basis = model.gradient, model.basis
    # As combinations of the basis: as vectors [K, P] they would take as much memory once more.
    eigenvectors = model.ritz_weights(_NUM_VECTORS)
    best = model.best_weights(quantity, rho)
    yield "quadratic model", partial(torch.matmul, best, basis)
    yield "quadratic model, reversed", partial(_reversed, best, basis)
    if quantity == "loss":
        yield "gradient", lambda: gradient
    else:
        yield "gradient-norm ascent", lambda: model.image(gradient)
    for number, weights in enumerate(eigenvectors[:_ALONE], start=1):
        yield f"eigenvector {number}", partial(torch.matmul, weights, basis)
        yield f"eigenvector {number}, reversed", partial(_reversed, weights, basis)
        if number == 1:
            yield "gradient, reversed", lambda: -gradient
            if quantity != "loss":
                yield "gradient", lambda: gradient
    for number in range(1, _COMBINED + 1):
        drawn = torch.randn(len(eigenvectors), generator=generator).to(eigenvectors)
        yield f"mixture {number}", partial(torch.matmul, drawn @ eigenvectors, basis)
    # For what the Krylov basis cannot see. Drawn at once, so that making one again gives the same.
    for number in range(1, _ANYWHERE + 1):
        drawn = torch.randn(gradient.numel(), generator=generator).to(gradient)
        yield f"random {number}", lambda drawn=drawn: drawn


def _reversed(weights: Tensor, basis: Tensor) -> Tensor:
    return -(weights @ basis)


def unaided_starts(
    function: FunctionOfObjective, *, rho: float, generator: torch.Generator
) -> Iterator[Start]:
    """Yield initial points around a point that nothing is known about, and what each took.

    One Krylov basis from the gradient gives the maximiser of the quadratic model and approximate
    eigenvectors, from which `search_starts` goes on. Where the function agrees with the model at
    its maximiser, nothing is better than a better model: the basis grows until its maximum stands
    still.

    Cost: a gradient and 5 Hessian-vector products, or at most 200 where the model fits; memory 2
    vectors a product.
    """
    theta, geometry = function.theta, function.geometry
    hessian = ScaledOperator(function.hessian, geometry)
    gradient = geometry.displacement(function.objective.gradient(theta))
    yield 1
    model = QuadraticModel(hessian, gradient, max_basis=_FEWEST_PRODUCTS, fill=False)
    yield from grown(model, _FEWEST_PRODUCTS, function.product_cost)
    if geometry.is_round:
        yield from _sharpen(model, function, rho)
    yield from search_starts(
        model,
        rho=rho,
        geometry=geometry,
        quantity=function.quantity,
        generator=generator,
    )


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
    pieces: list[tuple[Tensor, float]] = []
    for rows, sign in zip(order.chunk(2), (1.0, -1.0), strict=False):
        # As many pieces as chunks would be, but none smaller than `least`.
        parts = min(math.ceil(len(rows) / objective.chunk_size), len(rows) // least)
        pieces += [(part, sign) for part in rows.tensor_split(max(1, parts))]
    ranks = objective.ranks
    with ranks.adding(total):
        for part, sign in pieces[ranks.part(len(pieces))]:
            with objective.placed(theta, smooth=False) as point:
                loss = objective.chunk_loss(point, objective.rows(part))
                total += sign * differentiate(loss, point)
    objective.count(gradients=1)
    return total


def grown(model: QuadraticModel, size: int, cost: int) -> Iterator[int]:
    """Let the basis grow to a size, and yield what each product cost."""
    while len(model.basis) < size:
        before = len(model.basis)
        model.extend(before + 1)
        if len(model.basis) == before:
            return
        yield cost


def _sharpen(model: QuadraticModel, function: FunctionOfObjective, rho: float) -> Iterator[int]:
    """Let the basis grow while that raises the maximum, where the function fits the model."""
    quantity = function.quantity
    most = min(_MOST_PRODUCTS, _MOST_NUMBERS // (2 * model.operator.size))
    value, u = model.within_basis(quantity, rho)
    seen = float(function(u[None]).values[0])
    yield function.value_cost
    # Away from a quadratic a better model is no better start: the products go to the search.
    if abs(seen - value) > _FITS * abs(seen):
        return
    while len(model.basis) < most:
        before = len(model.basis)
        yield from grown(model, min(most, before + _MORE_PRODUCTS), function.product_cost)
        better, _ = model.within_basis(quantity, rho)
        if better - value <= _STANDS * abs(better) or len(model.basis) == before:
            return
        value = better
