"""The search in the ball against closed forms and brute force that share no code with it."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from flatkit import Objective
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.flatness import max_gradient_norm, max_loss_increase
from flatkit.flatness.ball import maximize_over_ball
from flatkit.flatness.frank_wolfe import BallSearch, FunctionValues, Iterate, Point
from flatkit.flatness.functions import LossIncrease
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.initial_points import disagreement
from flatkit.flatness.rounds import Rounds
from tests.cases import CASES, quadratic_task, random_symmetric, reference_function


def on_sphere(direction, radius):
    return Geometry("l2").maximiser(direction, radius)


def ball_maximum(matrix: np.ndarray, linear: np.ndarray, radius: float) -> float:
    """Return max over ‖δ‖ ≤ ρ of ½δᵀAδ + bᵀδ by the secular equation, in the eigenbasis of A.

    At the maximum (μI − A)δ = b with μ ≥ λmax and μ ≥ 0, so that ‖δ(μ)‖ falls with μ. (No case
    here has b orthogonal to the top eigenvector, but for b = 0.)
    """
    values, vectors = np.linalg.eigh(matrix)
    b = vectors.T @ linear
    if np.allclose(b, 0):
        return 0.5 * max(values[-1], 0.0) * radius**2

    def excess(mu: float) -> float:
        return float(np.linalg.norm(b / (mu - values)) - radius)

    low = max(values[-1], 0.0)
    inside = low + 1e-14 * max(1.0, abs(low))
    if low == 0 and values[-1] < 0 and excess(0.0) <= 0:
        delta = b / -values  # the maximum of a concave function, within the ball
    else:
        high = low + np.linalg.norm(b) / radius + 1.0
        mu = brentq(excess, inside, high, xtol=1e-15, maxiter=1000)
        delta = b / (mu - values)
    return float(0.5 * delta @ (values * delta) + b @ delta)


def gradient_norm_maximum(matrix: np.ndarray, gradient: np.ndarray, radius: float) -> float:
    """Return max over ‖δ‖ ≤ ρ of ‖g + Hδ‖: half its square is a quadratic in δ."""
    increase = ball_maximum(matrix @ matrix, matrix @ gradient, radius)
    return math.sqrt(2 * increase + float(gradient @ gradient))


def quadratic(seed: int, size: int = 50, *, minimum: bool = False):
    draws = np.random.default_rng(seed)
    matrix = random_symmetric(list(draws.standard_normal(size) * 3), seed)
    linear = torch.from_numpy(draws.standard_normal(size) * (0.0 if minimum else 1.0))
    return matrix, linear


def starts(matrix: torch.Tensor, linear: torch.Tensor, rho: float) -> dict[str, torch.Tensor]:
    """Return the starts that an analysis gives: eigenvectors both ways, the gradient, random."""
    values, vectors = torch.linalg.eigh(matrix)
    extreme = vectors[:, values.abs().argmax()]
    found = {"plus": extreme, "minus": -extreme, "top": vectors[:, -1], "top-": -vectors[:, -1]}
    g = torch.Generator().manual_seed(0)
    found["random"] = torch.randn(len(matrix), generator=g, dtype=torch.float64)
    if linear.norm() > 0:
        found["gradient"] = linear
    return {name: on_sphere(direction, rho) for name, direction in found.items()}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rho", [0.01, 1.0, 10.0])
def test_the_gradient_norm_of_a_quadratic_reaches_the_secular_maximum(seed, rho):
    matrix, linear = quadratic(seed)
    objective = Objective(*quadratic_task(matrix, linear))
    found = max_gradient_norm(
        objective, rho=rho, starts=starts(matrix, linear, rho), budget=4000, tolerance=1e-10
    )
    exact = gradient_norm_maximum(matrix.numpy(), linear.numpy(), rho)
    assert found.value <= exact * (1 + 1e-12)
    assert found.value >= exact * (1 - 1e-5)
    assert float(found.displacement.norm()) <= rho * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rho", [0.01, 1.0])
def test_the_loss_of_a_quadratic_reaches_the_secular_maximum(seed, rho):
    matrix, linear = quadratic(seed)
    objective = Objective(*quadratic_task(matrix, linear))
    found = max_loss_increase(
        objective, rho=rho, starts=starts(matrix, linear, rho), budget=4000, tolerance=1e-11
    )
    exact = ball_maximum(matrix.numpy(), linear.numpy(), rho)
    assert found.value <= exact * (1 + 1e-10)
    assert found.value >= exact * (1 - 1e-4)


def test_at_a_minimum_the_identities_hold():
    matrix = random_symmetric([4.0, 2.0, 1.0, 0.5])
    objective = Objective(*quadratic_task(matrix))
    for rho in (1e-3, 0.1, 10.0):
        begin = starts(matrix, torch.zeros(4), rho)
        r0 = max_loss_increase(objective, rho=rho, starts=begin).value
        r1 = rho * max_gradient_norm(objective, rho=rho, starts=begin).value
        assert r1 / rho**2 == pytest.approx(4.0, rel=1e-9)
        assert r0 / rho**2 == pytest.approx(2.0, rel=1e-9)
        assert r0 <= r1


def brute_force(function, theta, rho, *, gradient_norm: bool, seeds: int = 10) -> float:
    """Return the best of many long projected gradient ascents, side by side by torch alone."""

    def value(delta):
        if gradient_norm:
            return torch.func.grad(function)(theta + delta).norm()
        return function(theta + delta) - function(theta)

    climb = torch.func.vmap(torch.func.grad_and_value(value))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(len(theta), generator=generator, dtype=theta.dtype) for _ in range(seeds)]
    deltas = rho * torch.nn.functional.normalize(torch.stack(drawn))
    best = 0.0
    for step in range(100):
        ascents, found = climb(deltas)
        best = max(best, float(found.max()))
        deltas = deltas + rho * 0.5 * 0.97**step * torch.nn.functional.normalize(ascents)
        deltas = deltas * (rho / deltas.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return best


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
@pytest.mark.parametrize("rho", [0.05, 0.5])
@pytest.mark.parametrize("gradient_norm", [True, False], ids=["gradient norm", "loss"])
def test_networks_reach_the_best_of_a_brute_force_search(case, rho, gradient_norm):
    function, theta = reference_function(case)
    best = brute_force(function, theta, rho, gradient_norm=gradient_norm)
    objective = Objective(case.build(), case.loss, case.data())
    hessian = torch.autograd.functional.hessian(function, theta)
    assert isinstance(hessian, torch.Tensor)
    begin = starts(hessian, objective.gradient(), rho)
    search = max_gradient_norm if gradient_norm else max_loss_increase
    found = search(objective, rho=rho, starts=begin)
    # Kinks give a piecewise linear network many local maxima; the search promises a lower bound.
    assert found.value >= (0.98 if "relu" in case.name else 0.999) * best


@pytest.mark.parametrize("seed", range(10))
def test_unaided_searches_of_a_quadratic_reach_the_secular_maximum_within_the_budget(seed):
    matrix, linear = quadratic(seed)
    objective = Objective(*quadratic_task(matrix, linear))
    found = max_gradient_norm(objective, rho=1.0, tolerance=1e-12)
    exact = gradient_norm_maximum(matrix.numpy(), linear.numpy(), 1.0)
    assert exact * (1 - 1e-6) <= found.value <= exact * (1 + 1e-12)
    spent = objective.cost.gradients + 2 * objective.cost.matvecs
    assert spent <= found.gradients + 5 <= 650


def kinked_task():
    """Return an untrained ReLU network whose gradient norm jumps everywhere."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3)).double()
    return model, torch.randn(300, 8, dtype=torch.float64), torch.randint(3, (300,))


def test_past_kinks_the_search_walks_on_and_says_that_it_met_them():
    model, inputs, targets = kinked_task()
    objective = Objective(model, "cross_entropy", (inputs, targets))
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def function(theta):
        parts = [v.view(s) for v, s in zip(theta.split(sizes), shapes, strict=True)]
        weights = dict(zip(names, parts, strict=True))
        outputs = torch.func.functional_call(model, weights, (inputs,))
        return torch.nn.functional.cross_entropy(outputs, targets)

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    best = brute_force(function, theta, 0.03, gradient_norm=True, seeds=20)
    found = max_gradient_norm(objective, rho=0.03, budget=1500)
    assert found.value >= 0.999 * best
    assert found.status == "kinks" and "walks" in found.trails
    walked = found.trails["walks"]
    assert walked == sorted(walked)
    assert found.value == max(value for trail in found.trails.values() for value in trail)
    point = (theta + found.displacement).requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    assert float(gradient.norm()) == pytest.approx(found.value, rel=1e-10)
    assert float(found.displacement.norm()) <= 0.03 * (1 + 1e-12)


class Hidden:
    """|u₁| everywhere; on both sides of the plane u₂ = 0, beyond 0.3, a rise to 9 at u₂ = ±1."""

    geometry, rows, value_cost, ascent_cost = Geometry("l2"), 3, 1, 2

    def __call__(self, u):
        high = u[:, 1].abs() > 0.3
        ascents = torch.zeros_like(u)
        ascents[~high, 0], ascents[high, 1] = u[~high, 0].sign(), 9 * u[high, 1].sign()
        return FunctionValues(
            torch.where(high, 9 * u[:, 1].abs(), u[:, 0].abs()), lambda _: ascents
        )


def test_a_search_from_given_starts_ends_at_the_secular_maximum_without_being_told_when():
    matrix, linear = quadratic(0)
    objective = Objective(*quadratic_task(matrix, linear))
    function = LossIncrease(objective, objective.theta, Geometry("l2"))
    starts = {"gradient": on_sphere(linear, 1.0)}
    found = maximize_over_ball(function, radius=1.0, starts=starts, budget=3000)
    assert found.value == pytest.approx(ball_maximum(matrix.numpy(), linear.numpy(), 1.0), rel=1e-6)


def test_the_point_of_a_maximum_that_a_later_round_finds_is_kept():
    axes = torch.eye(8, dtype=torch.float64)
    starts = {str(axis): axes[axis] for axis in (0, 2, 3, 4, 5, 1)}  # the highest is looked at last
    found = maximize_over_ball(Hidden(), radius=1.0, starts=starts, budget=200)
    assert (found.value, found.start) == (9.0, "1")
    assert torch.equal(found.coordinates, axes[1])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_kink_is_one_and_rounding_is_none_in_any_unit_of_the_loss(scale):
    search = BallSearch(Hidden(), 1.0, tolerance=1e-7)
    rounds = Rounds(search, iter({}.items()), None, torch.Generator())
    across = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)  # at 45 degrees to the point
    point = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    slopes = {size: scale * size * across for size in (1.0, 1e-15)}  # the other gains 4e-16
    ends = {
        size: Iterate("end", Point(point), scale, slope, done=True)
        for size, slope in slopes.items()
    }
    assert rounds.ends_at_kink(ends[1.0]) and not rounds.ends_at_kink(ends[1e-15])


def walk(function, starts, *, budget, explore=None):
    """Return what a search finds whose first ascent ends at a kink, and what it spent."""
    search = BallSearch(function, 1.0, tolerance=1e-7)
    rounds = Rounds(search, iter(starts.items()), explore, torch.Generator(), kinked=True)
    for _ in rounds.run():
        if search.spent >= budget:
            break
    return search, next(iterate for iterate in search.iterates if iterate.name == "walks")


@pytest.mark.parametrize("explores", [True, False])
def test_walks_from_far_away_find_what_none_of_the_starts_sees(explores):
    axes, function = torch.eye(40, dtype=torch.float64), Hidden()
    drawn = []

    def explore(generator):  # long along a third axis, as gradients are along the few largest
        drawn.append(1)
        parts = torch.randn(3, generator=generator, dtype=torch.float64)
        return parts[0] * axes[1] + 100 * parts[1] * axes[2] + 100 * parts[2] * axes[0]

    starts = {"one": axes[0], "other": axes[2]}
    search, found = walk(function, starts, budget=1500, explore=explore if explores else None)
    assert found.value == pytest.approx(9.0 if explores else 1.0, rel=1e-9)
    assert found.trail == sorted(found.trail) and search.iterates[0].value == 1.0
    assert float(found.u.norm()) <= 1 + 1e-12
    passes = search.evaluations + 2 * search.ascents
    assert search.spent == passes + len(drawn) and 1500 <= search.spent < 1510
    assert bool(drawn) == explores


def test_a_disagreement_is_that_of_two_halves_of_the_samples():
    model, inputs, targets = kinked_task()
    objective = Objective(model, "cross_entropy", (inputs, targets), chunk_size=64)
    found = disagreement(objective, objective.theta, torch.Generator().manual_seed(5))
    losses = torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none") / 300
    rows = [
        torch.autograd.grad(part, list(model.parameters()), retain_graph=True) for part in losses
    ]
    slopes = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])  # [N, P]
    signs = torch.linalg.lstsq(slopes.T, found[:, None]).solution[:, 0]  # N < P: they are unique
    assert slopes.shape[0] < slopes.shape[1]
    assert signs.abs().numpy() == pytest.approx(np.ones(300), abs=1e-6)
    assert abs(float(signs.sum())) < 1e-6 and objective.cost.gradients == 1


@pytest.mark.parametrize(("samples", "chunk"), [(130, 64), (66, 2)])
def test_no_half_leaves_batchnorm_a_single_sample(samples, chunk):
    """Halves of 65 and 33 samples, of which chunks as large as those of all would leave one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    data = (torch.randn(samples, 3), torch.randint(0, 2, (samples,)))
    objective = Objective(model, "cross_entropy", data, batchnorm="train", chunk_size=chunk)
    found = disagreement(objective, objective.theta, torch.Generator().manual_seed(0))
    assert float(found.norm()) > 0


def test_walks_of_a_large_network_are_no_more_than_its_memory_allows(monkeypatch):
    monkeypatch.setattr("flatkit.flatness.iterated_search._MOST_NUMBERS", 40 * 10)
    together = []

    class Watched(Hidden):
        rows = 1000

        def __call__(self, u):
            together.append(len(u))
            return super().__call__(u)

    begin = {"start": torch.eye(40)[0]}
    walk(Watched(), begin, budget=5000, explore=lambda g: torch.randn(40, generator=g))
    assert max(together) == 10


def test_rounding_of_the_loss_is_no_kink():
    matrix, _ = quadratic(3, size=30, minimum=True)
    model, loss, data = quadratic_task(matrix.float())
    lifted = Objective(model, lambda outputs, targets: loss(outputs, targets) + 100.0, data)
    found = max_loss_increase(lifted, torch.zeros(30), rho=0.05, budget=1500)
    assert found.status == "converged" and "walks" not in found.trails
    assert found.gradients < 1500
    largest = 0.5 * 0.05**2 * float(torch.linalg.eigvalsh(matrix).max())
    assert found.value == pytest.approx(largest, abs=8 * 100 * torch.finfo(torch.float32).eps)


def test_the_value_belongs_to_the_displacement_and_the_trail_never_falls():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data())
    function, theta = reference_function(case)
    begin = {"gradient": on_sphere(objective.gradient(), 0.3)}
    found = max_gradient_norm(objective, rho=0.3, starts=begin)
    point = (theta + found.displacement).requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    assert float(gradient.norm()) == pytest.approx(found.value, rel=1e-12)
    trail = found.trails["gradient"]
    assert len(trail) > 2 and trail == sorted(trail) and trail[-1] == found.value
    assert found.status == "converged" and found.stationarity is not None
    assert found.stationarity < 0.05


def test_an_inner_maximum_is_found_and_has_no_angle():
    matrix = -random_symmetric([1.0, 2.0, 3.0])  # concave: the maximum of L is inside
    linear = torch.tensor([0.1, 0.2, -0.1], dtype=torch.float64)
    objective = Objective(*quadratic_task(matrix, linear))
    begin = {"gradient": on_sphere(linear, 1.0), "centre": torch.zeros(3, dtype=torch.float64)}
    found = max_loss_increase(objective, rho=1.0, starts=begin, budget=3000, tolerance=1e-12)
    exact = float(-0.5 * linear @ torch.linalg.solve(matrix, linear))
    assert found.value == pytest.approx(exact, rel=1e-3)
    assert found.stationarity is None


def test_a_flat_function_ends_at_once():
    objective = Objective(*quadratic_task(torch.zeros(3, 3, dtype=torch.float64)))
    begin = {"start": torch.ones(3, dtype=torch.float64) / 10}
    found = max_gradient_norm(objective, rho=1.0, starts=begin)
    assert (found.value, found.status) == (0.0, "converged")


def test_bad_arguments_are_refused():
    objective = Objective(*quadratic_task(torch.eye(2).double()))
    begin = {"start": torch.ones(2).double()}
    for wrong in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(InvalidArgumentError, match="rho"):
            max_loss_increase(objective, rho=wrong, starts=begin)
    with pytest.raises(InvalidArgumentError, match="starts"):
        max_loss_increase(objective, rho=1.0, starts={})


def test_an_overflow_within_the_ball_is_an_error():
    objective = Objective(*quadratic_task(torch.eye(2).double()))
    begin = {"start": torch.full((2,), 1e200, dtype=torch.float64)}
    with pytest.raises(NonFiniteError, match="rho"):
        max_loss_increase(objective, rho=1e200, starts=begin)
