"""Told the truth: the true error never exceeds the reported one, in 100 random cases each.

The first 20 have every kind of spectrum in both dtypes; `make test-ci` runs the others.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from flatkit.spectrum import Estimate, lanczos, lobpcg, power_iteration
from flatkit.spectrum.operators import DenseOperator
from tests.cases import random_symmetric

SEEDS = [range(20), pytest.param(range(20, 100), marks=pytest.mark.long)]
METHODS: dict[str, Callable[..., Estimate]] = {
    "lanczos": lanczos,
    "value stop": lambda operator, **given: lanczos(operator, stop="value", **given),
    "small basis": lambda operator, **given: lanczos(operator, max_basis=8, **given),
    "smallest": lambda operator, **given: lanczos(operator, which="smallest", **given),
    "lobpcg": lobpcg,
    "power": lambda operator, **given: power_iteration(operator, **{**given, "max_matvecs": 4000}),
}


@cache
def case(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return a matrix and its eigenvalues by LAPACK in float64, largest first."""
    draws = np.random.default_rng(seed)
    spectrum = (
        draws.standard_normal(60) ** 3,
        np.r_[5.0, 5.0, 5.0, 4.0, draws.uniform(-1, 2, 50)],
        np.r_[5.0, 4.0, 4.0, 3.9, draws.uniform(-1, 2, 50)],
        np.r_[5.0, 5.0 - 1e-4, 4.99, draws.uniform(0, 1, 40)],
        1e-8 * draws.standard_normal(50),
        np.r_[draws.uniform(1, 2, 5), np.zeros(45)],
        np.r_[1.0, 1.0, -1.0, -1.0, draws.uniform(-0.9, 0.9, 40)],
        np.repeat(draws.uniform(-1, 1, 6), [1, 2, 3, 4, 5, 20]),
        np.r_[100 * 0.7 ** np.arange(10), draws.uniform(-0.5, 1, 200)],
        np.r_[-3.0, -3.0, 2.0, 2.0, draws.uniform(-1, 1, 80)],
    )[seed % 10]
    dtype = torch.float32 if seed // 10 % 2 else torch.float64
    matrix = random_symmetric(list(spectrum), seed).to(dtype)
    return matrix, np.linalg.eigvalsh(matrix.double().numpy())[::-1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_an_eigenvalue_lies_within_the_error_and_converged_ones_have_their_rank(name, k, seeds):
    ranked = 0
    for seed in seeds:
        matrix, truth = case(seed)
        if name == "smallest":
            truth = truth[::-1]
        scale = np.abs(truth).max()
        lapack = 1e-14 * scale * np.sqrt(len(truth))  # the rounding of the reference itself
        found = METHODS[name](
            DenseOperator(matrix),
            k=k,
            max_matvecs=1000,
            generator=torch.Generator().manual_seed(seed),
        )
        values, errors = found.value.numpy(), found.error.numpy() + lapack
        nearest = np.abs(values[:, None] - truth[None, :]).min(1)
        assert (nearest <= errors).all(), seed
        if found.converged and name not in ("value stop", "power"):
            # Eigenvalues within ten tolerances are not told apart; a missing copy would show.
            ranked += 1
            off = np.abs(values - truth[: len(values)])
            assert (off <= errors + 10 * 1e-4 * scale).all(), (seed, values, truth[:6])
    assert ranked >= 0.6 * len(seeds) or name in ("value stop", "power", "small basis")


@pytest.mark.parametrize("name", ["lanczos", "small basis", "lobpcg", "power"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_copy_of_a_multiple_eigenvalue_is_reported(name, dtype):
    spectrum = [5.0, 5.0, 5.0, 3.0, 3.0, *np.linspace(-1, 1, 60)]
    for seed in range(10):
        operator = DenseOperator(random_symmetric(spectrum, seed).to(dtype))
        generator = torch.Generator().manual_seed(seed)
        budget = 300 if name == "small basis" else 3000  # k + 2 vectors never settle
        found = METHODS[name](
            operator, k=6, tolerance=1e-5, max_matvecs=budget, generator=generator
        )
        np.testing.assert_allclose(found.value[:5], spectrum[:5], rtol=2e-5)
        assert found.converged or name == "small basis"


def test_without_a_look_for_copies_each_is_seen_once_for_fewer_products():
    spectrum = [5.0, 5.0, 5.0, 3.0, 3.0, *np.linspace(-1, 1, 60)]
    operator = DenseOperator(random_symmetric(spectrum))
    found, quick = (
        lanczos(
            operator, k=2, check_multiplicity=copies, generator=torch.Generator().manual_seed(0)
        )
        for copies in (True, False)
    )
    np.testing.assert_allclose(found.value, [5, 5], rtol=1e-4)
    np.testing.assert_allclose(quick.value, [5, 3], rtol=1e-4)
    assert quick.matvecs < found.matvecs - 3 and quick.converged
    assert quick.notes["displacement"] is None and float(quick.error.max()) <= 2e-3


def test_copies_that_cannot_be_ruled_out_are_in_the_error_and_in_the_status():
    spectrum = [1.0, 0.99, 0.98, 0.97, *np.linspace(-1, 0.96, 400)]  # no gaps to tell copies by
    operator = DenseOperator(random_symmetric(spectrum))
    found = lanczos(operator, k=3, max_basis=8, generator=torch.Generator().manual_seed(0))
    assert found.status == "multiplicity"
    assert float(found.error[2]) >= 0.9 * float(found.value[0] - found.value[2])
    assert float(found.error[0]) <= 2e-4
