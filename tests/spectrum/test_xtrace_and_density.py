"""Trace, diagonal, Frobenius norm, density, blocks and warm starts against dense matrices."""

import numpy as np
import pytest
import torch

from flatkit.spectrum import diagonal, frobenius_norm, lanczos, lobpcg, spectral_density, trace
from flatkit.spectrum.density import density_steps
from flatkit.spectrum.operators import DenseOperator
from tests.cases import random_symmetric


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


DECAY = [2.0**-i for i in range(120)]


@pytest.mark.parametrize("method", ["auto", "hutch++", "xtrace", "hutchinson"])
def test_traces_lie_within_five_standard_errors(method):
    matrix = random_symmetric([*DECAY[:30], *np.linspace(-0.02, 0.05, 90)])
    hits = 0
    for seed in range(40):
        found = trace(DenseOperator(matrix), method=method, tolerance=0.01, generator=seeded(seed))
        assert abs(float(found.value) - float(matrix.trace())) <= 6 * float(found.error) + 1e-9
        hits += abs(float(found.value) - float(matrix.trace())) <= 2 * float(found.error) + 1e-9
    assert hits >= 30


def test_sketches_need_fewer_products_where_the_spectrum_decays():
    operator = DenseOperator(random_symmetric(DECAY))
    sketched, plain = (
        trace(operator, method=m, tolerance=0.01, max_matvecs=5000, generator=seeded())
        for m in ("auto", "hutchinson")
    )
    assert sketched.converged and sketched.matvecs < plain.matvecs / 3


def test_diagonal_and_frobenius_norm_lie_within_their_errors():
    matrix = random_symmetric(list(np.linspace(-1, 2, 40)))
    parts = diagonal(DenseOperator(matrix), sizes=[10, 30], num_probes=400, generator=seeded())
    truth = torch.stack([p.sum() for p in matrix.diagonal().split([10, 30])])
    assert bool(((parts.value - truth).abs() <= 4 * parts.error).all())
    norm = frobenius_norm(DenseOperator(matrix), generator=seeded())
    assert abs(float(norm.value) - float(matrix.norm())) <= 4 * float(norm.error)


def test_the_error_of_a_density_of_one_draw_is_no_more_than_a_few_of_its_deviations():
    """Of three eigenvalues far apart, v₁² of a random vector is what a draw sees at the first."""
    operator = DenseOperator(torch.diag(torch.tensor([0.0, 5.0, 9.0], dtype=torch.float64)))
    draws = []
    for seed in range(100):
        steps = density_steps(operator, num_probes=2, bandwidth=0.1, generator=seeded(seed))
        draws.append([next(steps) for _ in range(3)][-1]())  # three products see all of one draw
    peaks = np.array([found.curve[np.abs(found.grid).argmin()] for found in draws])
    errors = np.array([found.error[np.abs(found.grid).argmin()] for found in draws])
    # v₁² of the sphere in three dimensions has variance 4/45. The 95 % of one draw's t: 6.99 wide.
    deviation = np.sqrt(4 / 45) / (0.1 * np.sqrt(2 * np.pi))
    assert np.std(peaks) == pytest.approx(deviation, rel=0.15)
    assert 0.5 * deviation < np.sqrt(np.mean(errors**2)) / 6.99 < 1.6 * deviation


def test_the_density_has_the_mass_mean_and_share_of_the_spectrum():
    matrix = random_symmetric([10.0] * 10 + list(np.linspace(-1, 1, 90)))
    found = spectral_density(DenseOperator(matrix), num_probes=20, generator=seeded())
    assert found.mass == pytest.approx(1, abs=2e-3)
    assert abs(found.mean - float(matrix.trace()) / 100) <= 4 * found.mean_error
    share = float(found.weights[found.nodes > 5].sum())
    assert share == pytest.approx(0.1, abs=0.04)


def test_a_cluster_is_found_with_its_multiplicity():
    spectrum = [3.0, 3.0, 3.0, *np.linspace(0, 1, 50)]
    found = lobpcg(DenseOperator(random_symmetric(spectrum)), k=3, generator=seeded())
    assert found.converged
    np.testing.assert_allclose(found.value.numpy(), 3.0, rtol=1e-6)


def test_both_ends_come_in_turn():
    found = lanczos(
        DenseOperator(random_symmetric(list(np.linspace(-4, 5, 60)))),
        k=4,
        which="both",
        tolerance=1e-8,
        generator=seeded(),
    )
    step = 9 / 59
    np.testing.assert_allclose(found.value.numpy(), [5, -4, 5 - step, -4 + step], rtol=1e-6)


def test_a_warm_start_costs_no_more_than_a_cold_one():
    """It saves none: that no larger eigenvalue is left only a random start shows."""
    spectrum = [9.0, 7.0, 5.0, *np.linspace(0, 2, 200)]
    matrix = random_symmetric(spectrum)
    first = lanczos(DenseOperator(matrix), k=1, tolerance=1e-3, generator=seeded())
    near = DenseOperator(matrix + 1e-3 * random_symmetric(spectrum, 1))
    cold = lanczos(near, k=1, tolerance=1e-2, generator=seeded())
    warm = lanczos(near, k=1, tolerance=1e-2, initial=first.vectors, generator=seeded())
    assert warm.converged and warm.matvecs <= cold.matvecs


def test_xtrace_is_the_mean_over_sketches_that_leave_one_vector_out():
    matrix = random_symmetric([*DECAY[:30], *np.linspace(-0.02, 0.05, 30)])
    found = trace(DenseOperator(matrix), method="xtrace", max_matvecs=16, generator=seeded())
    signs = torch.Generator().manual_seed(0)
    probes = torch.stack([2.0 * torch.randint(0, 2, (60,), generator=signs) - 1 for _ in range(8)])

    def by_definition(vectors):
        estimates = []
        for i in range(len(vectors)):
            rest = torch.cat([vectors[:i], vectors[i + 1 :]])
            q = torch.linalg.qr(matrix @ rest.T)[0]
            left = vectors[i] - q @ (q.T @ vectors[i])
            estimates.append(torch.trace(q.T @ matrix @ q) + left @ matrix @ left)
        return float(torch.stack(estimates).mean())

    probes = probes.double()
    assert float(found.value) == pytest.approx(by_definition(probes), rel=1e-10)
    fewer = np.array([by_definition(torch.cat([probes[:i], probes[i + 1 :]])) for i in range(8)])
    jackknife = np.sqrt(7 / 8 * ((fewer - fewer.mean()) ** 2).sum())
    assert float(found.error) == pytest.approx(jackknife, rel=1e-8)


@pytest.mark.parametrize(
    "spectrum",
    [np.linspace(-1, 3, 120), 1 / np.arange(1, 121), 0.9 ** np.arange(120), np.ones(120)],
    ids=["flat", "slow decay", "decay", "identity"],
)
def test_the_error_of_xtrace_is_not_too_small_on_average(spectrum):
    operator, truth = DenseOperator(random_symmetric(list(spectrum))), spectrum.sum()
    found = [
        trace(operator, method="xtrace", tolerance=1e-9, max_matvecs=32, generator=seeded(seed))
        for seed in range(100)
    ]
    squares = np.array([(float(f.value) - truth) ** 2 for f in found])
    assert squares.mean() <= np.mean([float(f.error) ** 2 for f in found])
    covered = np.sqrt(squares) <= 2 * np.array([float(f.error) for f in found])
    assert covered.mean() >= 0.9
