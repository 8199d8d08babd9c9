"""SAM and GAM written in NumPy from their formulas, and functions with known derivatives.

Nothing here uses flatkit. A radius or weight may be an array with one entry a coordinate, which
is what param groups with options of their own mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

Array = NDArray[np.float64]
Gradient = Callable[[Array], Array]
Number = float | Array

XI = 1e-12


@dataclass(frozen=True)
class Function:
    """L(θ) = ½θᵀAθ + bᵀθ + c·Σθ⁴/4 with its derivatives in NumPy and L itself in torch."""

    matrix: Array
    linear: Array
    quartic: float = 0.0

    @property
    def size(self) -> int:
        return len(self.linear)

    def gradient(self, theta: Array) -> Array:
        return self.matrix @ theta + self.linear + self.quartic * theta**3

    def hessian(self, theta: Array) -> Array:
        return self.matrix + 3 * self.quartic * np.diag(theta**2)

    def loss(self, parameters: list[Tensor]) -> Tensor:
        theta = torch.cat([parameter.flatten() for parameter in parameters])
        matrix, linear = torch.from_numpy(self.matrix), torch.from_numpy(self.linear)
        quadratic = 0.5 * theta @ matrix @ theta + linear @ theta
        return quadratic + self.quartic * (theta**4).sum() / 4


def symmetric(eigenvalues: list[float], seed: int) -> Array:
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.standard_normal((len(eigenvalues), len(eigenvalues))))
    product = basis @ np.diag(eigenvalues) @ basis.T
    return (product + product.T) / 2


def vector(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size)


FUNCTIONS = {
    "positive": Function(symmetric([4.0, 2.0, 1.0, 0.5], seed=0), np.zeros(4)),
    "positive with a linear term": Function(symmetric([3.0, 1.0, 0.2], seed=1), vector(3, seed=2)),
    "indefinite": Function(symmetric([2.0, 0.5, 0.1, -0.3, -1.0], seed=3), np.zeros(5)),
    "indefinite with a linear term": Function(
        symmetric([2.0, 0.5, -0.4, -0.6], seed=4), vector(4, seed=5)
    ),
    "quartic": Function(symmetric([2.0, 0.5, -0.4, -0.6], seed=6), vector(4, seed=7), quartic=0.3),
}
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda groups: AdamW(groups, lr=0.02, weight_decay=0.1),
}


def unit(x: Array) -> Array:
    return x / (np.linalg.norm(x) + XI)


def sam(gradient: Gradient, theta: Array, *, rho: Number) -> Array:
    return gradient(theta + rho * unit(gradient(theta)))


def accelerated_gam(
    gradient: Gradient,
    theta: Array,
    *,
    rho: Number,
    rho_prime: Number,
    alpha: Number,
    beta: Number,
    gamma: Number,
) -> Array:
    g0, g1, g2, g3 = four_gradients(gradient, theta, rho=rho, rho_prime=rho_prime)
    h_plus = alpha * g1 + (1 - alpha) * g3
    h_minus = beta * g0 + (1 - beta) * g2
    return h_plus - gamma * orthogonal_part(h_minus, h_plus)


def four_gradients(
    gradient: Gradient, theta: Array, *, rho: Number, rho_prime: Number
) -> tuple[Array, Array, Array, Array]:
    g0 = gradient(theta)
    g1 = gradient(theta + rho_prime * unit(g0))
    theta2 = theta + rho * unit(g1 - g0)
    g2 = gradient(theta2)
    g3 = gradient(theta2 + rho_prime * unit(g2))
    return g0, g1, g2, g3


def orthogonal_part(x: Array, y: Array) -> Array:
    return x - (x @ y) / (y @ y) * y


def exact_gam(
    gradient: Gradient,
    hessian: Callable[[Array], Array],
    theta: Array,
    *,
    rho: Number,
    alpha: Number,
) -> Array:
    g = gradient(theta)
    f = hessian(theta) @ unit(g)
    adversary = theta + rho * unit(f)
    n = rho * (hessian(adversary) @ unit(gradient(adversary)))
    return g + alpha * n


def split(theta: Array) -> list[Tensor]:
    """Return θ as two free tensors of different shapes."""
    first, second = torch.from_numpy(theta[:2].copy()), torch.from_numpy(theta[2:].copy())
    return [first.reshape(2, 1).requires_grad_(), second.requires_grad_()]


def joined(parameters: list[Tensor]) -> Array:
    return torch.cat([parameter.detach().flatten() for parameter in parameters]).numpy().copy()


def reference_trajectory(
    theta: Array, make_base: Callable[[Any], Optimizer], combined: Gradient, steps: int
) -> Array:
    """Return the points [steps, P] of torch's own base, fed with gradients from NumPy."""
    parameters = split(theta)
    base = make_base(parameters)
    points = []
    for _ in range(steps):
        gradient = torch.from_numpy(combined(joined(parameters)))
        parameters[0].grad, parameters[1].grad = gradient[:2].reshape(2, 1), gradient[2:]
        base.step()
        points.append(joined(parameters))
    return np.array(points)


def trajectory(function: Function, optimizer: Optimizer, steps: int) -> Array:
    """Return the points [steps, P] of the optimizer under test."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    step: Any = optimizer.step
    points = []
    for _ in range(steps):
        step(lambda: function.loss(parameters))
        points.append(joined(parameters))
    return np.array(points)
