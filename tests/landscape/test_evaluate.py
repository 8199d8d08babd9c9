"""Points of a plane against plain loops that share no code with it."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions.eigenvectors import Eigenvectors
from flatkit.landscape.directions.kind import Request
from flatkit.landscape.evaluate import batches, evaluator
from flatkit.landscape.settings import LandscapeSettings
from tests.cases import CASES, reference_function

EVERY = ("loss", "accuracy", "gradient_norm")
STEPS = [[0.0, 0.0], [0.3, -0.2], [-1.0, 0.5], [0.0, 0.7]]


def setup(case, **settings):
    objective = Objective(case.build(), case.loss, case.data(), **settings)
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(2, objective.num_parameters, generator=generator).double()
    return objective, directions


def small(act: type[nn.Module] = nn.ReLU, widths=(6, 8, 7, 3), n=40):
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    model = nn.Sequential(*layers[:-1]).double()
    data = torch.randn(n, widths[0]).double(), torch.randint(0, widths[-1], (n,))
    return model, data


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("quantities", [("loss",), EVERY])
def test_every_quantity_is_that_of_the_moved_model(case, quantities):
    objective, directions = setup(case, chunk_size=9)
    evaluate = evaluator(objective, objective.theta, directions, quantities=quantities)
    function, theta = reference_function(case)
    found = [values for part in batches(STEPS, evaluate.batch) for values in evaluate.values(part)]
    for (a, b), values in zip(STEPS, found, strict=True):
        point = (theta + a * directions[0] + b * directions[1]).requires_grad_()
        loss = function(point)
        assert values["loss"] == pytest.approx(float(loss.detach()), rel=1e-11)
        if "gradient_norm" in quantities:
            (gradient,) = torch.autograd.grad(loss, point)
            assert values["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-10)


def test_small_networks_take_several_points_at_once_and_others_do_not():
    model, data = small()
    objective = Objective(model, "cross_entropy", data)
    directions = torch.randn(2, objective.num_parameters).double()
    assert evaluator(objective, objective.theta, directions).batch == 64
    for case in CASES:
        if case.name in {"batchnorm convolution", "attention", "dropout and layernorm"}:
            objective, directions = setup(case)
            assert evaluator(objective, objective.theta, directions).batch == 1, case.name


@pytest.mark.parametrize("chunk_size", [40, 13])
def test_many_points_at_once_are_those_one_by_one(chunk_size):
    model, (x, y) = small(nn.Tanh)
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=chunk_size)
    directions = torch.randn(2, objective.num_parameters).double()
    evaluate = evaluator(objective, objective.theta, directions, quantities=("loss", "accuracy"))
    assert evaluate.batch > len(STEPS)
    parameters = list(model.parameters())
    for steps, values in zip(STEPS, evaluate.values(STEPS), strict=True):
        point = objective.theta + torch.tensor(steps, dtype=torch.float64) @ directions
        with torch.no_grad():
            for p, part in zip(
                parameters, point.split([p.numel() for p in parameters]), strict=True
            ):
                p.copy_(part.view_as(p))
            outputs = model(x)
        assert values["loss"] == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-12)
        assert values["accuracy"] == float((outputs.argmax(1) == y).double().mean())


def test_layers_that_mix_points_fall_back_to_one_by_one():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(self.first(x).softmax(dim=0))  # over the samples

    _, data = small()
    objective = Objective(Mixing().double(), "cross_entropy", data)
    directions = torch.randn(2, objective.num_parameters).double()
    assert evaluator(objective, objective.theta, directions).batch == 1


def test_the_centre_is_the_checkpoint_bit_for_bit_and_nothing_of_it_moves():
    model, data = small()
    objective = Objective(model.float(), "cross_entropy", (data[0].float(), data[1]))
    before = objective.theta.clone()
    directions = torch.randn(2, objective.num_parameters)
    for batched in (True, False):
        evaluate = evaluator(objective, objective.theta, directions, batched=batched)
        found = evaluate.values(STEPS) if batched else [evaluate.values([s])[0] for s in STEPS]
        assert found[0]["loss"] == objective.loss()
    assert torch.equal(objective.theta, before)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)


def test_the_loss_is_always_among_the_values():
    model, data = small()
    objective = Objective(model, "cross_entropy", data)
    directions = torch.randn(2, objective.num_parameters).double()
    for batched in (True, False):
        evaluate = evaluator(
            objective, objective.theta, directions, quantities=("accuracy",), batched=batched
        )
        assert evaluate.batch == (64 if batched else 1)
        for steps in STEPS:
            assert evaluate.values([steps])[0].keys() == {"loss", "accuracy"}


def test_the_cost_is_counted_in_points():
    model, data = small()
    objective = Objective(model, "cross_entropy", data)
    directions = torch.randn(1, objective.num_parameters).double()
    evaluate = evaluator(objective, objective.theta, directions)
    assert objective.cost.losses == 0
    evaluate.values([[0.1], [0.2], [0.0]])
    assert objective.cost.losses == 3


def test_statistics_are_estimated_again_at_every_point():
    case = next(case for case in CASES if "batchnorm" in case.name)
    objective, directions = setup(case)
    evaluate = evaluator(objective, objective.theta, directions, statistics="reestimate")
    found = evaluate.values([[0.2, 0.1]])[0]["loss"]
    model, (x, y) = case.build(), case.data()
    point = objective.theta + 0.2 * directions[0] + 0.1 * directions[1]
    torch.nn.utils.vector_to_parameters(point, model.parameters())
    model[1].momentum = None  # type: ignore[index]
    model[1].reset_running_stats()  # type: ignore[index]
    with torch.no_grad():
        model.train()(x)
        expected = float(F.cross_entropy(model.eval()(x), y))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found != pytest.approx(
        evaluator(objective, objective.theta, directions).values([[0.2, 0.1]])[0]["loss"], rel=1e-3
    )


def test_directions_of_another_network_and_useless_statistics_are_refused():
    model, data = small()
    objective = Objective(model, "cross_entropy", data)
    with pytest.raises(InvalidArgumentError, match="another architecture"):
        evaluator(objective, objective.theta, torch.zeros(2, 5))
    with pytest.raises(InvalidArgumentError, match="BatchNorm"):
        directions = torch.zeros(2, objective.num_parameters)
        evaluator(objective, objective.theta, directions, statistics="reestimate")


class Cube(torch.autograd.Function):
    """x³, of whose slope autograd takes the derivative for zero."""

    @staticmethod
    def forward(ctx, x):  # pyright: ignore
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore
        (x,) = ctx.saved_tensors
        return 3 * x.square() * gradient


class Cubes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return Cube.apply(self.layer(x))


def test_curvature_that_autograd_has_wrong_is_that_of_the_loss_on_lines_too():
    model = Cubes().double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()

    def loss(theta):
        return (F.linear(x, theta[:6].view(2, 3), theta[6:]) ** 3 - y).square().mean()

    objective = Objective(model, "mse", (x, y))
    line = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).double()
    single = evaluator(objective, objective.theta, line, quantities=("top_eigenvalue",))
    steps = [[-0.5], [0.0], [0.5]]
    for (t,), (found,) in ((step, single.values([step])) for step in steps):
        truth = torch.autograd.functional.hessian(loss, objective.theta + t * line[0])
        top = float(torch.linalg.eigvalsh(truth)[-1])  # pyright: ignore[reportArgumentType]
        assert abs(found["top_eigenvalue"] - top) <= found["top_eigenvalue_residual"] < 0.01 * top
    subspace = Eigenvectors().make(Request(objective, LandscapeSettings(dimensions=1)))
    truth = torch.autograd.functional.hessian(loss, objective.theta)
    _, vectors = torch.linalg.eigh(truth)  # pyright: ignore
    assert abs(float(vectors[:, -1] @ subspace.vectors[0])) == pytest.approx(1, abs=1e-6)
