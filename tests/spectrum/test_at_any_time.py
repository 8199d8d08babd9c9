"""What is said of eigenvalues before the end holds: from the first product on, at either end."""

from typing import Any

import numpy as np
import pytest
import torch

from flatkit.errors import InvalidArgumentError, NotSymmetricError
from flatkit.results.status import Status
from flatkit.spectrum.lanczos import Lanczos, lanczos
from flatkit.spectrum.operators import DenseOperator, refuse_asymmetry
from flatkit.spectrum.steps import finish
from tests.cases import random_symmetric

SPECTRA = {
    "network": np.r_[90.0, 60, 35, 34.9, 12, 5, -4, np.geomspace(1, 1e-4, 40), np.zeros(20)],
    "one pair": np.r_[7.0, -7.0, np.zeros(60)],
    "copies": np.r_[2.0, 2, 2, 1, 1, -2, -2, np.zeros(40)],
    "bulk": np.sort(np.random.default_rng(0).standard_normal(50)),
    "negative": -np.linspace(1, 3, 40),
    "tiny": np.array([3.0, -1.0]),
    "close": np.r_[10.0, 9.9, 9.8, np.linspace(-0.1, 0.1, 40)],
}
every_spectrum = pytest.mark.parametrize("name", SPECTRA)
every_end = pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_order(values: np.ndarray, which: str) -> np.ndarray:
    values = np.sort(values)
    if which == "both":
        turns = [values[-1 - i // 2] if i % 2 == 0 else values[i // 2] for i in range(len(values))]
        return np.array(turns)
    if which == "magnitude":  # ties of both signs come in any order
        return np.sort(np.abs(values))[::-1]
    return values[::-1] if which == "largest" else values


@every_spectrum
@every_end
def test_the_errors_hold_after_every_product(name, which):
    values = SPECTRA[name]
    truth = in_order(values, which)  # pyright: ignore[reportUnusedVariable]
    copies = name not in ("bulk", "negative", "tiny", "close")
    for seed, dtype in enumerate((torch.float64, torch.float32)):
        operator = DenseOperator(random_symmetric(list(values)).to(dtype))
        k, slack = min(4, len(values)), 1e-5 * np.abs(values).max()
        search = Lanczos(
            operator, k=k, which=which, check_multiplicity=copies, generator=seeded(seed)
        )
        while not search.done:
            search.step()
            if search.matvecs > 6 and search.matvecs % 7 and not search.done:
                continue
            found = search.estimate()
            assert len(found.value) == min(k, search.matvecs)
            off = np.abs(found.value.numpy())[:, None] if which == "magnitude" else found.value
            off = np.abs(np.asarray(off).reshape(-1) - truth[: len(found.value)])
            assert (off <= found.error.numpy() + slack).all(), (seed, search.matvecs)
            nearest = np.abs(found.value.numpy()[:, None] - values).min(1)
            assert (nearest <= np.array(found.notes["residual"]) + slack).all()
            assert search.done or found.status is Status.BUDGET
            value, error = search.magnitude()
            assert value - slack <= np.abs(values).max() <= value + error + slack


@pytest.mark.parametrize("kept", [True, False])
def test_asking_changes_nothing_and_costs_no_product(kept, monkeypatch):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 2**30 if kept else 0)
    operator = DenseOperator(random_symmetric(list(SPECTRA["network"])))
    given: dict[str, Any] = {"k": 5, "max_basis": 9}
    silent = lanczos(operator, **given, generator=seeded())
    search, products = Lanczos(operator, **given, generator=seeded()), 0
    while not search.done:
        search.step()
        products = search.matvecs
        for ask in (search.estimate, search.magnitude, search.space):
            ask()
        assert search.matvecs == products
    found = search.estimate()
    assert silent.matvecs == found.matvecs == products and silent.notes == found.notes
    assert torch.equal(silent.value, found.value) and torch.equal(silent.error, found.error)
    assert found.vectors is not None and silent.vectors is not None
    assert torch.equal(silent.vectors, found.vectors)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("kept", [True, False])
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(steps, kept, monkeypatch):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 2**30 if kept else 0)
    operator = DenseOperator(random_symmetric(list(SPECTRA["bulk"])))
    search = Lanczos(operator, k=3, generator=seeded())
    for _ in range(steps):
        search.step()
    short = lanczos(operator, k=3, max_matvecs=steps, generator=seeded())
    assert torch.equal(search.estimate().value, short.value)
    assert short.status is Status.BUDGET
    assert (short.error <= search.estimate().error * (1 + 1e-9)).all()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("steps", [1, 6, 40])
@pytest.mark.parametrize("name", ["network", "copies"])
def test_the_space_is_orthonormal_and_has_its_images(kept, steps, name, monkeypatch):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 2**30 if kept else 0)
    matrix = random_symmetric(list(SPECTRA[name]))
    search = Lanczos(DenseOperator(matrix), k=5, generator=seeded())
    while search.matvecs < steps and not search.done:
        search.step()
    space = search.space()
    assert space.size == len(space.images)
    assert space.matvecs == 0
    identity = torch.eye(space.size, dtype=torch.float64)
    torch.testing.assert_close(space.vectors @ space.vectors.T, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.images, space.vectors @ matrix, rtol=0, atol=1e-10)
    light = search.deflation()
    torch.testing.assert_close(light.projection, space.projection, rtol=0, atol=1e-10)
    assert light.length == pytest.approx(float(space.images.norm()), rel=1e-12)
    assert torch.equal(light.vectors, space.vectors)
    values, pairs, residuals = space.ritz(2)
    gaps = pairs.vectors @ matrix - values[:, None] * pairs.vectors
    torch.testing.assert_close(residuals, gaps.norm(dim=1), rtol=1e-6, atol=1e-10)


def test_steps_run_to_the_end_are_the_function_and_before_the_first_nothing_is_known():
    operator = DenseOperator(random_symmetric([5.0, 3.0, 1.0, -4.0, 0.1]))
    search = Lanczos(operator, generator=seeded())
    with pytest.raises(InvalidArgumentError, match="nothing is known before"):
        search.estimate()
    found, whole = finish(search.steps()), lanczos(operator, generator=seeded())
    assert found.converged and torch.equal(found.value, whole.value)


@pytest.mark.parametrize("kept", [True, False])
def test_the_first_products_tell_an_operator_that_is_not_symmetric(kept, monkeypatch):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 2**30 if kept else 0)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    right, wrong = DenseOperator(matrix + matrix.T), DenseOperator(matrix)

    def asymmetry(operator):
        search = Lanczos(operator, generator=seeded())
        search.step()
        search.step()
        return search.asymmetry

    assert refuse_asymmetry(right, asymmetry(right)) < 1e-14
    with pytest.raises(NotSymmetricError):
        refuse_asymmetry(wrong, asymmetry(wrong))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["network", "copies", "bulk"])
def test_images_that_are_not_kept_follow_from_the_recurrence(name, dtype, monkeypatch):
    monkeypatch.setattr("flatkit.spectrum.krylov.KEPT_BYTES", 0)
    matrix = random_symmetric(list(SPECTRA[name])).to(dtype)
    given: dict[str, Any] = {"k": 5, "max_basis": 11 if name == "bulk" else 20}
    search, counts = Lanczos(DenseOperator(matrix), **given, generator=seeded()), set()
    while not search.done and search.matvecs < 60:
        search.step()
        space = search.space()
        counts.add(space.matvecs > 0)
        if search.matvecs % 3 == 0:
            space = search.space(3)
            values = np.linalg.eigvalsh(search.space().projection.numpy())
            largest = np.sort(np.abs(values))[::-1][: space.size]
            found = np.sort(np.abs(space.projection.diagonal().numpy()))[::-1]
            np.testing.assert_allclose(found, largest, atol=1e-4)
        off = space.images.double() - space.vectors.double() @ matrix.double()
        assert float(off.abs().max()) <= 20 * torch.finfo(dtype).eps * SPECTRA[name].max()
    assert False in counts and (name != "bulk" or True in counts)  # five restarts wear them out


def test_what_a_trace_was_given_stays_as_it_was_while_the_search_goes_on():
    search = Lanczos(DenseOperator(random_symmetric(list(SPECTRA["bulk"]))), generator=seeded())
    for _ in range(15):
        search.step()
    light, space = search.deflation(), search.space()
    before = light.vectors.clone()
    while not search.done:
        search.step()
    assert search.estimate().notes["restarts"] > 0
    assert torch.equal(light.vectors, before) and torch.equal(space.vectors, before)
