"""Gradients that are no derivatives are refused by name; kinks, 32 bits and padding are not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.errors import WrongGradientError


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


X, Y = numbers(30, 6), torch.arange(30) % 3
WORDS = torch.randint(0, 9, (30, 4), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network whose hidden layer is bent by a function."""

    def __init__(self, bend):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.bend = nn.Linear(6, 8), nn.Linear(8, 3), bend

    def forward(self, x):
        return self.last(self.bend(self.first(x)))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def straight_through(function):
    return lambda h: torch.tanh(h) + (function(h) - torch.tanh(h)).detach()


def without_gradient(h):
    with torch.no_grad():
        return torch.tanh(h)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Parameter(torch.randn(9, 4)), nn.Linear(16, 3)

    def forward(self, words):
        return self.last(F.embedding(words, self.table, padding_idx=0).flatten(1))


class Jump(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.last = nn.Parameter(torch.zeros(3)), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(x) + (self.gate >= 0).to(x) + 0 * self.gate


def focal(outputs, targets):
    values = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-values)).detach() ** 2 * values


SAME, CE = (lambda h: h), "cross_entropy"
WRONG = {
    "sign": (lambda: Net(straight_through(torch.sign)), CE, X, "first.weight.*straight-through"),
    "round": (lambda: Net(straight_through(torch.round)), CE, X, "first.weight.*straight-through"),
    "fake quantisation": (
        lambda: Net(lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)),
        CE,
        X,
        "first.weight.*does not change with it",
    ),
    "detach": (lambda: Net(torch.Tensor.detach), CE, X, "first.weight.*no gradient.*detached"),
    "no_grad": (lambda: Net(without_gradient), CE, X, "first.bias.*no gradient.*detached"),
    "reversed": (lambda: Net(Reversed.apply), CE, X, "first.weight.*custom backward"),
    "a detached factor of the loss": (lambda: Net(SAME), focal, X, "last.weight.*detached part"),
    "F.embedding": (Table, CE, WORDS, "table: rows without gradient.*padding_idx"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_no_derivative_is_refused_and_named(name, dtype):
    make, loss, inputs, words = WRONG[name]
    with pytest.raises(WrongGradientError, match=f"(?s)not the derivative.*{words}"):
        Objective(make(), loss, (inputs, Y), dtype=dtype)
    found = Objective(make(), loss, (inputs, Y), dtype=dtype, examine=False)
    assert found.examination["gradient"].passed is None and found.gradient().isfinite().all()


def test_a_jump_at_the_point_is_refused():
    with pytest.raises(WrongGradientError, match="jumps at this point"):
        Objective(Jump(), CE, (X, Y))


def test_a_refusal_says_nothing_of_the_checks_that_passed():
    with pytest.raises(WrongGradientError, match=r"unproved$"):
        Objective(Net(torch.Tensor.detach), CE, (X, Y))


def zeros():
    model = Net(torch.relu)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def without_bias():
    model = Net(torch.relu)
    nn.init.zeros_(model.first.bias)
    return model


def pooled():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))


IMAGES = F.pad(numbers(30, 1, 3, 3).abs(), (2, 3, 2, 3))  # ties of maxima in the margins


def deep():
    torch.manual_seed(0)
    layers = [layer for _ in range(9) for layer in (nn.Linear(6, 6), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(6, 3))


RIGHT = {
    "deep with kinks": (deep, X, ""),
    "all weights zero": (zeros, X, ""),
    "a kink at the point": (without_bias, X * (Y == 0)[:, None], ""),
    "ties of a maximum": (pooled, IMAGES, ""),
    "steps of several kinds": (lambda: Net(nn.Sequential(nn.Hardtanh(), nn.Hardswish())), X, ""),
    "flat steps": (lambda: Net(torch.round), X, ""),  # 0 is the derivative, almost everywhere
    "32 bits inside": (lambda: Net(lambda h: torch.tanh(h).float().to(h.dtype)), X, ""),
    "constants of 32 bits": (lambda: Net(lambda h: h.relu() @ torch.eye(8)), X, "coarsely"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_kinks_and_32_bits_are_not_called_wrong(name):
    make, inputs, words = RIGHT[name]
    check = Objective(make(), CE, (inputs, Y)).examination["gradient"]
    assert check.passed and check.error is not None and check.error < 1e-2
    assert words in check.how


class Reader(nn.Module):
    """Reads padded places too; `tied` also scores words by the table."""

    def __init__(self, tied, padding: int | None = 0, **more):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, padding_idx=padding, **more)
        nn.init.normal_(self.table.weight)
        self.last, self.tied = nn.Linear(4, 3, bias=not tied), tied

    def forward(self, words):
        hidden = torch.tanh(self.table(words)).mean(1)
        return hidden @ self.table.weight.T if self.tied else self.last(hidden)


@pytest.mark.parametrize("tied", [False, True])
def test_vectors_of_padding_are_held_constant_and_named(tied):
    """Against a table whose looked-up row 0 is a constant, differentiated densely."""
    model = Reader(tied).double()
    if tied:
        model.last = nn.Identity()  # pyright: ignore
    objective = Objective(model, CE, (WORDS, Y), chunk_size=7)
    parts = {name: p.detach() for name, p in model.named_parameters()}
    row = parts["table.weight"][0]

    def value(theta):
        pieces = theta.split([part.numel() for part in parts.values()])
        table, *rest = (t.view_as(p) for t, p in zip(pieces, parts.values(), strict=True))
        found = torch.where((WORDS == 0)[..., None], row, table[WORDS])
        hidden = torch.tanh(found).mean(1)
        outputs = hidden @ table.T if tied else F.linear(hidden, *rest)
        return F.cross_entropy(outputs, Y)

    theta = torch.cat([part.flatten() for part in parts.values()])
    away = theta + 0.3 * torch.linspace(-1, 1, len(theta)).double()
    assert objective.loss(away) == pytest.approx(float(value(away)), rel=1e-12)
    for point in (theta, away):
        gradient = torch.autograd.functional.jacobian(value, point)
        torch.testing.assert_close(objective.gradient(point), gradient)
    hessian = torch.autograd.functional.hessian(value, theta)
    vector = torch.linspace(1, 2, len(theta)).double()
    torch.testing.assert_close(HessianOperator(objective) @ vector, hessian @ vector)  # pyright: ignore
    assert "table.weight" in objective.examination["padding"].how
    assert model.table.padding_idx == 0 and type(model.table) is nn.Embedding


@pytest.mark.parametrize("padding", [None, 0])
def test_vectors_that_a_table_scales_are_differentiated(padding):
    model = Reader(False, padding, max_norm=0.5).double()
    objective = Objective(model, CE, (WORDS, Y))
    expected = F.cross_entropy(model(WORDS), Y)  # scales the rows of the user's table in place
    assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-6)
    step = 1e-5 * torch.linspace(-1, 1, objective.num_parameters).double()
    change = objective.loss(objective.theta + step) - objective.loss(objective.theta - step)
    assert float(objective.gradient() @ step) == pytest.approx(change / 2, rel=1e-5)


@pytest.mark.parametrize(("scale", "proved"), [(1.0, True), (45.0, None)])
def test_a_loss_that_vanishes_is_too_flat_to_prove_and_no_wrong_gradient(scale, proved):
    # log-softmax gives a difference of logits of 45 as 0 or 2e-16: differences of it tell nothing
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(scale * torch.eye(4) + 0.1 * torch.randn(4, 4))
    data = (torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3))
    check = Objective(model, "cross_entropy", data).examination["gradient"]
    assert check.passed is proved, check
    assert proved or "too flat" in check.how


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_signs_of_orthogonal_weights_are_held_constant_and_named(shape):
    """Against reflections I - 2 v v'/v'v multiplied one by one, whose signs are numbers."""
    torch.manual_seed(0)
    model = nn.utils.parametrizations.orthogonal(nn.Linear(*shape, bias=False)).double()
    x, y = numbers(30, shape[0]).double(), numbers(30, shape[1]).double()
    objective = Objective(model, "mse", (x, y), chunk_size=7)
    given: Any = model.parametrizations["weight"]  # pyright: ignore
    first, base = given.original.detach(), given[0].base
    wide = first.shape[0] < first.shape[1]
    signs = first.diagonal()

    def value(theta):
        kept = theta.view(first.shape)
        low = (kept.mT if wide else kept).tril(-1) + torch.eye(6, 4).double()
        turned = torch.eye(6).double()
        for v in low.unbind(1):
            turned = turned - 2 * turned @ torch.outer(v, v) / (v @ v)
        weight = base @ (turned[:, :4] * signs)
        return (x @ (weight if wide else weight.mT) - y).square().mean()

    theta = first.flatten()
    gradient = torch.autograd.functional.jacobian(value, theta)
    hessian = torch.autograd.functional.hessian(value, theta)
    vector = torch.linspace(1, 2, len(theta)).double()
    assert objective.loss() == pytest.approx(float(value(theta)), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), gradient)
    torch.testing.assert_close(HessianOperator(objective) @ vector, hessian @ vector)  # pyright: ignore
    assert "parametrizations.weight.original" in objective.examination["signs"].how


def test_gradients_that_a_table_scales_by_frequency_are_not_what_is_measured():
    plain, scaled = Reader(False, None), Reader(False, None, scale_grad_by_freq=True)
    scaled.load_state_dict(plain.state_dict())
    one, other = (Objective(model.double(), CE, (WORDS, Y)) for model in (plain, scaled))
    torch.testing.assert_close(one.gradient(), other.gradient())
    assert scaled.table.scale_grad_by_freq
