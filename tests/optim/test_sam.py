"""SAM against its formula in NumPy, and against what plain SGD cannot do."""

import math

import numpy as np
import pytest
import torch
from torch.optim import SGD

from flatkit.errors import InvalidArgumentError
from flatkit.optim import ASAM, GSAM, SAM
from tests.optim.step_reference import (
    BASES,
    FUNCTIONS,
    Array,
    joined,
    orthogonal_part,
    reference_trajectory,
    sam,
    split,
    trajectory,
    unit,
    vector,
)

every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_base = pytest.mark.parametrize("base", BASES)


@every_function
def test_a_step_leaves_the_gradient_of_the_formula(name):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=10)
    parameters = split(theta)
    loss = SAM(SGD(parameters, lr=0.1), rho=0.3).step(lambda: function.loss(parameters))
    expected = sam(function.gradient, theta, rho=0.3)
    gradients = [p.grad for p in parameters if p.grad is not None]
    np.testing.assert_allclose(joined(gradients), expected, rtol=1e-12)
    np.testing.assert_allclose(joined(parameters), theta - 0.1 * expected, rtol=1e-12)
    assert loss.item() == function.loss(split(theta)).item()
    assert not loss.requires_grad


def test_a_step_on_a_quadratic_of_one_dimension_equals_the_closed_form():
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    SAM(SGD([theta], lr=0.1), rho=0.5).step(lambda: 1.5 * theta.square().sum())
    assert theta.item() == pytest.approx(2 - 0.1 * 3 * (2 + 0.5), rel=1e-14)


@every_function
@every_base
def test_fifty_steps_follow_the_formula(name, base):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=11)

    def combined(point: Array) -> Array:
        return sam(function.gradient, point, rho=0.1)

    expected = reference_trajectory(theta, BASES[base], combined, 50)
    got = trajectory(function, SAM(BASES[base](split(theta)), rho=0.1), 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@every_base
def test_groups_with_their_own_radius_share_one_direction(base):
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=12)
    radii = np.array([0.4, 0.4, 0.05, 0.05])

    def combined(point: Array) -> Array:
        return sam(function.gradient, point, rho=radii)

    first, second = split(theta)
    groups = [{"params": [first], "rho": 0.4}, {"params": [second]}]
    got = trajectory(function, SAM(BASES[base](groups), rho=0.05), 50)
    expected = reference_trajectory(theta, BASES[base], combined, 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@every_base
def test_a_radius_of_zero_is_the_base_bit_for_bit(base):
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=13)
    parameters = split(theta)
    plain = BASES[base](parameters)
    for _ in range(20):
        plain.zero_grad()
        function.loss(parameters).backward()
        plain.step()
    got = trajectory(function, SAM(BASES[base](split(theta)), rho=0.0), 20)
    assert np.array_equal(got[-1], joined(parameters))


def test_sam_slides_along_a_valley_to_small_curvature_where_sgd_stands_still():
    """L = (ab)²/2 is zero where a = 0, with the curvature b² across that valley."""
    ends = {}
    for rho in (0.0, 0.2):
        a = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        optimizer = SAM(SGD([a, b], lr=0.05), rho=rho)
        for _ in range(400):
            optimizer.step(lambda a=a, b=b: (a * b).square().sum() / 2)
        assert abs(a.item()) < 1e-2
        ends[rho] = b.item()
    assert ends[0.0] > 1.49
    assert 0 < ends[0.2] < 0.7


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_a_radius_that_is_none_is_refused(rho):
    base = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InvalidArgumentError, match="rho must be a"):
        SAM(base, rho=rho)


@pytest.mark.parametrize("eps", [0.0, -1e-12, math.nan])
def test_eps_must_be_positive(eps):
    base = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InvalidArgumentError, match="eps must be"):
        SAM(base, eps=eps)


def test_sam_takes_two_passes():
    assert SAM(SGD([torch.zeros(1, requires_grad=True)], lr=0.1)).passes == 2


def asam(function, theta: Array, *, rho: float, eta: float) -> Array:
    """Kwon et al. (2021), equation 7, with T = |θ| + η."""
    widths = np.abs(theta) + eta
    scaled = widths * function.gradient(theta)
    return function.gradient(theta + rho * widths * unit(scaled))


@every_function
@every_base
@pytest.mark.parametrize("make", [ASAM, lambda base, **own: SAM(base, adaptive=True, **own)])
def test_fifty_adaptive_steps_follow_the_formula(name, base, make):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=14)
    expected = reference_trajectory(
        theta, BASES[base], lambda point: asam(function, point, rho=0.4, eta=0.02), 50
    )
    got = trajectory(function, make(BASES[base](split(theta)), rho=0.4, eta=0.02), 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_adaptive_steps_do_not_depend_on_the_scale_of_two_layers():
    """f = relu(x·a)·b is the same function for (a, b) and (c·a, b/c)."""
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    losses = {}
    for make in (ASAM, SAM):
        for c in (1.0, 10.0):
            a = torch.tensor([0.7 * c], dtype=torch.float64, requires_grad=True)
            b = torch.tensor([1.3 / c], dtype=torch.float64, requires_grad=True)
            seen = []

            def closure(a=a, b=b, seen=seen):
                loss = ((x * a).relu() * b - 1).square().mean()
                seen.append(loss.item())
                return loss

            make(SGD([a, b], lr=0.0), rho=0.3, eta=1e-12).step(closure)
            losses[make, c] = seen[1]
    assert losses[ASAM, 1.0] == pytest.approx(losses[ASAM, 10.0], rel=1e-10)
    assert losses[SAM, 1.0] != pytest.approx(losses[SAM, 10.0], rel=0.1)


def gsam(function, theta: Array, *, rho: float, alpha: float) -> Array:
    here, ahead = function.gradient(theta), sam(function.gradient, theta, rho=rho)
    return ahead - alpha * orthogonal_part(here, ahead)


@every_function
@every_base
def test_fifty_steps_of_gsam_follow_the_formula(name, base):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=15)
    expected = reference_trajectory(
        theta, BASES[base], lambda point: gsam(function, point, rho=0.3, alpha=0.6), 50
    )
    got = trajectory(function, GSAM(BASES[base](split(theta)), rho=0.3, alpha=0.6), 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_the_weight_of_gsam_is_a_share(alpha):
    base = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InvalidArgumentError, match="alpha must be a number in"):
        GSAM(base, alpha=alpha)


def test_adaptive_sam_is_adaptive():
    base = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InvalidArgumentError, match="use SAM"):
        ASAM(base, adaptive=False)
