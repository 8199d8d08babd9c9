"""Where a search in the ball starts: the quadratic model's maximiser, known directions, chance."""

import torch
from torch import Tensor

from flatkit.flatness.geometry import Geometry
from flatkit.flatness.model import QuadraticModel, Quantity, ScaledOperator
from flatkit.hessian import HessianOperator
from flatkit.objective import Objective
from flatkit.spectrum import lanczos

NUM_RANDOM = 16
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


def default_starts(
    objective: Objective,
    theta: Tensor,
    *,
    rho: float,
    geometry: Geometry,
    which: Quantity,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return starts for a search around a point that nothing is known about.

    Cost: a gradient and about 45 Hessian-vector products.
    """
    generator = generator or torch.Generator().manual_seed(0)
    hessian = ScaledOperator(HessianOperator(objective, theta), geometry)
    gradient = geometry.displacement(objective.gradient(theta))
    top = lanczos(
        hessian,
        k=min(3, hessian.size),
        which="magnitude",
        tolerance=1e-2,
        max_matvecs=60,
        generator=generator,
    )
    assert top.vectors is not None
    model = QuadraticModel(hessian, gradient, vectors=top.vectors, max_basis=20)
    return search_starts(
        model,
        rho=rho,
        geometry=geometry,
        which=which,
        slope=float(top.value.abs()[0] + top.error[0]),
        vectors=top.vectors,
        generator=generator,
    )
