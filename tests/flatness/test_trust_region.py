"""The exact maximum of a quadratic, and the search, against references that share no code."""

import numpy as np
import pytest
import torch

from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.flatness import (
    QuadraticModel,
    average_loss_increase,
    geometry_of,
    gradient_norm_maximum,
    m_sharpness,
    max_gradient_norm,
    quadratic_maximum,
)
from flatkit.objective.parameters import ParameterSpace
from flatkit.spectrum.operators import DenseOperator
from tests.cases import CASES, dense_hessian, quadratic_task, random_symmetric
from tests.flatness.test_ball import ball_maximum, quadratic


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rho", [1e-3, 1.0, 30.0])
def test_the_secular_solution_is_stationary_and_no_random_point_is_higher(seed, rho):
    draws = np.random.default_rng(seed)
    matrix = draws.standard_normal((6, 6))
    matrix, linear = matrix + matrix.T, draws.standard_normal(6)
    found = quadratic_maximum(matrix, linear, rho)
    assert found.value == pytest.approx(ball_maximum(matrix, linear, rho), rel=1e-9)
    residual = found.multiplier * found.point - matrix @ found.point - linear
    assert np.linalg.norm(residual) <= 1e-9 * np.linalg.norm(linear) * max(1, rho)
    points = draws.standard_normal((2000, 6))
    points *= rho / np.linalg.norm(points, axis=1, keepdims=True)
    values = 0.5 * np.einsum("ni,ij,nj->n", points, matrix, points) + points @ linear
    assert values.max() <= found.value * (1 + 1e-12)


def test_the_hard_case_fills_up_with_the_top_eigenvector():
    found = quadratic_maximum(np.diag([2.0, 1.0]), np.array([0.0, 0.5]), 1.0)
    assert found.multiplier == 2.0 and found.value == pytest.approx(1.0 + 0.125)
    assert gradient_norm_maximum(np.diag([-3.0, 1.0]), np.zeros(2), 0.5).value == pytest.approx(1.5)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_small_part_along_the_top_eigenvector_decides_the_side_in_any_unit(scale):
    matrix, linear = np.diag([2.0, 1.0]), np.array([-1e-3, 0.5])
    found = quadratic_maximum(scale * matrix, scale * linear, 1.0)
    angles = np.linspace(0, 2 * np.pi, 200_001)
    points = np.stack([np.cos(angles), np.sin(angles)])  # [2, angles]
    values = 0.5 * (points * (matrix @ points)).sum(0) + linear @ points
    assert found.value == pytest.approx(scale * values.max(), rel=1e-9, abs=0)


def test_on_a_quadratic_the_model_grows_until_its_own_maximiser_is_the_highest_point():
    """Eigenvalues so close, and a ball so large, that 17 products are not enough."""
    matrix = random_symmetric([1 + n / 80 for n in range(80)])
    linear = torch.from_numpy(np.random.default_rng(0).standard_normal(80)) * 0.1
    objective = Objective(*quadratic_task(matrix, linear))
    exact = ball_maximum(matrix.numpy() @ matrix.numpy(), (matrix @ linear).numpy(), 10.0)
    exact = (2 * exact + float(linear @ linear)) ** 0.5
    first = max_gradient_norm(objective, rho=10.0, budget=300).trails["quadratic model"][0]
    assert first == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_with_its_own_starts_reaches_the_exact_maximum(seed):
    matrix, linear = quadratic(seed)
    objective = Objective(*quadratic_task(matrix, linear))
    exact = gradient_norm_maximum(matrix.numpy(), linear.numpy(), 1.0).value
    found = max_gradient_norm(objective, rho=1.0, budget=3000, tolerance=1e-12).value
    assert exact * (1 - 1e-6) <= found <= exact * (1 + 1e-12)


def test_average_sharpness_tends_to_the_trace():
    matrix = random_symmetric([4.0, 2.0, 1.0])
    found = average_loss_increase(
        Objective(*quadratic_task(matrix)),
        rho=0.3,
        samples=500,
        generator=torch.Generator().manual_seed(0),
    )
    assert abs(found.value - 0.3**2 / (2 * 3) * 7.0) <= 4 * found.error
    assert found.error < 0.1 * found.value


def test_m_sharpness_exceeds_the_sharpness_of_the_whole_and_refuses_too_few_batches():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data())
    found = m_sharpness(objective, rho=0.1, m=5, generator=torch.Generator().manual_seed(0))
    assert found.batches == 4 and found.value >= found.one_step > 0 and found.error > 0
    with pytest.raises(InvalidArgumentError, match="m_sharpness"):
        m_sharpness(objective, rho=0.1, m=12, generator=torch.Generator())


def test_weights_that_are_zero_do_not_move_and_all_zero_is_refused():
    space = ParameterSpace.of({"weight": torch.ones(3)})
    assert geometry_of("adaptive", space, torch.tensor([1.0, 0.0, 2.0])).frozen == 1
    with pytest.raises(InvalidArgumentError, match="all of them are zero"):
        geometry_of("adaptive", space, torch.zeros(3))


def test_a_radius_below_rounding_is_refused():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data(), dtype=torch.float32)
    with pytest.raises(InvalidArgumentError, match="rounding"):
        max_gradient_norm(objective, rho=1e-9)


def test_at_a_small_radius_the_linf_ball_contains_the_round_one():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data())
    cube = geometry_of("linf", objective.space, objective.theta)
    found = max_gradient_norm(objective, rho=1e-4, geometry=cube)
    hessian, gradient = dense_hessian(case), objective.gradient()
    signs = found.coordinates.sign()
    model = (gradient + 1e-4 * hessian @ signs).abs().sum()
    assert found.value == pytest.approx(float(model), rel=1e-3)
    assert float(found.coordinates.abs().max()) <= 1e-4 * (1 + 1e-12)


def test_ritz_pairs_of_a_full_basis_are_eigenpairs_and_their_residuals_are_true():
    matrix = random_symmetric([5.0, -4.0, 2.0, 1.0, 0.5])
    gradient = torch.ones(5, dtype=torch.float64)
    values, _, residuals = QuadraticModel(DenseOperator(matrix), gradient).space.ritz(2)
    assert values.tolist() == pytest.approx([5.0, -4.0], rel=1e-12)
    assert float(residuals.max()) < 1e-12
    part = QuadraticModel(DenseOperator(matrix), gradient, max_basis=3)
    values, pairs, residuals = part.space.ritz(2)
    exact = (matrix @ pairs.vectors.T - pairs.vectors.T * values).norm(dim=0)
    assert residuals.tolist() == pytest.approx(exact.tolist(), rel=1e-10)
    assert float(residuals[0]) > 1e-6 and len(part.basis) == 3
