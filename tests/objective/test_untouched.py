"""Nothing of the user's changes: digests of tensors and states before and after."""

import copy
import hashlib
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flatkit
from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.objective.proofs.tables import settle_tables
from tests.cases import function_of


def digest(*things) -> str:
    return hashlib.sha256(pickle.dumps([_bytes(thing) for thing in things])).hexdigest()


def _bytes(thing):
    return thing.detach().numpy().tobytes() if isinstance(thing, torch.Tensor) else repr(thing)


def random_states() -> tuple:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # pyright: ignore


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.skip, self.out = nn.Linear(4, 3), nn.Linear(4, 3)


class Normalising(Base):
    def forward(self, x):
        return self.out(x.sub_(0.5).div_(2.0))


class Skipping(Base):
    def forward(self, x):
        straight = self.skip(x.clone())
        return straight + self.out(F.relu(x, inplace=True))


class Shared(Base):
    """What changes in place is used again."""

    def forward(self, x):
        return self.out(F.relu(x, inplace=True)) + self.skip(x) + x.mean(1, keepdim=True)


class ByArrays(Base):
    """Changes its input behind the back of torch."""

    def forward(self, x):
        x.detach().numpy()[:] *= 0.5
        return self.out(x)


class ByData(Base):
    def forward(self, x):
        x.data.mul_(0.5)
        return self.out(x)


class Drawing(Base):
    """Draws random numbers of which nothing depends."""

    def forward(self, x):
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(3)
        return self.out(x)


class Seeding(Base):
    def forward(self, x):
        torch.manual_seed(0)
        return self.out(x) + torch.rand(3)


MODELS = [Normalising, Skipping, Shared, ByArrays, ByData, Drawing, Seeding]


def data():
    torch.manual_seed(0)
    return torch.randn(12, 4), torch.randint(0, 3, (12,))


@pytest.mark.parametrize("kind", MODELS)
def test_inputs_and_random_states_stay_and_the_numbers_are_those_of_the_inputs(kind):
    x, y = data()
    model = kind()
    expected = float(F.cross_entropy(model(x.clone()), y).detach())
    states = random_states()
    before = digest(x, y, *states)
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=5)
    theta = objective.theta + 0.1
    kept = digest(theta)
    assert objective.loss() == pytest.approx(expected, abs=1e-6)
    first = objective.loss_and_gradient(theta)
    assert objective.loss(theta) == pytest.approx(first[0], rel=1e-6)
    assert digest(x, y, *random_states()) == before and digest(theta) == kept
    report = flatkit.analyze(
        model, "cross_entropy", (x, y), measures=["top_eigenvalues", "loss_slice"], slice_points=3
    )
    assert report.results[0].value is not None
    assert digest(x, y, *random_states()) == before


@pytest.mark.parametrize("kind", [Skipping, Shared])
def test_curvature_of_models_that_edit_their_inputs_is_that_of_copies(kind):
    x, y = data()
    model = kind().double()
    objective = Objective(model, "cross_entropy", (x, y))
    function, _ = function_of(model, lambda run: F.cross_entropy(run(x.double()), y))
    dense = torch.autograd.functional.hessian(function, objective.theta)
    hessian = flatkit.hessian.HessianOperator(objective)
    vector = torch.randn(len(objective.theta)).double()
    torch.testing.assert_close(hessian @ vector, dense @ vector, rtol=1e-4, atol=1e-6)  # pyright: ignore


def editing(outputs, targets):
    return F.cross_entropy(outputs, targets.clamp_(min=0), reduction="none")


class Editing(nn.Module):
    def forward(self, outputs, targets):
        targets[targets < 0] = 0
        return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("loss", [editing, Editing()])
def test_targets_that_a_loss_edits_stay(loss):
    x, y = data()
    y[:3] = -1
    before = digest(x, y)
    objective = Objective(nn.Linear(4, 3), loss, (x, y), chunk_size=5)
    value = objective.loss()
    assert objective.loss() == value and digest(x, y) == before
    flatkit.analyze(nn.Linear(4, 3), loss, (x, y), measures=["top_eigenvalues", "loss_slice"])
    assert digest(x, y) == before


class Bounded(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.table = nn.Embedding(6, 4, max_norm=0.5, **settings)

    def forward(self, items):
        first = self.out(self.table(items).mean(1))  # saves weights, before others are changed
        return first + F.linear(self.table(items + 0)[:, 0], self.out.weight)


def test_a_table_of_bounded_rows_writes_into_nobodys_weights():
    items, y = torch.randint(0, 6, (12, 3)), data()[1]
    model = Bounded()
    kept = digest(*model.parameters())
    objective = Objective(model, "cross_entropy", (items, y), examine=False)
    theta = objective.theta + 0.3
    before = digest(theta, objective.theta)
    loss, gradient = objective.loss_and_gradient(theta)
    assert objective.loss(theta) == pytest.approx(loss, rel=1e-6) and gradient.isfinite().all()
    assert digest(theta, objective.theta) == before and digest(*model.parameters()) == kept


def test_a_row_exactly_as_long_as_allowed_is_looked_up_as_torch_does():
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0]], dtype=torch.float64)
    table = nn.Embedding.from_pretrained(rows, max_norm=5.0)
    settled, items = copy.deepcopy(table), torch.tensor([0, 1])
    settle_tables(settled)
    assert torch.equal(settled(items), table(items))


class Late(nn.Module):
    """Changes large inputs in place, and leaves small ones."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x.div_(2.0) if float(x.abs().max()) > 50 else x)


def test_edits_that_are_seen_late_are_refused_by_name_and_reach_no_tensor_of_the_user():
    x, y = torch.randn(400, 4), torch.randint(0, 3, (400,))
    x[201] = 100.0
    before = digest(x)
    with pytest.raises(InvalidArgumentError, match="in place"):
        Objective(Late(), lambda o, t: F.cross_entropy(o, t, reduction="none"), (x, y)).loss()
    assert digest(x) == before


def test_the_generator_of_a_loader_stays():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True, generator=generator)
    model = nn.Linear(4, 3)
    before = digest(generator.get_state(), *random_states())
    Objective(model, "cross_entropy", loader).gradient()
    assert digest(generator.get_state(), *random_states()) == before


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 2)
        self.nothing = nn.Parameter(torch.empty(0, 5))

    def forward(self, x):
        return self.used(x)


def test_what_the_loss_does_not_use_has_no_slope_and_no_curvature_exactly():
    objective = Objective(TwoHeads(), "cross_entropy", data())
    assert objective.num_parameters == 25
    assert not objective.gradient()[15:].any()
    block = objective.block("unused.*")
    assert not block.gradient().any()
    for engine in ("double_backward", "forward_over_reverse", "layers"):
        hessian = flatkit.hessian.HessianOperator(block, engine=engine)
        assert not (hessian @ torch.ones(10)).any()


def test_a_loss_that_is_detached_is_still_refused():
    with pytest.raises(InvalidArgumentError, match="does not depend on the parameters"):
        Objective(
            nn.Linear(4, 3), lambda o, t: o.detach().square().mean(1), data(), examine=False
        ).gradient()
