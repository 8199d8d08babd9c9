"""The true value lies within the stated errors as often as it should: a slice of the benchmark."""

import numpy as np
import pytest
import scipy
import torch
from scipy import stats

from benchmarks.coverage import SPECTRA, distances, rotated, too_few
from flatkit.spectrum import frobenius_norm
from flatkit.spectrum.frobenius import frobenius_steps
from flatkit.spectrum.operators import DenseOperator
from flatkit.spectrum.space import Space
from flatkit.spectrum.standard_error import mean, stretch
from flatkit.spectrum.steps import finish
from tests.versions import before

# Of seven spectra those where early stops, skewed draws and draws of few values once did harm.
MATRICES = [SPECTRA[name]() for name in ("bulk", "decay", "one pair")]


@pytest.mark.parametrize(
    ("method", "seeds"),
    [
        ("hutchinson, 0.1", 30),
        ("hutchinson, 0.2", 25),
        ("auto, 0.02", 8),
        ("hutch++, 0.1", 6),
        ("frobenius_norm, 0.1", 12),
        ("diagonal, parts", 6),
        ("density, mean", 20),
        ("average_sharpness", 6),
    ],
)
def test_true_values_lie_within_the_stated_errors_as_often_as_a_normal_would(method, seeds):
    away = np.concatenate([distances(method, matrix, range(seeds)) for matrix in MATRICES])
    assert away.max() <= 6
    for errors in (1, 2):
        assert not too_few(int((away <= errors).sum()), len(away), errors)


def test_two_widened_errors_hold_what_two_of_a_normal_hold():
    off = 1e-10 if before(scipy, 1, 12) else 1e-12  # scipy 1.11 itself is 3e-11 off
    for freedom in (1, 2, 7, 30):
        within = stats.t.cdf(2 * stretch(freedom), freedom)
        assert within == pytest.approx(stats.norm.cdf(2), abs=off)


def test_few_normal_draws_are_covered_as_often_as_many():
    draws = np.random.default_rng(0).standard_normal((1000, 5))
    found = np.array([mean(row) for row in draws])
    within = int((np.abs(found[:, 0]) <= 2 * found[:, 1]).sum())
    assert not too_few(within, 1000, 2)


def test_beside_a_known_space_few_draws_of_one_large_eigenvalue_are_covered():
    """A rest that is small is drawn eight times, and by chance all of these are too small."""
    matrix = rotated(np.r_[270.0, 12.0, np.full(58, 0.01)])
    operator, truth = DenseOperator(torch.from_numpy(matrix)), np.linalg.norm(matrix)
    known = Space.of(operator, torch.from_numpy(np.linalg.eigh(matrix)[1][:, -1:].T.copy()))
    found = [
        finish(
            frobenius_steps(
                operator, generator=torch.Generator().manual_seed(seed), space=known.deflation
            )
        )
        for seed in range(300)
    ]
    away = np.array([abs(float(one.value) - truth) / float(one.error) for one in found])
    assert max(one.matvecs for one in found) <= 24 and away.max() <= 6
    for errors in (1, 2, 3):
        assert not too_few(int((away <= errors).sum()), len(away), errors)


def test_a_norm_that_one_pair_of_coordinates_decides_takes_few_products():
    operator = DenseOperator(torch.from_numpy(SPECTRA["one pair"]()))
    spent = [
        frobenius_norm(operator, generator=torch.Generator().manual_seed(seed)).matvecs
        for seed in range(60)
    ]
    assert max(spent) <= 24
