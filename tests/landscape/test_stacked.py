"""Many points in a pass against moved copies of the network, one at a time, in plain PyTorch."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import vector_to_parameters

from flatkit import Objective
from flatkit.landscape import LandscapeJob, Subspace
from flatkit.landscape.evaluate import evaluator
from flatkit.objective.losses import CrossEntropy

STEPS = [[0.3, -0.2], [-1.0, 0.5], [0.0, 0.7], [0.4, 0.0]]


class Skip(nn.Module):
    """Uses what a layer gave a second time, after its activation."""

    def __init__(self, act: Callable = F.relu):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.act = act

    def forward(self, x):
        h = self.first(x)
        h = h + self.act(h)
        again = self.middle(h)
        return self.last(self.act(again) - 0.1 * again)


class Twice(nn.Module):
    """Has one layer on the inputs and again further on."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.sigmoid(self.layer(x)))))


class TwoInputs(nn.Module):
    """Has two first layers, and ends in an activation."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(3, 7), nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x):
        return torch.relu(self.last(torch.tanh(self.one(x[:, :3]) * self.two(x))))


class OnTheSide(nn.Module):
    """Keeps an activation of what it returns."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x):
        outputs = self.last(torch.tanh(self.first(x)))
        self.seen = torch.relu(outputs)
        return outputs


class Gated(nn.Module):
    """Has operations that give, or take, several tensors at once."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(12, 4)

    def forward(self, x):
        h = self.first(x)
        value, gate = h.chunk(2, -1)
        return self.last(torch.cat([value * torch.sigmoid(gate), h], -1))


class Joined(nn.Module):
    """Joins what a layer gave with its activation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.cat([h, torch.relu(h)], -1))


class Methods(nn.Module):
    """Has activations that are methods."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 4)

    def forward(self, x):
        return self.last(self.middle(self.first(x).relu()).tanh()).sigmoid()


class TwoLayers(nn.Module):
    """Has two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)


class Asking(TwoLayers):
    """Asks for a shape, and has an activation in place and two in a row."""

    def forward(self, x):
        h = F.relu(self.first(x), inplace=True)
        assert h.ndim == 2 and h.shape[1] == 8 == h.size(1)
        return self.last(torch.tanh(torch.sigmoid(h)))


class Forking(nn.Module):
    """Gives two layers the same inputs, and uses one."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.last = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        self.one(h)
        return self.last(h)


class Forgetful(TwoLayers):
    """Computes an activation that it does not use."""

    def forward(self, x):
        h = self.first(x)
        torch.relu(h)
        return self.last(h)


class Scaled(TwoLayers):
    """Changes what a layer gave in place, by no activation."""

    def forward(self, x):
        h = torch.relu(self.first(x))
        h.mul_(0.5)
        return self.last(h)


class WrittenOver(TwoLayers):
    """Changes some entries of what a layer gave in place."""

    def forward(self, x):
        h = torch.relu(self.first(x))
        h[:, :3].mul_(0.5)
        return self.last(h)


class Rows(TwoLayers):
    """Makes rows of its samples, as images need it."""

    def forward(self, x):
        h = torch.relu(self.first(x.view(x.shape[0], -1)))
        return self.last(h.reshape(h.size(0), -1))


class Looking(TwoLayers):
    """Does something else where values are large."""

    def __init__(self, look: Callable):
        super().__init__()
        self.look = look

    def forward(self, x):
        h = torch.tanh(self.last(torch.relu(self.first(x))))
        return 0 * h if self.look(h) else h


class BySize(TwoLayers):
    """Treats few samples otherwise than many."""

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.relu(h) if len(x) > 30 else torch.tanh(h))


class Named(nn.Module):
    """Returns its outputs in a dictionary."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.layer(x)}


def plain(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


NETWORKS = {
    "relu": lambda: plain(6, 8, 7, 4),
    "relu in place": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)),
    "tanh": lambda: plain(6, 8, 4, act=nn.Tanh),
    "silu": lambda: plain(6, 8, 4, act=nn.SiLU),
    "methods": Methods,
    "gelu": lambda: plain(6, 8, 4, act=nn.GELU),
    "one layer": lambda: plain(6, 4),
    "skip": Skip,
    "skip tanh": lambda: Skip(torch.tanh),
    "a layer twice": Twice,
    "two first layers": TwoInputs,
    "on the side": OnTheSide,
    "gated": Gated,
    "forking": Forking,
    "forgetful": Forgetful,
    "scaled": Scaled,
    "rows": Rows,
    "joined": Joined,
    "normalised": lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(dim=-1), nn.Linear(8, 4)),
}


NO_GRAPHS = {
    "asking": (Asking, "control flow"),
    "by size": (BySize, "control flow"),
    "written over": (WrittenOver, "mul_ changes a tensor in place"),
}


def problem(build, n: int = 40, dtype=torch.float64, loss: Any = "cross_entropy", **settings):
    torch.manual_seed(0)
    model = build().to(dtype)
    x, y = torch.randn(n, 6, dtype=dtype), torch.randint(0, 4, (n,))
    objective = Objective(model, loss, (x, y), **settings)
    directions = torch.randn(2, objective.num_parameters, dtype=dtype)
    return model, (x, y), objective, directions


def moved(model: nn.Module, directions, steps) -> nn.Module:
    """Return a copy of the network whose weights have moved."""
    other = copy.deepcopy(model)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    point = start + torch.tensor(steps, dtype=start.dtype) @ directions
    nn.utils.vector_to_parameters(point, other.parameters())
    return other


@pytest.mark.parametrize("n", [40, 700])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_accuracy_are_those_of_the_moved_network(name, n):
    model, (x, y), objective, directions = problem(NETWORKS[name], n)
    evaluate = evaluator(objective, objective.theta, directions, quantities=("loss", "accuracy"))
    assert evaluate.batch > len(STEPS)
    for steps, values in zip(STEPS, evaluate.values(STEPS), strict=True):
        with torch.no_grad():
            outputs = moved(model, directions, steps)(x)
        assert values["loss"] == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-12)
        assert values["accuracy"] == float((outputs.argmax(1) == y).double().mean())


@pytest.mark.parametrize("name", NO_GRAPHS)
def test_networks_that_no_graph_holds_take_one_point_at_a_time_and_say_why(name):
    build, why = NO_GRAPHS[name]
    model, (x, y), objective, directions = problem(build)
    evaluate = evaluator(objective, objective.theta, directions)
    assert evaluate.batch == 1 and why in evaluate.reason
    with torch.no_grad():
        expected = float(F.cross_entropy(moved(model, directions, STEPS[0])(x), y))
    assert evaluate.values(STEPS[:1])[0]["loss"] == pytest.approx(expected, rel=1e-12)


def counted(model: nn.Module) -> tuple[nn.Module, list[int]]:
    """Return the network, and a list that grows with every call of it or of a copy."""
    calls: list[int] = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrapped = model

        def forward(self, x):
            calls.append(1)
            return self.wrapped(x)

    return Counting(), calls


@pytest.mark.parametrize("name", NETWORKS)
def test_several_points_are_run_without_the_module_but_for_the_centre(name):
    model, calls = counted(NETWORKS[name]())
    _, _, objective, directions = problem(lambda: model)
    evaluate = evaluator(objective, objective.theta, directions)
    assert evaluate.batch > 1 and "linear layers alone" in evaluate.reason
    calls.clear()
    evaluate.values(STEPS)
    assert len(calls) == 0
    evaluate.values([[0.0, 0.0]])
    assert len(calls) == 1


class Convolution(nn.Module):
    """Has a convolution before its linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 2, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.conv(x[:, None]).flatten(1))


class Shared(TwoLayers):
    """Takes a weight once more, outside of its layer."""

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) + self.last.bias


class Beside(nn.Module):
    """Joins the inputs to what its first layer gave."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(14, 4)

    def forward(self, x):
        return self.last(torch.cat([self.first(x), x], -1))


class Frozen(TwoLayers):
    """Has a first layer that does not move."""

    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Convolution, "conv.weight is no matrix of a linear layer"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), r"1 (LayerNorm) is no linear"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU()), r"1 (PReLU) is no linear"),
        (Shared, "last.bias enters through add"),
        (lambda: Looking(lambda h: h.abs().max() > 1), "control flow"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(dim=0), nn.Linear(8, 4)),
            "one batch",
        ),
        (Beside, "cat joins what moves with what does not"),
        (Named, "no single tensor"),
        (lambda: plain(6, 2048, 2048, 4), "gain nothing"),
    ],
)
def test_the_reason_why_points_go_one_at_a_time_is_named(build, why):
    _, _, objective, directions = problem(build, 300, torch.float32)
    evaluate = evaluator(objective, objective.theta, directions)
    assert evaluate.batch == 1 and why in evaluate.reason


def test_a_frozen_layer_is_computed_once_and_the_next_is_the_first():
    model, (x, y), objective, _ = problem(Frozen)
    free = torch.randn(2, objective.num_parameters).double()
    evaluate = evaluator(objective, objective.theta, free)
    assert evaluate.batch > 1
    for steps, values in zip(STEPS, evaluate.values(STEPS), strict=True):
        other = copy.deepcopy(model)
        point = objective.theta + torch.tensor(steps, dtype=torch.float64) @ free
        nn.utils.vector_to_parameters(point, other.last.parameters())
        with torch.no_grad():
            expected = float(F.cross_entropy(other(x), y))
        assert values["loss"] == pytest.approx(expected, rel=1e-12)


class Centred(nn.Module):
    """Takes the mean of the samples that go through with one from it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def test_samples_that_depend_on_each_other_are_not_split_anew():
    model, (x, y), objective, directions = problem(Centred, 700)
    evaluate = evaluator(objective, objective.theta, directions)
    with torch.no_grad():
        expected = float(F.cross_entropy(moved(model, directions, STEPS[0])(x), y))
    assert evaluate.values(STEPS[:1])[0]["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [40, 700])
def test_a_loss_of_samples_that_depends_on_others_sees_all_of_them(n):
    def relative(outputs, targets):
        values = F.cross_entropy(outputs, targets, reduction="none")
        return values / values.max()

    model, (x, y), objective, directions = problem(NETWORKS["relu"], n, loss=relative)
    evaluate = evaluator(objective, objective.theta, directions)
    with torch.no_grad():
        expected = float(relative(moved(model, directions, STEPS[0])(x), y).mean())
    assert evaluate.values(STEPS)[0]["loss"] == pytest.approx(expected, rel=1e-12)


LOOKS = {
    "bool": lambda h: h.abs().max() > 0.999999,
    "item": lambda h: h.abs().max().item() > 0.999999,
    "float": lambda h: float(h.detach()[0, 0]) > 0.999999,
    "list": lambda h: max(h[:, 0].tolist()) > 0.999999,
    "array": lambda h: h.numpy().max() > 0.999999,
    "equal": lambda h: torch.equal(h, h.round()),
}


@pytest.mark.parametrize("look", LOOKS)
def test_networks_that_look_at_values_take_one_point_at_a_time(look):
    """One point where values are large would change those measured with it."""
    model, (x, y), objective, directions = problem(lambda: Looking(LOOKS[look]))
    evaluate = evaluator(objective, objective.theta, directions)
    assert evaluate.batch == 1
    for steps in ([0.01, 0.01], [1e3, 1e3]):
        with torch.no_grad():
            expected = float(F.cross_entropy(moved(model, directions, steps)(x), y))
        assert evaluate.values([steps])[0]["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", CrossEntropy(label_smoothing=0.2), "mse"])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_the_loss_is_the_same_with_and_without_accuracy(name, loss):
    model, (x, y), objective, directions = problem(NETWORKS[name], 300, torch.float32, loss)
    alone = evaluator(objective, objective.theta, directions)
    both = evaluator(objective, objective.theta, directions, quantities=("loss", "accuracy"))
    assert alone.batch > 1
    found = both.values(STEPS)
    assert alone.values(STEPS) == [{"loss": values["loss"]} for values in found]
    for steps, values in zip(STEPS, found, strict=True):
        right = moved(model, directions, steps)(x).argmax(1) == y
        assert values["accuracy"] == float(right.double().mean())


def test_smoothed_labels_are_those_of_the_moved_network():
    loss = CrossEntropy(label_smoothing=0.2)
    model, (x, y), objective, directions = problem(NETWORKS["relu"], loss=loss)
    evaluate = evaluator(objective, objective.theta, directions)
    assert evaluate.batch > 1
    for steps, values in zip(STEPS, evaluate.values(STEPS), strict=True):
        outputs = moved(model, directions, steps)(x)
        expected = F.cross_entropy(outputs, y, label_smoothing=0.2)
        assert values["loss"] == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_softmax_goes_over_the_features_though_all_losses_are_almost_zero():
    """With several points, the second of three axes is no longer that of the features."""
    model, (x, _), _, directions = problem(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(dim=1), nn.Linear(8, 4)),
        dtype=torch.float32,
    )
    with torch.no_grad():
        model[2].bias[0] += 14  # type: ignore[index, operator]
    objective = Objective(model, "cross_entropy", (x, torch.zeros(len(x), dtype=torch.long)))
    evaluate = evaluator(objective, objective.theta, directions)
    assert objective.loss() < 1e-5
    for steps, values in zip(STEPS, evaluate.values(STEPS), strict=True):
        with torch.no_grad():
            expected = float(-moved(model, directions, steps)(x).log_softmax(1)[:, 0].mean())
        assert values["loss"] == pytest.approx(expected, rel=1e-3)


def test_outputs_by_name_take_one_point_at_a_time_targets_that_do_not_count_many():
    _, (x, y), objective, directions = problem(Named)
    ignored = torch.where(torch.arange(len(y)) % 3 == 0, -100, y)
    some = Objective(NETWORKS["one layer"](), "cross_entropy", (x.float(), ignored))
    for case, at_once in ((objective, False), (some, True)):  # what does not count is left out
        evaluate = evaluator(case, case.theta, directions, quantities=("loss", "accuracy"))
        assert (evaluate.batch > 1) == at_once
        assert evaluate.values([[0.0, 0.0]])[0]["loss"] == pytest.approx(case.loss(), rel=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_of_equal_largest_outputs_the_first_is_the_answer(loss):
    model, (x, y), _, _ = problem(NETWORKS["relu"])
    last: nn.Linear = model[4]  # type: ignore[assignment, index]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.1, 0.5, 0.2, 0.5]))
    objective = Objective(model, loss, (x, y))
    directions = torch.zeros(2, objective.num_parameters, dtype=torch.float64)
    directions[:, :48] = torch.randn(2, 48).double()  # the first layer alone moves
    evaluate = evaluator(objective, objective.theta, directions, quantities=("loss", "accuracy"))
    assert evaluate.batch > 1
    found = [values["accuracy"] for values in evaluate.values(STEPS)]
    assert found == [float((y == 1).double().mean())] * len(STEPS)


def test_infinite_outputs_hide_no_equal_ones():
    """At one point each sample has two largest outputs, at another none that is a number."""
    _, (x, y), _, _ = problem(NETWORKS["one layer"], dtype=torch.float32)
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    objective = Objective(model, "cross_entropy", (x, (y > 1).long()))
    directions = torch.zeros(2, objective.num_parameters)
    directions[0, 12], directions[1, 12] = 1e20, -1.0
    evaluate = evaluator(objective, objective.theta, directions, quantities=("loss", "accuracy"))
    assert evaluate.batch > 1
    found = [values["accuracy"] for values in evaluate.values([[1e30, 0.0], [0.0, 1.0]])]
    assert found == [float((y <= 1).double().mean())] * 2 != [1.0] * 2


def test_losses_beyond_the_float_range_are_as_those_one_by_one():
    _, _, objective, directions = problem(NETWORKS["relu"], dtype=torch.float32)
    steps = [[1e13, 0.0], [1e30, 1e30], [0.1, 0.2]]
    many, single = (
        evaluator(objective, objective.theta, directions, batched=batched)
        for batched in (True, False)
    )
    assert many.batch > 1
    one_by_one = [single.values([step])[0]["loss"] for step in steps]
    found = [values["loss"] for values in many.values(steps)]
    assert found == pytest.approx(one_by_one, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_does_not_depend_on_the_points_measured_with_it(dtype):
    _, _, objective, directions = problem(lambda: plain(6, 64, 64, 4), 700, dtype)
    quantities = ("loss", "accuracy")
    evaluate = evaluator(objective, objective.theta, directions, quantities=quantities)
    steps = [[0.01 * i, 0.02 * j] for i in range(1, 4) for j in (1, 2)]
    assert evaluate.batch > len(steps)
    together = evaluate.values(steps)
    assert [evaluate.values([step])[0] for step in steps] == together
    assert evaluate.values(steps[::-1])[::-1] == together
    again = evaluator(objective, objective.theta, directions, quantities=quantities)
    assert again.values(steps) == together


def test_wide_networks_whose_passes_are_arithmetic_take_one_point_at_a_time():
    _, _, objective, directions = problem(lambda: plain(6, 2048, 2048, 4), 300, torch.float32)
    assert evaluator(objective, objective.theta, directions).batch == 1


class Bounded(nn.Module):
    """Bounds the norm of every sample, which does nothing near the checkpoint."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h * (10 / h.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1))


@pytest.mark.parametrize("size", [1.0, 20.0])
def test_what_acts_on_samples_far_away_only_is_seen(size):
    torch.manual_seed(0)
    model = Bounded().double()
    data = torch.randn(30, 6).double(), torch.randint(0, 4, (30,))
    objective = Objective(model, "cross_entropy", data)
    direction = torch.randn(1, objective.num_parameters).double()
    direction *= size * objective.theta.norm() / direction.norm()
    steps = [step / size for step in (-9.0, 3.0, 9.0)]
    line = Subspace("given", objective.theta, direction)
    found = LandscapeJob({"train": objective}, line, {"t": np.array(steps)}).measure()
    for step, loss in zip(steps, found.quantities["loss"], strict=True):
        moved = copy.deepcopy(model)
        vector_to_parameters(objective.theta + step * direction[0], moved.parameters())
        with torch.no_grad():
            assert loss == pytest.approx(float(F.cross_entropy(moved(data[0]), data[1])))
