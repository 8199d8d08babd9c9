"""Hessian-vector products against a dense float64 Hessian."""

import pytest
import torch
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.errors import NonFiniteError, NotSymmetricError
from flatkit.spectrum.operators import DenseOperator, check_symmetric
from tests.cases import CASES, dense_hessian, quadratic_task, random_symmetric


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_products_equal_those_of_the_dense_hessian(case, chunk_size):
    objective = Objective(case.build(), case.loss, case.data(), chunk_size=chunk_size)
    hessian = HessianOperator(objective)
    found = hessian @ torch.eye(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(found, dense_hessian(case), rtol=1e-10, atol=1e-12)


def test_a_kept_graph_gives_the_same_products_and_the_gradient_for_free():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data(), chunk_size=6)
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    kept, rebuilt = (HessianOperator(objective, retain_graph=keep) for keep in (True, False))
    torch.testing.assert_close(kept @ vector, rebuilt @ vector, rtol=1e-12, atol=1e-14)
    before = objective.cost.gradients
    torch.testing.assert_close(kept.gradient(), objective.gradient(), rtol=1e-12, atol=1e-14)
    assert objective.cost.gradients == before + 1  # that of the objective itself


def test_the_point_is_an_argument():
    matrix = random_symmetric([3.0, 1.0, -2.0])
    objective = Objective(*quadratic_task(matrix))
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    operator = HessianOperator(objective, theta)
    torch.testing.assert_close(operator.gradient(), matrix @ theta)
    torch.testing.assert_close(operator @ theta, matrix @ theta)


def test_a_linear_loss_has_zero_curvature():
    data = torch.ones(3, 2), torch.zeros(3)
    objective = Objective(nn.Linear(2, 1), lambda outputs, targets: outputs[:, 0], data)
    assert torch.equal(HessianOperator(objective) @ torch.ones(3), torch.zeros(3))


def test_an_infinite_loss_is_an_error():
    objective = Objective(*quadratic_task(random_symmetric([1.0, 2.0])))
    far = torch.full((2,), 1e200, dtype=torch.float64)
    with pytest.raises(NonFiniteError):
        HessianOperator(objective, far * 1e200).gradient()


def test_a_matrix_that_is_not_symmetric_is_found():
    matrix = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(NotSymmetricError, match="not symmetric"):
        check_symmetric(DenseOperator(matrix), generator=torch.Generator().manual_seed(0))


def test_scipy_sees_the_operator():
    from scipy.sparse.linalg import eigsh

    matrix = random_symmetric([9.0, 4.0, 1.0, 0.5, -3.0, 0.1])
    largest = eigsh(DenseOperator(matrix).to_scipy(), k=1, which="LA")[0]
    assert largest[0] == pytest.approx(9.0, rel=1e-10)
