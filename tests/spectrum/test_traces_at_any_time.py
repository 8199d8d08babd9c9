"""Traces and norms product by product: what is told holds, and a known space costs no product."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.coverage import SPECTRA, too_few
from flatkit.spectrum import frobenius_norm, hutchinson_trace, spectral_density, trace
from flatkit.spectrum.density import density_steps
from flatkit.spectrum.frobenius import frobenius_steps
from flatkit.spectrum.hutchinson import hutchinson_steps
from flatkit.spectrum.lanczos import Lanczos
from flatkit.spectrum.operators import DenseOperator, SymmetricOperator
from flatkit.spectrum.space import Space
from flatkit.spectrum.steps import finish
from flatkit.spectrum.xtrace import trace_steps
from tests.cases import random_symmetric

NETWORK = np.r_[90.0, 60, 35, 30, 12, 5, -4, np.geomspace(1, 1e-4, 93)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting(SymmetricOperator):
    """A matrix that counts its products."""

    def __init__(self, matrix: torch.Tensor, parts: tuple[int, ...] = ()) -> None:
        self.matrix, self.products, self.sizes = matrix, 0, parts or (len(matrix),)
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    @property
    def parts(self) -> tuple[int, ...]:
        return self.sizes

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.matrix @ vector


class Diagonal(Counting):
    """A diagonal matrix."""

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        return self.matrix * vector


def krylov(operator: SymmetricOperator, steps: int, seed: int = 0) -> Space:
    search = Lanczos(operator, k=5, generator=seeded(seed))
    while search.matvecs < steps and not search.done:
        search.step()
    return search.space()


@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("spectrum", [NETWORK, np.r_[np.ones(4), np.zeros(96)], np.ones(100)])
@pytest.mark.parametrize("known", [0, 12])
def test_a_piece_is_a_product_and_the_last_is_the_function(method, spectrum, known):
    operator = Counting(random_symmetric(list(spectrum)), (30, 70))
    space = krylov(operator, known) if known else None
    found: Any = None
    given: dict[str, Any] = {"method": method, "tolerance": 0.005, "max_matvecs": 90}
    operator.products, before = 0, 0
    for ask in trace_steps(operator, **given, generator=seeded(), space=space):
        found = ask()
        assert found.matvecs == operator.products <= before + 1
        assert abs(float(found.value) - spectrum.sum()) <= 6 * float(found.error) + 1e-9
        before = operator.products
    if space is None:
        whole = trace(operator, **given, generator=seeded())
        assert (whole.value, whole.error, whole.notes) == (found.value, found.error, found.notes)
    assert found.status == "budget" or found.converged


def test_a_norm_is_told_after_every_product_too():
    operator, truth = Counting(random_symmetric(list(NETWORK))), np.linalg.norm(NETWORK)
    given: dict[str, Any] = {"max_matvecs": 60}
    found: Any = None
    for number, ask in enumerate(frobenius_steps(operator, **given, generator=seeded()), start=1):
        found = ask()
        assert found.matvecs == operator.products in (number, number - 1)
        assert abs(float(found.value) - truth) <= 6 * float(found.error)
    assert torch.equal(found.value, frobenius_norm(operator, **given, generator=seeded()).value)
    plain = finish(hutchinson_steps(operator, generator=seeded()))
    assert torch.equal(plain.value, hutchinson_trace(operator, generator=seeded()).value)


@pytest.mark.parametrize("steps", [trace_steps, frobenius_steps])
@pytest.mark.parametrize("known", [0, 6])
def test_few_probes_are_covered_as_often_as_a_normal_would(steps, known):
    away: list[float] = []
    for name in ("pairs", "network"):
        matrix = SPECTRA[name]()
        operator = DenseOperator(torch.from_numpy(matrix))
        truth = np.trace(matrix) if steps is trace_steps else np.linalg.norm(matrix)
        for seed in range(5):
            space = krylov(operator, known, seed) if known else None
            told = steps(operator, generator=seeded(seed + 1000), space=space)
            for ask, count in zip(told, range(1, 5), strict=False):
                if count in (1, 2, 4):
                    found = ask()
                    away.append(abs(float(found.value) - truth) / float(found.error))
    assert max(away) <= 6
    for errors in (1, 2):
        assert not too_few(int((np.array(away) <= errors).sum()), len(away), errors)


@pytest.mark.parametrize("early", [5, 400])
def test_beside_a_krylov_space_the_trace_is_unbiased_and_takes_few_products(early):
    operator, truth = DenseOperator(random_symmetric(list(NETWORK))), NETWORK.sum()
    space, off = krylov(operator, early), []
    for seed in range(60):
        told = trace_steps(operator, generator=seeded(seed + 7), space=space)
        eighth = [next(told) for _ in range(8)][-1]()
        off.append(float(eighth.value) - truth)
        assert abs(off[-1]) <= 6 * float(eighth.error)
    assert abs(np.mean(off)) <= 4 * np.std(off) / np.sqrt(60)
    norm = finish(frobenius_steps(operator, max_matvecs=60, generator=seeded(2), space=space))
    assert abs(float(norm.value) - np.linalg.norm(NETWORK)) <= 6 * float(norm.error)
    assert norm.converged
    if early < 10:
        return
    alone = trace(operator, tolerance=0.02, max_matvecs=90, generator=seeded())
    beside = finish(trace_steps(operator, max_matvecs=90, generator=seeded(1), space=space))
    assert beside.converged
    assert beside.matvecs <= 0.3 * alone.matvecs


def test_a_space_that_is_everything_leaves_nothing_to_probe():
    matrix = random_symmetric(list(NETWORK[:60]))
    operator = Counting(matrix)
    space = Space.of(operator, torch.linalg.qr(torch.randn(60, 60, generator=seeded()).double())[0])
    for steps, truth in ((trace_steps, matrix.trace()), (frobenius_steps, matrix.norm())):
        operator.products = 0
        found = finish(steps(operator, generator=seeded(), space=space))
        assert operator.products == found.matvecs == 0 and found.converged
        assert abs(float(found.value - truth)) <= float(found.error) < 1e-10


def test_a_sketch_is_made_of_the_first_probes_where_their_images_promise_that_it_pays():
    spectrum = np.r_[np.linspace(1, -1, 12), 1e-3 * np.linspace(-1, 1.1, 388)]
    operator = Counting(random_symmetric(list(spectrum)))
    space = Space.of(operator, torch.eye(400, dtype=torch.float64)[:1])
    operator.products, given = 0, {"tolerance": 0.1, "max_matvecs": 300}
    found = finish(trace_steps(operator, **given, generator=seeded(), space=space))
    assert found.notes["sketch"] >= 16 and found.matvecs == operator.products
    assert abs(float(found.value) - spectrum.sum()) <= 3 * float(found.error)
    plain = finish(
        trace_steps(operator, method="hutchinson", **given, generator=seeded(), space=space)
    )
    assert float(plain.error) > 2 * float(found.error) and found.matvecs < plain.matvecs


@pytest.mark.parametrize("steps", [3, 60])
def test_the_rule_of_a_run_of_lanczos_is_the_first_of_a_density(steps):
    matrix = random_symmetric(list(NETWORK))
    operator = Counting(matrix)
    search = Lanczos(operator, k=5, generator=seeded())
    start = torch.randn(100, generator=seeded()).double()
    start /= start.norm()
    while search.matvecs < steps and not search.done:
        search.step()
    rule = search.rule()
    assert rule is not None
    nodes, weights, finer, shares, _ = rule
    assert float(shares @ finer) == pytest.approx(float(weights @ nodes), rel=0.2)
    assert float(shares.sum()) == pytest.approx(1.0)
    for power in range(5):  # a rule of n nodes integrates polynomials of degree 2n - 1
        moment = float(start @ torch.linalg.matrix_power(matrix, power) @ start)
        assert float(weights @ nodes**power) == pytest.approx(moment, rel=1e-9)
    operator.products = 0
    given = {"num_probes": 3, "steps": 20, "first": rule}
    told = [ask().matvecs for ask in density_steps(operator, **given, generator=seeded(1))]
    assert told == list(range(1, 41)) and operator.products == 40
    found = spectral_density(operator, **given, generator=seeded(1))
    assert len(found.nodes) == len(nodes) + 40
    assert abs(found.mean - NETWORK.mean()) <= 4 * found.mean_error
    warm = Lanczos(operator, initial=start, generator=seeded())
    warm.step()
    assert warm.rule() is None


def test_a_density_of_one_start_says_how_wrong_it_may_be():
    values, within = np.r_[9.0, 7, 5, np.zeros(300)], 0
    for seed in range(20):
        told = density_steps(
            DenseOperator(torch.diag(torch.tensor(values))), generator=seeded(seed)
        )
        found = [next(told) for _ in range(4)][-1]()  # four nodes are all that there is
        width = found.bandwidth
        distances = (found.grid[:, None] - values) / width
        truth = (np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))).mean(1)
        off, bar = np.abs(found.curve - truth), found.error + 1e-12
        assert (off <= 4 * bar).all()
        within += bool((off <= 2 * bar).all())
    assert within >= 17


@pytest.mark.parametrize("spectrum", ["linear", "decay", "two bands"])
@pytest.mark.parametrize("steps", [15, 40])
def test_the_curve_of_a_spectrum_without_gaps_lies_within_its_bar(spectrum, steps):
    values = {
        "linear": np.linspace(-1, 1, 2000),
        "decay": np.geomspace(1e-3, 1, 2000),
        "two bands": np.r_[np.linspace(-1, 1, 1500), np.linspace(5, 6, 500)],
    }[spectrum]
    operator = Diagonal(torch.tensor(values))
    found = spectral_density(operator, steps=steps, generator=seeded())
    distances = (found.grid[:, None] - values) / found.bandwidth
    truth = (np.exp(-0.5 * distances**2) / (found.bandwidth * np.sqrt(2 * np.pi))).mean(1)
    off, high = np.abs(found.curve - truth), truth > 0.01 * truth.max()
    assert (off[high] <= 2 * found.error[high]).mean() >= 0.9
    assert (off[high] <= 5 * found.error[high]).all()
    assert found.nodes.min() >= values.min() - 1e-9 and found.nodes.max() <= values.max() + 1e-9
    if steps == 40:  # Gauss rules alone are off by a tenth to a fifth
        assert off[high].mean() <= 0.1 * truth[high].mean()
