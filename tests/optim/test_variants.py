"""Fifty steps of the variants of SAM and GAM against their formulas in NumPy."""

from typing import Any

import numpy as np
import pytest
from torch.optim import SGD

from flatkit.optim import GAM, SAM
from tests.optim.step_reference import (
    BASES,
    FUNCTIONS,
    Array,
    Function,
    four_gradients,
    joined,
    orthogonal_part,
    reference_trajectory,
    sam,
    split,
    trajectory,
    unit,
    vector,
)

RADII: dict[str, Any] = {"rho": 0.3, "rho_prime": 0.1}
WEIGHTS: dict[str, Any] = {"alpha": 0.7, "beta": 0.4, "gamma": 0.3}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_base = pytest.mark.parametrize("base", BASES)


def compare(function: Function, optimizer: Any, expected: Array) -> None:
    got = trajectory(function, optimizer, 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(got[-1] - got[0]).max() > 1e-3


def accelerated_step(function: Function, theta: Array, widths: Array | float) -> Array:
    """Algorithm 2 where every move along d is ρ·T²d/‖Td‖; the projection is the plain one."""

    def moved(point: Array, d: Array, radius: float) -> Array:
        return point + radius * widths * unit(widths * d)

    g0 = function.gradient(theta)
    g1 = function.gradient(moved(theta, g0, RADII["rho_prime"]))
    second = moved(theta, g1 - g0, RADII["rho"])
    g2 = function.gradient(second)
    g3 = function.gradient(moved(second, g2, RADII["rho_prime"]))
    h_plus = WEIGHTS["alpha"] * g1 + (1 - WEIGHTS["alpha"]) * g3
    h_minus = WEIGHTS["beta"] * g0 + (1 - WEIGHTS["beta"]) * g2
    return h_plus - WEIGHTS["gamma"] * orthogonal_part(h_minus, h_plus)


def exact_step(function: Function, theta: Array, widths: Array) -> Array:
    """Algorithm 1 for L + α·ρ·max ‖T∇L‖ over ‖T⁻¹δ‖ ≤ ρ, with T held."""

    def norm_gradient(point: Array, g: Array) -> Array:
        return function.hessian(point) @ (widths * unit(widths * g))

    g = function.gradient(theta)
    adversary = theta + RADII["rho"] * widths * unit(widths * norm_gradient(theta, g))
    ahead = function.gradient(adversary)
    return g + WEIGHTS["alpha"] * RADII["rho"] * norm_gradient(adversary, ahead)


@every_function
@every_base
@pytest.mark.parametrize("mode", ["accelerated", "exact"])
def test_adaptive_gam(name, base, mode):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=40)
    rule = accelerated_step if mode == "accelerated" else exact_step
    expected = reference_trajectory(
        theta, BASES[base], lambda point: rule(function, point, np.abs(point) + 0.05), 50
    )
    options: dict[str, Any] = {"rho": RADII["rho"], "alpha": WEIGHTS["alpha"]}
    if mode == "accelerated":
        options = {**RADII, **WEIGHTS}
    base_optimizer = BASES[base](split(theta))
    optimizer = GAM(base_optimizer, mode=mode, adaptive=True, eta=0.05, **options)
    compare(function, optimizer, expected)


@every_function
@every_base
@pytest.mark.parametrize("every", [2, 5])
def test_every_kth_step(name, base, every):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=41)
    for make, rule in (
        (lambda b: SAM(b, rho=0.2, every=every), lambda p: sam(function.gradient, p, rho=0.2)),
        (
            lambda b: GAM(b, every=every, **RADII, **WEIGHTS),
            lambda p: accelerated_step(function, p, 1.0),
        ),
    ):
        count = iter(range(50))

        def combined(point: Array, rule=rule, count=count) -> Array:
            return rule(point) if next(count) % every == 0 else function.gradient(point)

        expected = reference_trajectory(theta, BASES[base], combined, 50)
        compare(function, make(BASES[base](split(theta))), expected)


@every_function
@every_base
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_released_code(name, base, beta):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=42)

    def combined(point: Array) -> Array:
        g0, g1, g2, g3 = four_gradients(function.gradient, point, **RADII)
        h_plus = WEIGHTS["alpha"] * g1 + (1 - WEIGHTS["alpha"]) * g3
        h_minus = g0 + abs(1 - beta) * g2
        return h_plus - WEIGHTS["gamma"] * orthogonal_part(h_minus, h_plus)

    expected = reference_trajectory(theta, BASES[base], combined, 50)
    optimizer = GAM.from_released_code(
        BASES[base](split(theta)), **RADII, **(WEIGHTS | {"beta": beta})
    )
    compare(function, optimizer, expected)


@every_function
def test_clipping(name):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=43)

    def combined(point: Array) -> Array:
        g = sam(function.gradient, point, rho=0.2)
        return g * min(1.0, 0.8 / np.linalg.norm(g))

    expected = reference_trajectory(theta, lambda p: SGD(p, lr=0.05), combined, 50)
    parameters = split(theta)
    compare(function, SAM(SGD(parameters, lr=0.05), rho=0.2, max_norm=0.8), expected)
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert np.linalg.norm(joined(gradients)) < 0.8 + 1e-12
