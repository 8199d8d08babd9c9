"""Inner products of long vectors against exact sums, and what stands on them in 32 bits."""

import math

import pytest
import torch

from flatkit.spectrum import lanczos, lobpcg, power_iteration, trace
from flatkit.spectrum.dot import dot, norm
from flatkit.spectrum.operators import SymmetricOperator

LONG = 3_000_000


def test_shapes_are_those_of_products_of_matrices():
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 40_000, generator=draws, dtype=torch.float64)
    others = torch.randn(2, 40_000, generator=draws, dtype=torch.float64)
    for one, other in ((rows, others), (rows, others[0]), (rows[0], others), (rows[0], others[0])):
        expected = one @ (other.T if other.ndim > 1 else other)
        for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 1e-3)):
            found = dot(one.to(dtype), other.to(dtype))
            assert found.dtype == torch.float64 and found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=0, atol=slack)


def test_long_sums_in_32_bits_are_right_where_one_after_the_other_is_not():
    vector = torch.randn(LONG, generator=torch.Generator().manual_seed(0))
    exact = math.fsum(vector.double().square().tolist())
    assert float(dot(vector, vector)) == pytest.approx(exact, rel=1e-6)
    assert norm(vector) == pytest.approx(math.sqrt(exact), rel=1e-6)
    assert float(dot(vector[None], vector)[0]) == pytest.approx(exact, rel=1e-6)


def test_what_is_not_finite_stays_so():
    assert math.isnan(norm(torch.tensor([1.0, math.nan])))
    assert math.isinf(norm(torch.tensor([1.0, math.inf])))


class Diagonal(SymmetricOperator):
    """A diagonal matrix of a million or more entries, in 32 bits."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, top, size):
        self.size, self.entries = size, torch.linspace(-0.5, 0.5, size)
        self.entries[: len(top)] = torch.tensor(top)

    def matvec(self, vector):
        return self.entries * vector


@pytest.mark.parametrize(
    ("method", "k", "slack", "size"),
    # The first two see sums in 32 bits alone at a million entries, too.
    [
        (lanczos, 2, 2e-6, 1_000_000),
        (lobpcg, 2, 2e-6, 1_000_000),
        (power_iteration, 1, 2e-6, LONG),
    ],
)
def test_eigenvalues_of_long_operators_in_32_bits_are_right_to_their_errors(method, k, slack, size):
    truth = [10.0, 7.0]
    operator = Diagonal(truth, size)
    found = method(operator, k=k, tolerance=1e-4, generator=torch.Generator().manual_seed(0))
    assert found.converged
    for value, error, true in zip(found.value.tolist(), found.error.tolist(), truth, strict=False):
        assert abs(value - true) <= min(error, slack * true)


@pytest.mark.long
def test_traces_of_long_operators_in_32_bits_are_right_to_their_errors():
    operator = Diagonal([3e4, 2e4, 1e4], LONG)
    exact = float(operator.entries.double().sum())
    found = trace(operator, tolerance=1e-3, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.value) - exact) <= 3 * float(found.error) + 1e-5 * exact


def test_squares_that_overflow_in_16_bits_do_not():
    vector = torch.full((20_000,), 300.0, dtype=torch.float16)
    assert norm(vector) == pytest.approx(300 * math.sqrt(20_000), rel=1e-6)
    rows = torch.stack([vector, -vector])
    assert dot(rows, vector).tolist() == pytest.approx([1.8e9, -1.8e9], rel=1e-6)
