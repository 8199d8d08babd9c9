"""Trace, diagonal, Frobenius norm, density, blocks and warm starts against dense matrices."""

import numpy as np
import pytest
import torch

from flatkit.operators import DenseOperator
from flatkit.spectrum import (
    diagonal,
    frobenius_norm,
    lanczos,
    lobpcg,
    spectral_density,
    trace,
)
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


def test_a_warm_start_saves_products():
    spectrum = [9.0, 7.0, 5.0, *np.linspace(0, 2, 200)]
    matrix = random_symmetric(spectrum)
    first = lanczos(DenseOperator(matrix), k=1, tolerance=1e-3, generator=seeded())
    near = DenseOperator(matrix + 1e-3 * random_symmetric(spectrum, 1))
    cold = lanczos(near, k=1, tolerance=1e-2, generator=seeded())
    warm = lanczos(near, k=1, tolerance=1e-2, initial=first.vectors, generator=seeded())
    assert warm.converged and warm.matvecs < cold.matvecs


@pytest.mark.parametrize("seed", range(100))
def test_told_the_truth(seed):
    draws = np.random.default_rng(seed)
    kinds = (
        draws.standard_normal(50) ** 3,
        np.r_[5.0, 5.0 - 1e-4, 4.99, draws.uniform(0, 1, 40)],
        1e-8 * draws.standard_normal(50),
        np.r_[draws.uniform(1, 2, 5), np.zeros(45)],
        np.r_[1.0, -1.0, draws.uniform(-0.9, 0.9, 40)],
    )
    spectrum = kinds[seed % 5]
    dtype = torch.float32 if seed % 2 else torch.float64
    matrix = random_symmetric(list(spectrum), seed).to(dtype)
    truth = np.linalg.eigvalsh(matrix.double().numpy())
    for stop in ("residual", "value"):
        found = lanczos(DenseOperator(matrix), k=3, stop=stop, generator=seeded(seed))
        for value, error in zip(found.value.tolist(), found.error.tolist(), strict=True):
            assert np.abs(truth - value).min() <= error
