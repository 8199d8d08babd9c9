"""Power iteration and Lanczos against dense eigenvalues, on the spectra that break others."""

from typing import Any

import numpy as np
import pytest
import torch

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.results.status import Status
from flatkit.spectrum import lanczos, power_iteration
from flatkit.spectrum.operators import DenseOperator, SymmetricOperator
from tests.cases import CASES, dense_hessian, random_symmetric

SPECTRA = {
    "positive": [5.0, 3.0, 1.0, 0.5, 0.1],
    "tie of both signs": [1.0, 0.5, -1.0, 0.2],
    "negative end larger": [1.0, 0.5, -1.02, 0.2],
    "all negative": [-1.0, -2.0, -3.0],
    "clustered top": [5.0, 4.999, 4.99, 1.0, 0.0, 0.0],
    "tiny": [4e-8, 2e-8, 1e-8, 0.0, 0.0],
    "rank one": [3.0] + [0.0] * 20,
    "zero": [0.0] * 7,
    "identity": [1.0] * 6,
}
METHODS = {"power": power_iteration, "lanczos": lanczos}

every_method = pytest.mark.parametrize("method", METHODS)
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_method
@every_spectrum
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_eigenvalue_lies_within_the_residual(method, spectrum, dtype):
    matrix = random_symmetric(SPECTRA[spectrum]).to(dtype)
    truth = np.linalg.eigvalsh(matrix.double().numpy())
    estimate = METHODS[method](DenseOperator(matrix), max_matvecs=5000, generator=generator())
    rounding = 4 * torch.finfo(dtype).eps * max(abs(truth))
    assert estimate.converged
    assert abs(float(estimate.value[0]) - truth[-1]) <= float(estimate.error[0]) + rounding
    assert float(estimate.error[0]) <= 1.1e-4 * max(abs(truth)) + rounding


@every_method
def test_vectors_belong_to_the_values(method):
    matrix = random_symmetric([5.0, 3.0, 1.0, -4.0, 0.1])
    estimate = METHODS[method](DenseOperator(matrix), k=2, generator=generator())
    assert estimate.vectors is not None
    residuals = (matrix @ estimate.vectors.T - estimate.vectors.T * estimate.value).norm(dim=0)
    torch.testing.assert_close(residuals, estimate.error, rtol=1e-3, atol=1e-14)
    identity = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(estimate.vectors @ estimate.vectors.T, identity, rtol=0, atol=1e-8)


@every_method
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_top_eigenvalues_of_networks_equal_the_dense_ones(method, case):
    truth = np.linalg.eigvalsh(dense_hessian(case).numpy())[::-1]
    objective = Objective(case.build(), case.loss, case.data())
    estimate = METHODS[method](
        HessianOperator(objective), k=2, tolerance=1e-6, max_matvecs=20_000, generator=generator()
    )
    assert estimate.converged
    scale = max(abs(truth))
    np.testing.assert_allclose(estimate.value.numpy(), truth[:2], atol=2e-6 * scale)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [1, 3])
def test_lanczos_finds_either_end(which, k):
    spectrum = np.linspace(-3, 2, 40) ** 3
    operator = DenseOperator(random_symmetric(list(spectrum)))
    found = lanczos(operator, k=k, which=which, tolerance=1e-8, generator=generator()).value
    key = {"largest": -spectrum, "smallest": spectrum, "magnitude": -abs(spectrum)}[which]
    np.testing.assert_allclose(found.numpy(), spectrum[np.argsort(key)][:k], rtol=1e-7)


def test_a_small_basis_restarts_and_loses_nothing_in_32_bits():
    spectrum = [100.0, 90.0, 80.0, 70.0, 60.0, *np.linspace(0, 50, 300)]
    operator = DenseOperator(random_symmetric(spectrum).float())
    estimate = lanczos(operator, k=5, max_basis=12, generator=generator())
    assert estimate.converged and estimate.notes["restarts"] > 0
    np.testing.assert_allclose(estimate.value.numpy(), [100, 90, 80, 70, 60], rtol=1e-4)


class Counting(SymmetricOperator):
    """A matrix that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.products = matrix, 0
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def matvec(self, vector):
        self.products += 1
        return self.matrix @ vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", [None, 9])
@pytest.mark.parametrize("kept", [True, False])
def test_reported_residuals_are_those_of_the_vectors_and_cost_no_product_where_images_are_kept(
    dtype, basis, kept, monkeypatch
):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 2**30 if kept else 0)
    matrix = random_symmetric([9.0, 7.0, 6.5, *np.linspace(-2, 5, 80)])
    operator = Counting(matrix.to(dtype))
    given = {"k": 3, "max_basis": basis, "tolerance": 1e-2, "check_multiplicity": False}
    found = lanczos(operator, **given, generator=generator())
    assert found.matvecs == operator.products and found.converged
    assert found.vectors is not None
    vectors, values = found.vectors.double().numpy(), found.value.numpy()
    true = np.linalg.norm(vectors @ matrix.numpy() - values[:, None] * vectors, axis=1)
    rounding = found.notes["rounding"]
    assert (true <= found.error.numpy()).all()
    residuals = np.array(found.notes["residual"])
    np.testing.assert_allclose(residuals, true, rtol=1e-6, atol=2 * rounding)
    np.testing.assert_allclose(
        found.error.numpy(),
        np.maximum(residuals, found.notes["unseen_within"]) + rounding,
        rtol=1e-12,
    )
    assert (true > 20 * rounding).any()  # so that the comparison says something


def test_kept_images_save_the_products_of_the_check_until_restarts_wear_them_out(monkeypatch):
    matrix = random_symmetric([9.0, 7.0, 6.5, *np.linspace(-2, 5, 80)])
    counts = {}
    for basis in (None, 6):
        for size in (2**30, 0):
            monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", size)
            found = lanczos(
                DenseOperator(matrix),
                k=3,
                max_basis=basis,
                check_multiplicity=False,
                generator=generator(),
            )
            counts[basis, size] = found.matvecs
            restarts = found.notes["restarts"]
    assert counts[None, 0] - counts[None, 2**30] == 3
    assert restarts > 4 and counts[6, 0] == counts[6, 2**30]


def test_what_restarts_dropped_is_brought_back_and_is_no_rounding():
    # Starts that look for copies drop a part of each vector; a third of these drop too much.
    matrix = random_symmetric([*[1.5] * 4, 1.0, 0.9995, *torch.linspace(0.99, 0, 94).tolist()])
    for seed in range(12):
        given: dict[str, Any] = {"k": 5, "max_basis": 9, "tolerance": 3e-6, "stop": "value"}
        estimate = lanczos(DenseOperator(matrix), generator=generator(seed), **given)
        assert estimate.status is not Status.ROUNDING
        assert abs(estimate.value.numpy() - [1.5, 1.5, 1.5, 1.5, 1.0]).max() <= 9e-6


def test_32_bits_bring_no_ghost_copies():
    spectrum = [100.0, 90.0, 80.0, 70.0, 60.0, *np.linspace(0, 50, 300)]
    operator = DenseOperator(random_symmetric(spectrum).float())
    estimate = lanczos(operator, k=10, max_basis=120, generator=generator())
    truth = sorted(spectrum, reverse=True)[:10]
    np.testing.assert_allclose(estimate.value.numpy(), truth, rtol=1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_the_true_error_never_exceeds_the_residual(seed):
    draws = np.random.default_rng(seed)
    spectrum = draws.standard_normal(60) ** 3
    operator = DenseOperator(random_symmetric(list(spectrum), seed))
    for method in METHODS.values():
        for budget in (10, 40, 400):
            estimate = method(operator, max_matvecs=budget, generator=generator(seed))
            nearest = np.abs(spectrum - float(estimate.value[0])).min()
            assert nearest <= float(estimate.error[0]) + 1e-13
            assert float(estimate.value[0]) <= spectrum.max() + 1e-12


@every_method
def test_a_budget_that_runs_out_is_said(method):
    operator = DenseOperator(random_symmetric(list(np.linspace(0, 1, 200))))
    estimate = METHODS[method](operator, max_matvecs=5, tolerance=1e-10, generator=generator())
    assert estimate.status == "budget" and float(estimate.error[0]) > 1e-10
    assert estimate.matvecs <= 6


def test_power_iteration_tells_of_the_negative_end_and_of_ties():
    negative = DenseOperator(random_symmetric([1.0, -5.0, 0.1]))
    assert power_iteration(negative, generator=generator()).notes["negative_end"] == pytest.approx(
        -5.0, rel=1e-6
    )
    tie = DenseOperator(random_symmetric([1.0, -1.0, 0.1]))
    assert power_iteration(tie, generator=generator()).notes["tie"]


@every_method
def test_the_same_seed_gives_the_same_answer(method):
    operator = DenseOperator(random_symmetric([5.0, 3.0, 1.0, -4.0]))
    one, two = (METHODS[method](operator, generator=generator(7)) for _ in range(2))
    assert torch.equal(one.value, two.value) and torch.equal(one.error, two.error)


@every_method
def test_lanczos_and_power_leave_the_global_random_state_alone(method):
    state = torch.random.get_rng_state()
    METHODS[method](DenseOperator(torch.eye(4)), generator=generator())
    assert torch.equal(state, torch.random.get_rng_state())


@every_method
@pytest.mark.parametrize(
    "wrong", [{"k": 5}, {"k": 0}, {"tolerance": 0.0}, {"max_matvecs": 0}], ids=str
)
def test_arguments_out_of_range_are_refused(method, wrong):
    with pytest.raises(InvalidArgumentError):
        METHODS[method](DenseOperator(torch.eye(4)), generator=generator(), **wrong)


class Broken(SymmetricOperator):
    size, dtype, device = 4, torch.float32, torch.device("cpu")

    def matvec(self, vector):
        return vector * float("nan")


@every_method
def test_nan_is_an_error_not_an_answer(method):
    with pytest.raises(NonFiniteError):
        METHODS[method](Broken(), generator=generator())


def test_lanczos_needs_fewer_products_than_power_iteration():
    operator = DenseOperator(random_symmetric([1.0, 0.95, *np.linspace(0, 0.9, 50)]))
    slow, fast = (method(operator, generator=generator()).matvecs for method in METHODS.values())
    assert fast < slow / 3


@pytest.mark.filterwarnings("ignore:Using backward")
def test_pyhessian_agrees_on_a_network():
    pyhessian = pytest.importorskip("pyhessian")
    case = CASES[0]
    model, data = case.build(), case.data()
    torch.manual_seed(0)
    second = pyhessian.hessian(model, torch.nn.CrossEntropyLoss(), data=data, cuda=False)
    theirs = second.eigenvalues(maxIter=2000, tol=1e-9, top_n=1)[0][0]
    ours = lanczos(
        HessianOperator(Objective(model, "cross_entropy", data)), generator=generator()
    ).value[0]
    assert float(ours) == pytest.approx(theirs, rel=1e-4)
