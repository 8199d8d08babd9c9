"""A converged eigenvalue has its rank: at both ends, from any start, after ties and in clusters."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flatkit.errors import InvalidArgumentError
from flatkit.spectrum import Estimate, lanczos, lobpcg, power_iteration
from flatkit.spectrum.krylov import KrylovBasis
from flatkit.spectrum.operators import DenseOperator, SymmetricOperator
from flatkit.spectrum.rank import RISK, Probe, chance, log_unseen, margins
from flatkit.spectrum.second_start import look_again
from flatkit.verify.claims import Facts, judge
from tests.cases import random_symmetric


class Diagonal(SymmetricOperator):
    """Eigenvalues along the coordinates, so that a start can be given in their terms."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(np.asarray(values), dtype=dtype)
        self.size, self.dtype = len(self.values), dtype
        self.device = torch.device("cpu")

    def matvec(self, vector):
        return self.values * vector

    def matmat(self, vectors):
        return self.values * vectors


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(lowest: float) -> np.ndarray:
    """Return a spectrum of large ones, a bulk next to zero, and some negative ones."""
    ends = [484.0, 301, 220, 150, 90, 40, 12, lowest, 0.4 * lowest]
    return np.concatenate([ends, np.linspace(-0.005, 0.05, 2991)])


def ranked(found: Estimate, truth: np.ndarray, *, slack: float = 1e-12) -> bool:
    """Whether a status other than converged, or the wanted values within their errors."""
    off = np.abs(found.value.numpy() - truth[: len(found.value)])
    within = (off <= found.error.numpy() + slack * np.abs(truth).max()).all()
    return not found.converged or bool(within)


@pytest.mark.parametrize("lowest", [-29.0, -3.0, -0.5])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_the_lowest_of_a_network_is_found_or_in_the_error(lowest, tolerance):
    values = network(lowest)
    for seed in range(8):
        dtype = torch.float32 if seed % 2 else torch.float64
        found = lanczos(
            Diagonal(values, dtype), which="smallest", tolerance=tolerance, generator=seeded(seed)
        )
        assert float(found.value[0]) - lowest <= float(found.error[0]), seed
        if found.converged:  # twice: rounding of float32 comes on top
            assert float(found.error[0]) <= 2 * tolerance * 484


SPECTRA = {
    "both ends": np.r_[9.0, 7, -8, -6, np.linspace(-0.1, 0.1, 90)],
    "lower cluster": np.r_[50.0, -1, -1 + 1e-3, -1 + 2e-3, np.linspace(-0.9, 0, 90)],
    "near ties": np.r_[5.0, 5 - 1e-3, 5 - 1e-4, 5 - 1e-6, -5, -5 + 1e-5, np.linspace(-1, 1, 80)],
    "rank deficient": np.r_[3.0, 2, 1, np.zeros(80)],
    "negative": -np.linspace(1, 3, 60),
    "copies": np.r_[2.0, 2, 1, 1, -2, -2, -1, -1, np.zeros(40)],
    "decay": np.arange(1, 60.0) ** -1.5,
    "identity": np.ones(50),
    "zero": np.zeros(50),
    "one": np.array([-2.0]),
    "two": np.array([1.0, -1.0]),
    "three": np.array([1.0, 1.0, -1.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
def test_converged_values_are_those_of_their_rank(name, which):
    values = np.sort(SPECTRA[name])
    ends = [values[-1 - i // 2] if i % 2 == 0 else values[i // 2] for i in range(len(values))]
    truth = {
        "largest": values[::-1],
        "smallest": values,
        "magnitude": values[np.argsort(-np.abs(values), kind="stable")],
        "both": np.array(ends),
    }[which]
    if which == "magnitude":  # ties of both signs come in any order
        truth = np.abs(truth)
    scale = max(np.abs(values).max(), 1e-30)
    for seed in range(6):
        k = min(1 + seed % 3, len(values))
        dtype = torch.float32 if seed % 2 else torch.float64
        found = lanczos(
            Diagonal(values, dtype),
            k=k,
            which=which,
            stop="value" if seed == 5 else "residual",
            max_basis=k + 3 if seed == 4 else None,
            generator=seeded(seed),
        )
        if which == "magnitude":
            found = SimpleNamespace(
                value=found.value.abs(), error=found.error, converged=found.converged
            )
        assert ranked(found, truth, slack=2e-4), (seed, found.value, truth[:4])  # type: ignore[arg-type]
        if k == 1 and which in ("largest", "smallest"):
            assert ranked(found, truth, slack=1e-6), (seed, found.value, truth[:4], scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("gap", [5e-3, 1e-3, 3e-4])
def test_a_start_in_the_span_of_other_vectors_does_not_hide_the_largest(gap):
    for seed in range(8):
        values = np.sort(np.random.default_rng(seed).random(120))[::-1].copy()
        values[:2] = 1.0 + gap, 1.0
        start = torch.zeros(1, 120, dtype=torch.float64)
        start[0, 1:3] = torch.tensor([0.8, 0.6])
        found = lanczos(Diagonal(values), initial=start, generator=seeded(seed))
        assert ranked(found, values), seed
        found = lobpcg(Diagonal(values), initial=start.repeat(4, 1), generator=seeded(seed))
        assert ranked(found, values), seed


def test_a_start_of_zeros_is_none_and_one_that_is_not_finite_is_refused():
    operator = Diagonal([3.0, 1.0, 0.0])
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert float(lanczos(operator, initial=zeros, generator=seeded()).value[0]) == pytest.approx(3)
    with pytest.raises(InvalidArgumentError, match="initial"):
        lanczos(operator, initial=zeros / 0, generator=seeded())


@pytest.mark.parametrize("method", [power_iteration, lobpcg])
def test_after_ties_the_next_ones_are_those_of_their_rank(method):
    for seed in range(30):
        draws = np.random.default_rng(seed)
        size = int(draws.integers(3, 9))
        values = np.round(draws.standard_normal(size) * 1.5)
        k, scale = int(draws.integers(1, size)), np.abs(values).max()
        if scale == 0:
            continue
        found = method(
            DenseOperator(random_symmetric(list(values), seed)),
            k=k,
            tolerance=1e-6,
            generator=seeded(seed),
            max_matvecs=1500,
        )
        assert ranked(found, np.sort(values)[::-1], slack=1e-5), seed


def test_what_a_start_ruled_out_is_there_with_the_risk_that_is_said():
    """A start with next to no part along an eigenvector: the bound never says less."""
    values = np.r_[2.0, 1.0, np.linspace(-1, 0.5, 60)]
    for part in (1e-2, 1e-4, 1e-8):
        start = np.random.default_rng(0).standard_normal(62)
        start /= np.linalg.norm(start)
        start[0] = part
        basis = KrylovBasis(Diagonal(values), 12, seeded())
        basis._rows[0] = torch.tensor(start / np.linalg.norm(start))
        for _ in range(12):
            basis.expand()
            bound = log_unseen(np.array([2.0]), basis.starts[0], size=62)[0]
            # √(2n/π)·t bounds the chance of a part of at most t: t is here.
            assert bound >= min(0.0, math.log(part * math.sqrt(2 * 62 / math.pi))) - 1e-3


def test_the_bound_holds_across_restarts():
    values = np.r_[2.0, 1.0, np.linspace(-1, 0.5, 60)]
    start = np.random.default_rng(0).standard_normal(62)
    start[0] = 1e-6
    start /= np.linalg.norm(start)
    basis = KrylovBasis(Diagonal(values), 6, seeded())
    basis._rows[0] = torch.tensor(start)
    allowed = math.log(abs(start[0]) * math.sqrt(2 * 62 / math.pi))
    lowest = 0.0
    for _ in range(40):
        basis.expand()
        nodes, weights = basis.ritz()
        lowest = log_unseen(np.array([2.0]), basis.starts[0], size=62)[0]
        if nodes.max() > 1.5:  # it is there
            break
        assert lowest >= allowed - 1e-2
        if basis.full:
            basis.restart(nodes[::-1], weights[:, ::-1], kept=3)
    assert basis.restarts >= 2 and lowest < allowed + 5  # and it is no bound of nothing


def test_the_chance_of_several_starts_is_that_of_a_product_of_uniform_numbers():
    draws = np.random.default_rng(0).random((3, 200_000))
    for level in (1e-1, 1e-2):
        product = np.full((3, 1), level ** (1 / 3))
        expected = (draws.prod(0) <= level).mean()
        assert chance(np.log(product))[0] == pytest.approx(expected, rel=0.05)


def test_a_margin_is_where_the_risk_begins_and_open_gaps_add_up():
    probe = Probe(np.array([0.0, 1.0, 3.0]), math.log(1e-6))
    beyond, before = margins(np.array([3.0, 1.0]), "largest", [probe], size=9)
    for margin, point in ((beyond[0], 3.0), (-before[0], 3.0), (beyond[1], 1.0)):
        risk = math.exp(log_unseen(np.array([point + margin]), probe, size=9)[0])
        assert risk == pytest.approx(RISK, rel=0.02)
    wide = Probe(np.array([0.0, 1.0, 3.0]), 0.0)
    beyond, _ = margins(np.array([3.0, 1.0]), "largest", [wide], size=9)
    assert beyond[1] == pytest.approx(2.0 + beyond[0])


def test_a_second_start_sees_what_was_missed_and_counts_what_it_cost():
    operator = Diagonal(np.r_[5.0, 4.0, np.linspace(0, 3, 98)])
    unit = torch.eye(100, dtype=torch.float64)
    given = {"allowed": 1e-3, "spent": 30, "max_matvecs": 1000}
    missed = look_again(
        operator, torch.tensor([4.0]).double(), unit[1:2], **given, generator=seeded()
    )
    complete = look_again(
        operator, torch.tensor([5.0, 4.0]).double(), unit[:2], **given, generator=seeded()
    )
    assert missed.missing and missed.beyond <= 1.0 and 1 < missed.matvecs < 30
    assert not complete.missing and complete.beyond <= 1e-3


def test_no_claim_stands_on_an_eigenvalue_whose_rank_is_open():
    jump = SimpleNamespace(found=False, size=0.0, distance=1e-9)
    facts = {"top": 484.0, "lowest": -0.0094, "norm": 0.0, "blurred": 0.0, "jump": jump}

    def verdict(**more):
        claims = judge(Facts(**facts, **more), [])  # type: ignore[arg-type]
        return next(c["verdict"] for c in claims if c["claim"] == "no negative curvature")

    assert verdict(top_error=0.01, lowest_error=1.0, ranked=True) == "holds"
    assert verdict(top_error=0.01, lowest_error=29.0, ranked=True) == "cannot tell"
    assert verdict(top_error=0.01, lowest_error=1.0, ranked=False) == "cannot tell"
