"""Traces of small, nearly singular, very large and very small operators against closed forms."""

import math

import numpy as np
import pytest
import torch

from flatkit.spectrum import diagonal, frobenius_norm, hutchinson_trace, spectral_density, trace
from flatkit.spectrum.operators import DenseOperator, SymmetricOperator
from flatkit.spectrum.sign_draws import SignDraws, random_signs
from tests.cases import random_symmetric

METHODS = ["auto", "xtrace", "hutch++", "hutchinson"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrum(size):
    return np.random.default_rng(size).standard_normal(size) + 0.5


class Diagonal(SymmetricOperator):
    device = torch.device("cpu")

    def __init__(self, entries):
        self.entries, self.size, self.dtype = entries, len(entries), entries.dtype

    def matvec(self, vector):
        return self.entries * vector


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 16, 27, 32])
def test_the_trace_of_a_small_operator_is_exact_by_as_many_products_as_it_has_coordinates(size):
    values = spectrum(size)
    for seed, method in enumerate(METHODS):
        operator = DenseOperator(random_symmetric(list(values), seed))
        found = trace(operator, method=method, generator=seeded(seed))  # pyright: ignore
        if found.matvecs == size:
            assert found.converged and float(found.error) < 1e-13 * np.abs(values).sum()
        else:
            assert method == "hutchinson" and size > 16 and float(found.error) > 0
        assert abs(float(found.value) - values.sum()) <= 6 * float(found.error) + 1e-13


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [17, 18, 20, 24])
def test_with_fewer_products_than_coordinates_the_error_covers_the_truth(method, size):
    for seed in range(12):
        matrix = random_symmetric(list(spectrum(size)), seed)
        found = trace(DenseOperator(matrix), method=method, max_matvecs=16, generator=seeded(seed))
        assert found.matvecs <= 16
        assert abs(float(found.value) - float(matrix.trace())) <= 6 * float(found.error)


@pytest.mark.parametrize("method", ["auto", "xtrace", "hutch++"])
@pytest.mark.parametrize("rank", [0, 1, 8, 15, 16, 17])
def test_a_rank_below_the_size_of_the_sketch_is_seen_and_not_believed(method, rank):
    factor = torch.randn(300, rank, generator=seeded(rank), dtype=torch.float64)
    matrix = factor @ factor.T
    found = trace(DenseOperator(matrix), method=method, max_matvecs=150, generator=seeded())
    off = abs(float(found.value) - float(matrix.trace()))
    assert off <= 6 * float(found.error) + 1e-12 * off
    if rank not in (16, 17):
        assert float(found.error) <= 1e-12 * float(matrix.trace()) and found.converged
        assert method == "hutch++" or rank == 15 or found.matvecs <= max(20, 16 + rank)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("small", [2e-8, -2e-8, 1e-9])
def test_small_eigenvalues_that_vanish_beside_a_large_one_are_counted_in_32_bits(method, small):
    entries = torch.full((20_000,), small)
    entries[0] = 1.0
    found = trace(Diagonal(entries), method=method, generator=seeded())
    exact = float(entries.double().sum())
    assert abs(float(found.value) - exact) <= 6 * float(found.error) + 1e-7
    assert 0 < float(found.error) <= 0.02


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e25),
        (torch.float32, 1e-28),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
    ],
    ids=str,
)
def test_squares_that_overflow_or_vanish_do_no_harm(dtype, scale):
    matrix = (scale * random_symmetric([30.0, 10.0, 3.0, *np.linspace(0, 1, 60)])).to(dtype)
    operator, exact = DenseOperator(matrix), matrix.double() / scale
    for method in METHODS:
        found = trace(operator, method=method, max_matvecs=60, generator=seeded())  # pyright: ignore
        value, error = float(found.value) / scale, float(found.error) / scale
        assert abs(value - float(exact.trace())) <= 4 * error < 100
    norm = frobenius_norm(operator, max_matvecs=60, generator=seeded())
    assert abs(float(norm.value) / scale - float(exact.norm())) <= 4 * float(norm.error) / scale
    for sizes, truth in ((None, exact.diagonal()), ([63], exact.trace()[None])):
        parts = diagonal(operator, sizes=sizes, num_probes=40, generator=seeded())
        assert bool(((parts.value / scale - truth).abs() <= 5 * parts.error / scale).all())
    density = spectral_density(operator, num_probes=4, steps=10, generator=seeded())
    off = abs(density.mean / scale - float(exact.trace()) / 63)
    assert off <= 4 * density.mean_error / scale < 10


def test_a_first_draw_of_zero_sets_no_unit_for_those_whose_squares_underflow():
    matrix = torch.full((2, 2), 1e-200, dtype=torch.float64)
    draws = SignDraws()
    for probe in ([1.0, -1.0], [1.0, 1.0]):  # all there are, but for the sign
        probe = torch.tensor(probe, dtype=torch.float64)
        draws.add(probe, matrix @ probe)
    assert draws.value == pytest.approx(2e-200, rel=1e-12, abs=0)
    assert draws.frobenius == pytest.approx(2e-200, rel=1e-12, abs=0)


@pytest.mark.parametrize(("count", "least"), [(1, 10), (2, 10), (3, 5), (8, 0.4)])
def test_few_draws_that_agree_prove_little(count, least):
    draws = SignDraws()
    for _ in range(count):  # the same value of the pair [[1, a], [a, 1]] each time
        draws.add(torch.tensor([1.0, 1.0]), torch.tensor([6.0, 6.0]))
    assert draws.agree and draws.value == 12 and draws.error >= least  # the trace is 2


def test_the_spread_of_draws_is_that_of_the_entries_beside_the_diagonal():
    matrix = random_symmetric([30.0, 10.0, *np.linspace(0, 1, 58)])
    operator, draws, generator = DenseOperator(matrix), SignDraws(), seeded()
    for _ in range(1000):
        probe = random_signs(operator, generator)
        draws.add(probe, operator.matvec(probe))
    beside = matrix - torch.diag(matrix.diagonal())
    assert draws.spread == pytest.approx(math.sqrt(2) * float(beside.norm()), rel=0.1)
    assert draws.frobenius == pytest.approx(float(matrix.norm()), rel=0.1)
    assert draws.error == pytest.approx(draws.spread / math.sqrt(1000), rel=0.01)


@pytest.mark.parametrize("num_probes", [2, 3, 5, 10])
def test_the_diagonal_from_few_probes_lies_within_its_errors(num_probes):
    for seed in range(20):
        matrix = random_symmetric(list(spectrum(12)), seed)
        found = diagonal(DenseOperator(matrix), num_probes=num_probes, generator=seeded(seed))
        assert bool(((found.value - matrix.diagonal()).abs() <= 6 * found.error).all())


def test_the_diagonal_is_exact_where_there_are_as_many_probes_as_entries():
    matrix = random_symmetric(list(spectrum(12)))
    found = diagonal(DenseOperator(matrix), sizes=[4, 8], num_probes=12, generator=seeded())
    truth = torch.stack([part.sum() for part in matrix.diagonal().split([4, 8])])
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-13)
    assert found.matvecs == 12 and 0 < float(found.error.max()) < 1e-12


def test_two_probes_state_the_error_of_two_draws():
    matrix = random_symmetric(list(spectrum(10)))
    truth, operator = float(matrix.trace()), DenseOperator(matrix)
    for seed in range(20):
        found = hutchinson_trace(operator, min_matvecs=2, max_matvecs=2, generator=seeded(seed))
        assert abs(float(found.value) - truth) <= 3 * float(found.error) < math.inf


def test_rounding_ends_the_search_where_it_is_larger_than_the_tolerance():
    matrix = random_symmetric([1.0, -1.0] * 100).float()
    matrix = matrix - matrix.trace() / 200 * torch.eye(200)
    found = trace(DenseOperator(matrix), tolerance=1e-4, max_matvecs=2000, generator=seeded())
    assert found.matvecs < 600 and abs(float(found.value)) <= 6 * float(found.error) < 1e-3


def test_two_draws_that_contradict_each_other_do_not_agree():
    coupled = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # zᵀAz is 2 or -2
    draws = SignDraws()
    for probe in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])):
        assert draws.agree  # one draw contradicts nothing
        draws.add(probe, coupled @ probe)
    assert not draws.agree
