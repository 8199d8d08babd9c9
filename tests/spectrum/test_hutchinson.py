"""Hutchinson's trace against the dense one, and the honesty of its standard error."""

import numpy as np
import pytest
import torch

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.spectrum import diagonal, frobenius_norm, hutchinson_trace, trace
from flatkit.spectrum.operators import DenseOperator
from tests.cases import CASES, dense_hessian, random_symmetric


def trace_of(operator, seed=0, **settings):
    return hutchinson_trace(operator, generator=torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_trace_of_networks_lies_within_four_standard_errors(case):
    objective = Objective(case.build(), case.loss, case.data())
    estimate = trace_of(HessianOperator(objective), tolerance=0.05, max_matvecs=2000)
    truth = float(dense_hessian(case).trace())
    assert abs(float(estimate.value) - truth) <= 4 * float(estimate.error)


def test_the_standard_error_covers_the_truth_as_often_as_it_should():
    matrix = random_symmetric(list(np.linspace(-1, 3, 30)))
    operator, truth = DenseOperator(matrix), float(matrix.trace())
    covered = 0
    for seed in range(200):
        estimate = trace_of(operator, seed, min_matvecs=30, max_matvecs=30)
        covered += abs(float(estimate.value) - truth) <= 2 * float(estimate.error)
    assert 180 <= covered <= 199  # 95.4 % would be 191; 3 sigma is 9


def test_a_diagonal_matrix_needs_no_luck():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    estimate = trace_of(DenseOperator(matrix))
    assert float(estimate.value) == pytest.approx(6.0, rel=1e-14)
    assert estimate.matvecs == 3 and estimate.converged
    large = torch.diag(torch.linspace(1, 3, 100, dtype=torch.float64))
    estimate = trace_of(DenseOperator(large))
    assert float(estimate.value) == pytest.approx(200.0, rel=1e-14)
    assert estimate.matvecs == 20 and estimate.converged and 0 < float(estimate.error) < 0.1


def test_a_tighter_tolerance_takes_more_probes_and_ends_within_it():
    operator = DenseOperator(random_symmetric(list(np.linspace(0.5, 1, 40))))
    loose, tight = (trace_of(operator, tolerance=t, max_matvecs=5000) for t in (0.02, 0.005))
    assert tight.matvecs > 2 * loose.matvecs
    assert float(tight.error) <= 0.005 * float(tight.value)


def test_a_trace_near_zero_runs_out_of_budget_and_says_so():
    operator = DenseOperator(random_symmetric([1.0, -1.0, 2.0, -2.0] * 25))
    estimate = trace_of(operator, max_matvecs=50)
    assert estimate.status == "budget" and estimate.matvecs == 50


@pytest.mark.parametrize("wrong", [{"tolerance": -1.0}, {"min_matvecs": 1}, {"max_matvecs": 3}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidArgumentError):
        trace_of(DenseOperator(torch.eye(3)), **wrong)


@pytest.mark.parametrize("estimator", [hutchinson_trace, frobenius_norm, trace, diagonal])
def test_a_product_that_is_not_finite_is_an_error_not_an_answer(estimator):
    matrix = torch.eye(40)
    matrix[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="a product with the operator"):
        estimator(DenseOperator(matrix), generator=torch.Generator())
