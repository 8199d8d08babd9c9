"""A loss that reads what the forward pass keeps in the model reads that of the same pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import flatkit
from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(20) % 3


class Keeps(nn.Module):
    """Keeps a penalty in one of several places."""

    def __init__(self, place: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.place, self.stash, self.penalties = place, dict[str, Any](), list[Tensor]()
        self.register_buffer("kept", torch.tensor(0.0, dtype=torch.float64))
        self.penalty: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(inputs))
        penalty = hidden.pow(4).mean()
        match self.place:
            case "attribute":
                self.penalty = penalty
            case "layer":
                self.inner.penalty = penalty  # pyright: ignore
            case "dictionary":
                self.stash["penalty"] = penalty
            case "buffer":
                self.kept = penalty
            case _:
                self.penalties.append(penalty)
        return self.head(hidden)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets) + self.read()

    def read(self) -> Any:
        match self.place:
            case "attribute":
                return self.penalty
            case "layer":
                return self.inner.penalty
            case "dictionary":
                return self.stash["penalty"]
            case "buffer":
                return self.kept
            case _:
                found = sum(self.penalties)
                self.penalties.clear()
                return found


PLACES = ["attribute", "layer", "dictionary", "buffer", "list"]


def losses_of(model: Keeps) -> dict[str, Any]:
    """Return three losses that read it: a method, a function, an object."""

    class Reads:
        def __init__(self) -> None:
            self.network = model

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.network.loss(outputs, targets)

    return {
        "method": model.loss,
        "function": lambda outputs, targets: model.loss(outputs, targets),
        "object": Reads(),
    }


def dense(model: Keeps) -> tuple[float, Tensor, Tensor]:
    """Return loss, gradient and Hessian by torch alone."""
    parameters = list(model.parameters())
    loss = model.loss(model(X), Y)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([slope.flatten() for slope in slopes])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in gradient]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return loss.item(), gradient.detach(), hessian


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "run before"])
@pytest.mark.parametrize("form", ["method", "function", "object"])
@pytest.mark.parametrize("place", PLACES)
def test_what_the_forward_pass_keeps_is_read_by_the_loss(place, form, earlier):
    loss, gradient, hessian = dense(Keeps(place))
    model = Keeps(place)
    if earlier and place != "list":  # what is kept then is a constant
        with torch.no_grad():
            model(X)
    objective = Objective(model, losses_of(model)[form], (X, Y), chunk_size=20)
    assert objective.loss() == pytest.approx(loss, rel=1e-12)
    assert torch.allclose(objective.gradient(), gradient, rtol=1e-10)
    operator = HessianOperator(objective)
    found = torch.stack([operator @ row for row in torch.eye(len(gradient)).double()])
    assert torch.allclose(found, hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("place", PLACES)
def test_what_the_user_keeps_stays_as_it_was(place):
    model = Keeps(place)
    marks: Any = object()
    model.penalty = model.stash["penalty"] = marks
    before = model.kept
    flatkit.analyze(model, model.loss, (X, Y), measures=["gradient_norm"])
    assert model.penalty is marks
    assert model.stash == {"penalty": marks}
    assert model.kept is before
    assert model.penalties == []
    assert not hasattr(model.inner, "penalty")


class Masks(nn.Module):
    """Keeps which of its inputs count: a constant, but one of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mask = nn.Linear(4, 4), torch.zeros(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self.mask = (inputs > 0).to(inputs.dtype)
        return self.layer(inputs * (1 - self.mask))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).square() * self.mask).mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constants_of_a_batch_that_are_kept_are_those_of_the_copy_that_runs(dtype):
    model, inputs = Masks(), X.float()
    expected = model.loss(model(inputs), inputs).mean().item()
    model.mask = torch.ones(1, 4)  # of an earlier call
    objective = Objective(model, model.loss, (inputs, inputs), dtype=dtype, chunk_size=7)
    assert objective.loss() == pytest.approx(expected, rel=0.02 if dtype.itemsize == 2 else 1e-6)


def test_products_of_chunks_read_what_was_kept_of_each():
    model, inputs = Masks(), X.float()
    model.layer.weight.data.mul_(3)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).pow(4) * model.mask).mean(1)

    parameters = list(model.parameters())
    total = loss(model(inputs), inputs).mean()
    slopes = torch.autograd.grad(total, parameters, create_graph=True)
    direction = [torch.ones_like(parameter) for parameter in parameters]
    parts = torch.autograd.grad(slopes, parameters, direction)
    expected = torch.cat([part.flatten() for part in parts])
    operator = HessianOperator(Objective(model, loss, (inputs, inputs), chunk_size=6))
    assert torch.allclose(operator @ torch.ones_like(expected), expected, rtol=1e-4)


def test_in_16_bits_the_reason_is_named():
    model = Keeps("attribute")
    with pytest.raises(InvalidArgumentError, match="reads what the forward pass keeps"):
        Objective(model, model.loss, (X, Y), dtype=torch.bfloat16)


def test_kept_things_of_batches_that_cannot_be_cut_are_refused():
    model = Keeps("attribute")

    class Graph:
        def __init__(self, items: list[Any]) -> None:
            self.x, self.y = torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, graph: Graph) -> Tensor:
            return self.network(graph.x)

    whole = Reads()

    def loss(outputs: Tensor, graph: Graph) -> Tensor:
        return whole.network.loss(outputs, graph.y)

    data: Any = list(zip(X, Y, strict=True))
    loader = DataLoader(data, batch_size=5, collate_fn=Graph)
    with pytest.raises(InvalidArgumentError, match="return what is kept as one of the outputs"):
        Objective(whole, loss, loader)
