"""Searches in the ball that can be asked at any time, and whose budget only ends them."""

import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from flatkit import Objective
from flatkit.flatness import QuadraticModel, max_gradient_norm, max_loss_increase, rounds
from flatkit.flatness.ball import search_steps
from flatkit.flatness.frank_wolfe import BallSearch, FunctionValues
from flatkit.flatness.functions import GradientNorm, LossIncrease
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.r0 import loss_increase_steps
from flatkit.flatness.r1 import gradient_norm_steps
from flatkit.flatness.sphere_lbfgs import ascend
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.space import Space
from flatkit.spectrum.steps import finish
from tests.cases import CASES, quadratic_task, random_symmetric, reference_function
from tests.flatness.test_ball import kinked_task, quadratic

ROUND = Geometry("l2")


def kinked() -> Objective:
    model, inputs, targets = kinked_task()
    return Objective(model, "cross_entropy", (inputs, targets))


def steps_of(kind: str, rho: float):
    """Return the objective and the steps of a search on the first case, or past kinks."""
    case = CASES[0]
    objective = kinked() if kind == "kinks" else Objective(case.build(), case.loss, case.data())
    steps = loss_increase_steps if kind == "loss" else gradient_norm_steps
    return objective, steps(objective, rho=rho, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["loss", "gradient norm", "kinks"])
def test_a_larger_budget_repeats_a_smaller_one_and_goes_on(kind):
    objective, steps = steps_of(kind, 0.1)
    search = max_loss_increase if kind == "loss" else max_gradient_norm
    drafts = {}
    for ask in steps:
        found = ask()
        drafts.setdefault(found.gradients, found)
        if found.gradients > 150:
            break
    for budget in (1, 45, 150):
        found = search(
            objective, rho=0.1, budget=budget, generator=torch.Generator().manual_seed(1)
        )
        if found.gradients < budget:
            continue  # it ended before
        same = drafts[found.gradients]
        assert found.value == same.value and found.gradients - budget < 40
        assert torch.equal(found.coordinates, same.coordinates)
        trails = [(name, trail) for name, trail in found.trails.items() if trail]
        assert all(same.trails[name][: len(trail)] == trail for name, trail in trails)


def test_every_draft_is_a_point_of_the_ball_and_none_is_lower_than_the_last():
    case = CASES[0]
    function, theta = reference_function(case)
    _, steps = steps_of("gradient norm", 0.2)
    values, spent = [], []
    for ask in steps:
        found = ask()
        point = (theta + found.displacement).requires_grad_()
        (gradient,) = torch.autograd.grad(function(point), point)
        assert float(gradient.norm()) == pytest.approx(found.value, rel=1e-10)
        assert float(found.displacement.norm()) <= 0.2 * (1 + 1e-12)
        values.append(found.value)
        spent.append(found.gradients)
        if found.gradients > 120:
            break
    assert values == sorted(values) and spent == sorted(spent)
    assert max(after - before for before, after in pairwise(spent)) <= 3


@pytest.mark.parametrize("rows", [1, 3])
def test_a_secant_of_a_quadratic_is_its_gradient_for_one_gradient_of_the_loss(rows):
    matrix, linear = quadratic(0, size=8)
    objective = Objective(*quadratic_task(matrix, linear))
    function = GradientNorm(objective, torch.zeros(8, dtype=torch.float64), ROUND)
    points = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = function(points)
    before = objective.cost
    assert found.secants is not None
    secants = found.secants(points, 0.3)
    cost = objective.cost - before
    slopes = points @ matrix + linear
    expected = (slopes / slopes.norm(dim=1, keepdim=True)) @ matrix
    assert torch.allclose(secants, expected, rtol=1e-9)
    assert torch.allclose(found.ascents(points), expected, rtol=1e-9)
    assert (cost.gradients, cost.matvecs) == (rows, 0)


def test_a_secant_sees_the_kink_that_the_gradient_is_blind_to():
    """L = max(θ, 3θ): its slope is 1 to the left of 0, where the second derivative is 0."""

    def loss(outputs, targets):
        return torch.maximum(outputs, 3 * outputs)[:, 0]

    data = (torch.ones(1, 1), torch.zeros(1))
    objective = Objective(nn.Linear(1, 1, bias=False).double(), loss, data, examine=False)
    function = GradientNorm(objective, torch.tensor([-0.1], dtype=torch.float64), ROUND)
    point = torch.tensor([[0.15]], dtype=torch.float64)
    found = function(point)
    assert float(found.values) == 3.0 and float(found.ascents(point)) == 0.0
    assert found.secants is not None
    assert float(found.secants(point, 0.2)) == pytest.approx((3 - 1) / 0.2)


def two_hills(u):
    """A low hill beyond the end of the first axis, and a narrow high one beyond the second."""
    return 2 * torch.exp(-2 * (u[:, 0] - 1.5) ** 2) + 20 * torch.exp(-8 * (u[:, 1] - 1.5) ** 2)


class Hills:
    geometry, rows, value_cost, ascent_cost = ROUND, 1, 1, 0

    def __call__(self, u):
        leaf = u.clone().requires_grad_()
        (ascents,) = torch.autograd.grad(two_hills(leaf).sum(), leaf)
        return FunctionValues(two_hills(u), lambda _: ascents)


def test_converged_is_promised_once_other_starts_led_no_higher():
    axes = torch.eye(3, dtype=torch.float64)
    starts = [(f"lower {i}", axes[0] * (0.5 + 0.1 * i)) for i in range(4)]
    steps = search_steps(Hills(), radius=1.0, starts=[*starts, ("higher", axes[1])])
    drafts = [ask() for ask in steps]
    first = [draft for draft in drafts if draft.phases == 0][-1]  # at the end of its ascent
    assert first.value < 1.5 and first.status == "budget"
    assert drafts[-1].value > 2.7 and drafts[-1].status == "converged"
    assert drafts[-1].start == "higher"


def test_steps_count_what_it_took_to_find_starts_and_end():
    objective = Objective(*quadratic_task(random_symmetric([4.0, 2.0, 1.0])))
    start = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    plain = finish(gradient_norm_steps(objective, rho=1.0, starts={"start": start}))
    dear = finish(gradient_norm_steps(objective, rho=1.0, starts=[5, ("start", start), 2]))
    assert dear.gradients == plain.gradients + 7 and dear.value == plain.value
    assert plain.value == pytest.approx(4.0) and plain.status == "converged"


def test_a_model_takes_a_known_space_at_no_product():
    class Counting(SymmetricOperator):
        products = 0

        def __init__(self, matrix):
            self.matrix, self.size = matrix, len(matrix)
            self.dtype, self.device = matrix.dtype, matrix.device

        def matvec(self, vector):
            self.products += 1
            return self.matrix @ vector

    matrix, linear = quadratic(1, size=30)
    vectors = torch.linalg.qr(torch.randn(30, 4, dtype=torch.float64))[0].T.contiguous()
    space = Space(vectors, vectors @ matrix)
    operator = Counting(matrix)
    model = QuadraticModel(operator, linear, space=space, max_basis=9)
    assert operator.products == 5 and len(model.basis) == 9
    assert torch.allclose(model.products, model.basis @ matrix, atol=1e-10)
    assert torch.allclose(model.image(linear), matrix @ linear, atol=1e-9)
    value, u = model.within_basis("gradient_norm", 0.5)
    assert operator.products == 5
    assert value == pytest.approx(float((linear + matrix @ u).norm()), rel=1e-10)


@pytest.mark.parametrize("function", [LossIncrease, GradientNorm])
def test_an_ascent_that_rests_keeps_no_point_that_it_tries_and_repeats_one_that_does_not(function):
    matrix, linear = quadratic(0, size=8)
    objective = Objective(*quadratic_task(matrix, linear))
    trails, alive = list[list[float]](), 0
    for rests in (False, True):
        search = BallSearch(function(objective, objective.theta, ROUND), 1.0, tolerance=1e-12)
        iterate = search.begin("start", lambda: linear / linear.norm())
        for _ in ascend(search, iterate):
            if rests:
                tried = None if search.trial is None else weakref.ref(search.trial.u)
                begun = weakref.ref(iterate.u)
                search.rest()
                alive += tried is not None and tried() is not None
                alive += len(iterate.trail) == 1 and begun() is not None
        trails.append(iterate.trail)
    assert trails[0] == trails[1] and len(trails[0]) > 3
    assert alive == 0


def test_a_search_forgets_the_starts_of_earlier_rounds():
    objective = Objective(
        *quadratic_task(torch.diag(torch.tensor([4.0, 3.0, 1.0], dtype=torch.float64)))
    )
    drawn = []

    def starts():
        generator = torch.Generator().manual_seed(0)
        for number in range(100):
            u = torch.randn(3, generator=generator, dtype=torch.float64)
            u /= u.norm()
            drawn.append(weakref.ref(u))
            yield f"start {number}", u

    most = 0
    for _ in gradient_norm_steps(objective, rho=1.0, starts=starts()):
        most = max(most, sum(start() is not None for start in drawn))
    assert len(drawn) == 100
    # Those of a round, 36 here, and of earlier ones those in whose span walks begin, at most 17.
    assert 36 <= most <= 36 + 17 + 1


def test_of_a_large_network_a_start_that_waits_keeps_no_vector_and_is_ascended_from(monkeypatch):
    monkeypatch.setattr(rounds, "_MOST_NUMBERS", 1)  # as if there were room for two starts
    objective = Objective(
        *quadratic_task(torch.diag(torch.tensor([4.0, 3.0, 1.0], dtype=torch.float64)))
    )
    made = []

    def lower():
        u = torch.tensor([0.1, 0.0, 0.995], dtype=torch.float64)  # ‖H u‖ is 1.07, 4 can be reached
        made.append(weakref.ref(u))
        return u

    stationary = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # ‖H u‖ is 3
    starts = iter([("stationary", stationary), ("lower", lower)])
    waited, value = 0, 0.0
    for ask in gradient_norm_steps(objective, rho=1.0, starts=starts):
        waited += len(made) == 1 and made[0]() is None
        value = ask().value
    assert waited > 1 and len(made) > 1
    assert value == pytest.approx(4.0, rel=1e-9)
