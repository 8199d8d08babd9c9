"""L is one function whatever computes it, of the θ that is given, wherever it is called."""

import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

import flatkit
from flatkit import Objective
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit.flatness import max_loss_increase
from flatkit.hessian import HessianOperator
from flatkit.landscape.evaluate import evaluator
from flatkit.objective.proofs.tables import settle_tables
from tests.objective.models import (
    Attending,
    Checkpointed,
    Cutting,
    Encoder,
    Forces,
    FrozenEncoder,
    GradientPenalty,
    Learning,
    Residual,
    Telling,
)

X = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(10) % 3
MASK = torch.arange(3) >= torch.tensor([3, 2, 1, 3, 1, 2, 3, 3, 2, 1])[:, None]
FLAT = X[:, 0]


def mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().mean()


MODELS = {
    "checkpoints": (Checkpointed, (FLAT, Y), F.cross_entropy),
    "checkpoints in checkpoints": (lambda: Checkpointed(nested=True), (FLAT, Y), F.cross_entropy),
    "masked encoder": (Encoder, (X, MASK, Y), F.cross_entropy),
    "frozen masked encoder": (FrozenEncoder, (X, MASK, Y), F.cross_entropy),
    "masked attention": (Attending, (X, MASK, Y), F.cross_entropy),
    "differential equation": (Residual, (FLAT, torch.zeros(10, 1).double()), mean_squared),
    "forces": (Forces, (FLAT, torch.zeros(10, 4).double()), mean_squared),
    "gradient penalty": (GradientPenalty, (FLAT, torch.zeros(10, 1).double()), mean_squared),
    "inner step of learning": (Learning, (FLAT, torch.zeros(10, 1).double()), mean_squared),
    "asks whether gradients are on": (Telling, (FLAT, Y), F.cross_entropy),
    "parametrized": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (FLAT, Y), None),
    "sparse gradients of a function": (lambda: Cutting(sparse=True), (Y, Y), F.cross_entropy),
}


def case(name: str):
    """Return an objective, its plain mean loss as a function of θ, and a point away from it."""
    torch.manual_seed(0)
    build, data, loss = MODELS[name]
    model = build().double().eval()
    objective = Objective(model, loss or "cross_entropy", data, chunk_size=10)
    free = {key: p for key, p in model.named_parameters() if p.requires_grad}
    *inputs, targets = data

    def function(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in free.values()])
        named = {k: t.view(p.shape) for (k, p), t in zip(free.items(), parts, strict=True)}
        if isinstance(model, FrozenEncoder):  # else the fused path is the reference's as well
            model.requires_grad_(True)
        plain = model.plain() if isinstance(model, (Checkpointed, Cutting)) else model
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            outputs = functional_call(plain, named, tuple(inputs))
        return (loss or F.cross_entropy)(outputs, targets)

    away = objective.theta + 0.2 * torch.randn(objective.num_parameters).double()
    return objective, function, away


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_value_gradient_and_product_are_those_of_one_function_away_from_the_weights(name):
    objective, function, theta = case(name)
    point = theta.clone().requires_grad_()
    expected = function(point)
    (slope,) = torch.autograd.grad(expected, point, create_graph=True)
    vector = torch.randn(len(theta), generator=torch.Generator().manual_seed(1)).double()
    (product,) = torch.autograd.grad(slope, point, vector, materialize_grads=True)
    loss, gradient = objective.loss_and_gradient(theta)
    assert objective.loss(theta) == pytest.approx(loss, rel=1e-14)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    torch.testing.assert_close(gradient, slope.detach(), rtol=1e-9, atol=1e-11)
    hessian = HessianOperator(objective, theta, engine="double_backward")
    for _ in range(2):  # the graph is kept: what recomputes reads the weights once more
        torch.testing.assert_close(hessian.matvec(vector), product, rtol=1e-8, atol=1e-10)


@every_model
def test_lines_have_the_value_and_slope_of_the_same_function(name):
    objective, function, theta = case(name)
    direction = (theta - objective.theta)[None]
    quantities = ("loss", "gradient_norm")
    found = evaluator(objective, objective.theta, direction, quantities=quantities).values([[1.0]])
    alone = evaluator(objective, objective.theta, direction).values([[1.0]])
    point = theta.clone().requires_grad_()
    expected = function(point)
    (slope,) = torch.autograd.grad(expected, point)
    assert found[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-10)
    assert alone[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-10)
    assert found[0]["gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-9)


@pytest.mark.parametrize("name", ["checkpoints", "masked encoder", "gradient penalty"])
def test_the_largest_increase_in_a_small_ball_is_that_of_the_slope(name):
    objective, function, _ = case(name)
    point = objective.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(point), point)
    found = max_loss_increase(objective, rho=1e-4, budget=40)
    assert found.value == pytest.approx(1e-4 * float(slope.norm()), rel=1e-2)


@pytest.mark.parametrize("engine", ["forward_over_reverse", "reverse_over_forward", "layers"])
def test_other_engines_are_right_with_checkpoints_or_refuse(engine):
    objective, _, theta = case("checkpoints")
    vector = torch.ones_like(theta)
    expected = HessianOperator(objective, theta, engine="double_backward") @ vector
    try:
        found = HessianOperator(objective, theta, engine=engine) @ vector
    except FlatkitError:
        return
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("bare", [False, True], ids=["inputs differ", "inputs are constants"])
@pytest.mark.parametrize("examine", [True, False])
def test_re_entrant_checkpoints_are_refused_by_name(bare, examine):
    model = Checkpointed(reentrant=True, bare=bare).double()
    with pytest.raises(InvalidArgumentError, match="use_reentrant=False"):
        Objective(model, "cross_entropy", (FLAT, Y), examine=examine)


class Recomputing(torch.autograd.Function):
    """A backward pass that calls `backward`: gradients of the weights go where nobody looks."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.backward(ctx.function(leaf), gradients)
        return None, leaf.grad


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(Recomputing.apply(lambda h: self.second(h).tanh(), self.first(x)))


def test_checkpoints_of_other_makers_are_refused_too():
    with pytest.raises(InvalidArgumentError, match="use_reentrant=False"):
        Objective(ByHand().double(), "cross_entropy", (FLAT, Y), examine=False).gradient()


# --- what is around the call ---------------------------------------------------------------------

AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "cached parametrizations": parametrize.cached,
}


def numbers(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    measures = ["loss", "gradient_norm", "top_eigenvalues", "trace"]
    report = flatkit.analyze(model, "cross_entropy", (x, y), measures=measures)
    top = report.result("top_eigenvalues")
    eigenvalue, error = top.value[0], top.error
    assert error is not None
    return [report.result(name).value for name in measures if name != "top_eigenvalues"] + [
        eigenvalue
    ]


@pytest.mark.parametrize("name", AROUND)
def test_contexts_around_a_call_change_no_number(name):
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    x, y = FLAT.float(), Y
    expected = numbers(model, x, y)
    with AROUND[name]():
        model(x) if name == "cached parametrizations" else None
        found = numbers(model, x, y)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", AROUND)
def test_contexts_around_single_steps_change_no_number(name):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (FLAT.float(), Y)
    plain = Objective(model, "cross_entropy", data)
    theta, vector = plain.theta + 0.1, torch.ones(plain.num_parameters)
    expected = plain.loss(theta), plain.gradient(theta), HessianOperator(plain, theta) @ vector
    with AROUND[name]():
        objective = Objective(model, "cross_entropy", data)
        found = (
            objective.loss(theta),
            objective.gradient(theta),
            HessianOperator(objective, theta) @ vector,
        )
        ball = max_loss_increase(objective, rho=0.01, budget=20).value
    assert found[0] == expected[0]
    for here, there in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    assert ball == pytest.approx(max_loss_increase(plain, rho=0.01, budget=20).value, rel=1e-4)


def test_tensors_of_the_inference_mode_are_measured():
    with torch.inference_mode():
        model, x = nn.Linear(4, 3), FLAT.float() * 1.0
    objective = Objective(model, "cross_entropy", (x, Y))
    assert objective.gradient().norm() > 0 and math.isfinite(objective.loss())


# --- tracing -------------------------------------------------------------------------------------


class Watching(nn.Module):
    """Runs another model in a thread, whenever it is run or traced."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__()
        self.a, self.b, self.failures = nn.Linear(4, 5), nn.Linear(5, 3), failures
        self.other = [nn.Sequential(nn.Linear(4, 4), nn.Tanh())]  # in a list: no part of this one

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self.run_other)
        thread.start()
        thread.join()
        return self.b(torch.tanh(self.a(x)) * math.sqrt(self.a.weight.shape[1]))

    def run_other(self) -> None:
        try:
            self.other[0](torch.ones(2, 4))
            assert math.sqrt(4.0) == 2.0 and isinstance(self.other[0][0].weight, nn.Parameter)
        except Exception as error:  # whatever happens in the user's thread
            self.failures.append(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("measure", ["top_eigenvalues", "loss_slice"])
def test_models_of_other_threads_run_while_one_is_traced(measure):
    failures: list[str] = []
    data = (FLAT.float(), Y)
    flatkit.analyze(Watching(failures), "cross_entropy", data, measures=[measure])
    assert not failures


def test_the_largest_increase_around_a_maximum_is_none():
    data = torch.ones(4, 1), torch.zeros(4, 1)
    layer = nn.Linear(1, 1, bias=False)
    objective = Objective(layer, lambda a, b: -(a - b).square().mean(1), data)
    found = max_loss_increase(objective, torch.zeros(1), rho=0.5)
    assert found.value == 0 and not found.displacement.any()


def test_searches_of_encoders_leave_their_fused_paths_alone(recwarn):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(7, 4), encoder, nn.Flatten(), nn.Linear(12, 3)).eval()
    data = torch.randint(0, 7, (6, 3)), torch.randint(0, 3, (6,))
    flatkit.analyze(model, "cross_entropy", data, measures=["first_order_flatness"], rho=[0.01])
    assert not [warning for warning in recwarn if "batching rule" in str(warning.message)]


WORDS = torch.randint(9, (12, 5), generator=torch.Generator().manual_seed(1))


class Bag(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.EmbeddingBag(9, 4, **settings), nn.Linear(4, 3)

    def forward(self, words):
        return self.out(torch.tanh(self.table(words)))


BAGS = {
    "sum": ({"mode": "sum", "sparse": True}, lambda found, counts: (found * counts).sum(1)),
    "mean": ({}, lambda found, counts: found.mean(1)),
    "max": ({"mode": "max"}, lambda found, counts: found.amax(1)),
    "without padding": (
        {"padding_idx": 2},
        lambda found, counts: (found * counts).sum(1) / counts.sum(1).clamp(min=1),
    ),
    "of bounded length": (
        {"max_norm": 1.5},
        lambda found, counts: (found * (1.5 / found.norm(dim=2, keepdim=True)).clamp(max=1)).mean(
            1
        ),
    ),
}


@pytest.mark.parametrize("name", BAGS)
def test_bags_of_vectors_have_second_derivatives(name):
    settings, mean = BAGS[name]
    words, labels = WORDS.clone(), torch.arange(12) % 3
    words[4] = 2  # a bag of nothing but padding, where that is left out
    counts = (words != settings.get("padding_idx", -1)).double()[..., None]
    model = Bag(**settings).double()
    objective = Objective(model, "cross_entropy", (words, labels))
    names, sizes = objective.space.names, objective.space.sizes

    def loss(theta: Tensor) -> Tensor:
        parts = dict(zip(names, theta.split(sizes), strict=True))
        bags = mean(parts["table.weight"].view(9, 4)[words], counts)
        scores = torch.tanh(bags) @ parts["out.weight"].view(3, 4).T + parts["out.bias"]
        return F.cross_entropy(scores, labels)

    theta = objective.theta
    tolerance: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}  # torch adds 1e-7 to a norm
    assert objective.loss() == pytest.approx(float(loss(theta)), rel=1e-6)
    expected = torch.autograd.functional.hessian(loss, theta)
    found = HessianOperator(objective).matmat(torch.eye(len(theta)).double())
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True], ids=["offsets", "with the last offset"])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64], ids=str)
def test_bags_by_offsets_and_weights_are_those_of_torch(mode, last, whole):
    table = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=2, include_last_offset=last).double()
    offsets = torch.tensor([0, 3, 3, 40, 60] if last else [0, 3, 3, 40], dtype=whole)
    weights = torch.rand(60).double() if mode == "sum" else None
    words = WORDS.flatten().to(whole)
    expected = table(words, offsets, weights)
    settle_tables(table)
    torch.testing.assert_close(table(words, offsets, weights), expected)
