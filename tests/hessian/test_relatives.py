"""Gauss-Newton and Fisher products against JᵀBJ, dense, for outputs of every shape and container.

The references are Jacobians and Hessians of torch on functions that are written out here.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.hessian import FisherOperator, GaussNewtonOperator
from flatkit.hessian.gauss_newton import _Positive
from tests.cases import SineOnce

Parts = tuple[Tensor, ...]
N, T, C = 11, 3, 4


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@dataclass(frozen=True)
class Net:
    """A model, its data, and the loss of every sample of its outputs.

    `parts` are the tensors among the outputs, `whole` puts them together again.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    inputs: Callable[[], Tensor] = lambda: torch.randn(N, 4, dtype=torch.float64)
    targets: Callable[[], Tensor] = lambda: torch.randint(0, C, (N,))
    parts: Callable[[Any], Parts] = lambda outputs: (outputs,)
    whole: Callable[[Parts], Any] = lambda parts: parts[0]


class Tokens(nn.Module):
    """Scores of the tokens of sequences, in the layout that `shape` makes of [B, T, C]."""

    def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.out, self.shape = nn.Embedding(5, 3), nn.Linear(3, C), shape

    def forward(self, words: Tensor) -> Tensor:
        return self.shape(self.out(torch.tanh(self.table(words))))


class TwoHeads(nn.Module):
    """Outputs of which one is made from another."""

    def __init__(self, together: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.together = nn.Linear(4, 3), nn.Linear(3, C), together

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        return self.together(self.second(hidden), hidden)


class Padded(nn.Module):
    """Padding with a value, which is no linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.pad(torch.tanh(self.first(x)), (1, 1), value=1.0))


class OfTensors(nn.Module):
    """Another function of what is no tensor, such as a symbol of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, C)

    def forward(self, x: Any) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.second(hidden if isinstance(x, Tensor) else 2 * hidden)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(2, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(torch.tanh(self.weight(x)))


class Once(nn.Module):
    def __init__(self, sine: Callable[[Tensor], Tensor] = SineOnce.apply) -> None:  # pyright: ignore
        super().__init__()
        self.first, self.second, self.sine = nn.Linear(4, 3), nn.Linear(3, C), sine

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.sine(self.first(x)))


def flat_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.flatten(), reduction="none").view(-1, T).mean(1)


def time_first(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.permute(1, 2, 0), targets, reduction="none").mean(1)


def both(scores: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(scores, targets) + hidden.pow(4).sum(1)


def words() -> Tensor:
    return torch.randint(0, C, (N, T))


def sequence() -> Tensor:
    return torch.randn(N, T, 2, dtype=torch.float64)


NETS = [
    Net("tokens [B·T, C]", lambda: Tokens(lambda z: z.flatten(0, 1)), flat_tokens, words, words),
    Net("tokens [T, B, C]", lambda: Tokens(lambda z: z.transpose(0, 1)), time_first, words, words),
    Net(
        "dictionary",
        lambda: TwoHeads(lambda z, h: {"hidden": h, "logits": z}),
        lambda out, y: both(out["logits"], out["hidden"], y),
        parts=lambda out: (out["hidden"], out["logits"]),
        whole=lambda parts: dict(zip(("hidden", "logits"), parts, strict=True)),
    ),
    Net(
        "tuple",
        lambda: TwoHeads(lambda z, h: (z, [h, None])),
        lambda out, y: both(out[0], out[1][0], y),
        parts=lambda out: (out[0], out[1][0]),
        whole=lambda parts: (parts[0], [parts[1], None]),
    ),
    Net(
        "an output that the loss does not use",
        lambda: TwoHeads(lambda z, h: (z, h)),
        lambda out, y: cross_entropy(out[0], y),
        parts=lambda out: (out[0],),
        whole=lambda parts: (parts[0], None),
    ),
    Net("padding with a value", Padded),
    Net("lstm", lambda: Recurrent(nn.LSTM(2, 2, batch_first=True)), inputs=sequence),
    Net("gru", lambda: Recurrent(nn.GRU(2, 2, batch_first=True)), inputs=sequence),
    Net("tied weights", Tied),
    Net("no second derivative", Once),
]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


def truths(net: Net, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gauss-Newton and the Fisher matrix, dense."""
    if net.name == "no second derivative":
        model = copy.deepcopy(model)
        model.sine = torch.sin  # pyright: ignore
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]
    theta = torch.cat([p.detach().flatten() for p in named.values()])

    def outputs(point: Tensor) -> Any:
        pieces = zip(named.items(), point.split(sizes), strict=True)
        return functional_call(model, {name: t.view_as(p) for (name, p), t in pieces}, (x,))

    shapes = [part.shape for part in net.parts(outputs(theta))]

    def flat(point: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in net.parts(outputs(point))])

    def loss(z: Tensor) -> Tensor:
        parts = z.split([shape.numel() for shape in shapes])
        whole = net.whole(tuple(p.view(s) for p, s in zip(parts, shapes, strict=True)))
        return net.loss(whole, y).mean()

    jacobian = torch.autograd.functional.jacobian(flat, theta)
    bend = torch.autograd.functional.hessian(loss, flat(theta).detach())
    rows = torch.autograd.functional.jacobian(lambda t: net.loss(outputs(t), y), theta)
    return jacobian.T @ bend @ jacobian, rows.T @ rows / len(rows)


@every_net
def test_products_equal_the_dense_matrices_however_the_samples_are_cut(net):
    torch.manual_seed(0)
    model, x, y = net.build().double(), net.inputs(), net.targets()
    newton, fisher = truths(net, model, x, y)
    for chunk_size in (1, 5, N):
        objective = Objective(model, net.loss, (x, y), chunk_size=chunk_size)
        vectors = torch.randn(objective.num_parameters, 3, dtype=torch.float64)
        for operator, truth in (
            (GaussNewtonOperator(objective), newton),
            (FisherOperator(objective), fisher),
        ):
            off = float((operator @ vectors - truth @ vectors).norm() / (truth @ vectors).norm())
            assert off < 1e-8, (type(operator), chunk_size, off, operator.settings)


@pytest.mark.parametrize("kind", [GaussNewtonOperator, FisherOperator])
def test_wrong_layers_are_found_out_and_right_ones_are_used(kind: type[_Positive]):
    torch.manual_seed(0)
    data = torch.randn(N, 4, dtype=torch.float64), torch.randint(0, C, (N,))
    wrong = kind(Objective(OfTensors().double(), "cross_entropy", data))
    assert wrong.settings["engine"] == "double_backward"
    assert "exceeds" in wrong.settings["engines_rejected"]["layers"]
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, C)).double()
    right = kind(Objective(plain, "cross_entropy", data))
    assert right.settings["engine"] == "layers" and right.settings["engine_error"] < 1e-12
    once = kind(Objective(Once().double(), "cross_entropy", data))
    assert once.settings["engine_error"] < 1e-6


def test_a_mean_loss_has_a_gauss_newton_matrix_but_no_fisher_matrix():
    net = NETS[0]
    torch.manual_seed(0)
    model, x, y = net.build().double(), net.inputs(), net.targets()
    objective = Objective(model, lambda z, t: F.cross_entropy(z, t.flatten()), (x, y), chunk_size=4)
    newton, _ = truths(net, model, x, y)
    operator = GaussNewtonOperator(objective)
    vectors = torch.randn(operator.size, 3, dtype=torch.float64)
    torch.testing.assert_close(operator @ vectors, newton @ vectors, rtol=0, atol=1e-10)
    with pytest.raises(InvalidArgumentError, match="one value per sample"):
        FisherOperator(objective).matvec(objective.theta)


class OwnLoss(nn.Module):
    """A model that computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, C)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = self.out(x)
        return {"loss": F.cross_entropy(z, labels), "logits": z}


def test_where_the_model_computes_the_loss_there_is_no_gauss_newton_matrix():
    data = {"x": torch.randn(N, 4), "labels": torch.randint(0, C, (N,))}
    objective = Objective(OwnLoss(), "model", data)
    with pytest.raises(InvalidArgumentError, match="computes its loss itself"):
        GaussNewtonOperator(objective).matvec(objective.theta)
