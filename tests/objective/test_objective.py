"""The objective against plain full-batch PyTorch, and what it must leave alone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatkit import HessianOperator, Objective
from flatkit.errors import (
    InvalidArgumentError,
    NonAdditiveLossError,
    NonDeterministicError,
    NonFiniteError,
)
from flatkit.landscape.evaluate import evaluator
from tests.cases import CASES, Case, reference_function

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def objective_of(case: Case, **settings) -> Objective:
    return Objective(case.build(), case.loss, case.data(), **settings)


@every_case
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5, 10_000])
def test_loss_and_gradient_equal_the_full_batch_ones_under_any_chunking(case, chunk_size):
    objective = objective_of(case, chunk_size=chunk_size)
    function, theta = reference_function(case)
    point = theta.clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value, point, materialize_grads=True)
    torch.testing.assert_close(objective.theta, theta, rtol=0, atol=0)
    expected = float(value.detach())
    loss, found = objective.loss_and_gradient()
    assert loss == pytest.approx(expected, rel=1e-12)
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-13)


@every_case
def test_loss_far_from_the_checkpoint_equals_the_reference(case):
    objective = objective_of(case, chunk_size=4)
    function, theta = reference_function(case)
    moved = theta + 0.3 * torch.randn(len(theta), generator=torch.Generator().manual_seed(5))
    assert objective.loss(moved) == pytest.approx(float(function(moved)), rel=1e-12)


def test_accuracy_counts_the_right_answers():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    objective = Objective(model, "cross_entropy", (x, torch.tensor([0, 1, 1])), chunk_size=2)
    assert objective.accuracy() == 2 / 3


def test_accuracy_of_a_regression_is_an_error():
    case = next(case for case in CASES if case.loss == "mse")
    with pytest.raises(InvalidArgumentError, match="accuracy needs outputs"):
        objective_of(case).accuracy()


def test_a_loss_that_returns_the_mean_equals_one_that_returns_every_sample():
    case = CASES[0]
    per_sample = Objective(case.build(), "cross_entropy", case.data(), chunk_size=5)
    mean = Objective(case.build(), case.mean_loss, case.data(), chunk_size=5)
    assert mean.loss() == pytest.approx(per_sample.loss(), rel=1e-13)


def test_a_loss_that_is_a_sum_over_samples_is_refused():
    case = CASES[0]
    with pytest.raises(NonAdditiveLossError, match="reduction='none'"):
        Objective(case.build(), nn.CrossEntropyLoss(reduction="sum"), case.data())


def test_a_loss_of_a_wrong_shape_is_refused():
    case = CASES[0]
    with pytest.raises(InvalidArgumentError, match=r"one value per sample, shape \[23\]"):
        Objective(case.build(), lambda outputs, targets: outputs, case.data())


def snapshot(model: nn.Module):
    return (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        torch.random.get_rng_state(),
    )


def assert_same(before, after):
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    assert before[1] == after[1] and before[3] == after[3]
    for old, new in zip(before[2], after[2], strict=True):
        assert (old is None) == (new is None) and (old is None or torch.equal(old, new))
    assert torch.equal(before[4], after[4])


@every_case
def test_the_model_is_left_as_it_was(case):
    model, (x, y) = case.build(), case.data()
    model.train()
    next(model.children()).eval()
    case.mean_loss(model(x), y).backward()
    before = snapshot(model)
    for batchnorm in ("eval", "train"):
        objective = Objective(model, case.loss, (x, y), batchnorm=batchnorm, chunk_size=7)
        objective.loss()
        objective.gradient(objective.theta + 1)
    assert_same(before, snapshot(model))


def test_the_model_is_left_as_it_was_after_an_exception():
    case = CASES[0]
    model = case.build()
    before = snapshot(model)
    calls = []
    constructed = False

    def loss(outputs, targets):
        calls.append(constructed)
        if sum(calls) > 1:
            raise RuntimeError("midway")
        return F.cross_entropy(outputs, targets, reduction="none")

    objective = Objective(model, loss, case.data(), chunk_size=5)
    constructed = True
    with pytest.raises(RuntimeError, match="midway"):
        objective.gradient()
    assert_same(before, snapshot(model))


def test_training_batchnorm_uses_the_statistics_of_each_chunk():
    case = next(case for case in CASES if "batchnorm" in case.name)
    model, (x, y) = case.build().train(), case.data()
    expected = sum(
        F.cross_entropy(model(x[i : i + 8]), y[i : i + 8], reduction="sum").item()
        for i in range(0, 19, 8)
    )
    objective = objective_of(case, batchnorm="train", chunk_size=8)
    assert objective.loss() == pytest.approx(expected / 19, rel=1e-12)
    assert objective.loss() != pytest.approx(objective_of(case).loss(), rel=1e-3)


def test_training_batchnorm_is_never_given_a_single_sample():
    """As its statistics are none, torch refuses; so no probe may look at one sample alone."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1] * 4)
    objective = Objective(model, "cross_entropy", (x, y), batchnorm="train", chunk_size=4)
    whole = [F.cross_entropy(model(x[i : i + 4]), y[i : i + 4]).item() for i in (0, 4)]
    assert objective.loss() == pytest.approx(sum(whole) / 2, rel=1e-12)


def test_training_batchnorm_needs_a_chunk_size():
    with pytest.raises(InvalidArgumentError, match="depends on the batching"):
        objective_of(CASES[3], batchnorm="train")


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return F.dropout(self.layer(x), 0.5, training=True)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Warming(nn.Linear):
    """Keeps a count, and is another function until it has reached five."""

    calls = 0

    def forward(self, input):
        self.calls = min(5, self.calls + 1)
        return super().forward(input) * self.calls


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (Noisy(), "draws random numbers"),
        (Counting(), "keeps state"),
        (Warming(4, 3), "keeps state"),
    ],
)
def test_a_model_that_is_not_a_function_is_refused_with_the_cause(model, cause):
    state = torch.random.get_rng_state()
    with pytest.raises(NonDeterministicError, match=cause):
        Objective(model, "cross_entropy", CASES[0].data())
    assert torch.equal(state, torch.random.get_rng_state())


def test_datasets_and_loaders_give_the_objective_of_their_tensors():
    case = CASES[0]
    x, y = case.data()
    expected = objective_of(case).loss()
    dataset = TensorDataset(x, y)
    loader = DataLoader(dataset, batch_size=7, shuffle=True)
    for data in (dataset, loader):
        assert Objective(case.build(), "cross_entropy", data).loss() == pytest.approx(
            expected, rel=1e-12
        )


class Augmented(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn_like(x), y


def test_a_dataset_that_augments_at_random_is_refused():
    with pytest.raises(NonDeterministicError, match="augmentation"):
        Objective(CASES[0].build(), "cross_entropy", Augmented(*CASES[0].data()))


def test_samples_are_drawn_by_the_seed_without_replacement():
    first, again, other = (
        objective_of(CASES[0], samples=10, seed=seed).indices for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) == 10
    x, y = CASES[0].data()
    part = Objective(CASES[0].build(), "cross_entropy", (x[first], y[first]))
    assert objective_of(CASES[0], samples=10, seed=1).loss() == part.loss()


@pytest.mark.parametrize("samples", [0, -1, 24])
def test_samples_out_of_range_are_refused(samples):
    with pytest.raises(InvalidArgumentError, match="samples must be"):
        objective_of(CASES[0], samples=samples)


def test_bad_data_are_refused():
    model = CASES[0].build()
    for data in [
        (torch.zeros(3, 4), torch.zeros(2).long()),
        (torch.zeros(0, 4), torch.zeros(0).long()),
        [1, 2, 3],
    ]:
        with pytest.raises(InvalidArgumentError):
            Objective(model, "cross_entropy", data)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused_by_name():
    model = CASES[0].build()
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"0\.weight has 1 NaN"):
        Objective(model, "cross_entropy", CASES[0].data())


class MaskedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, mask):
        shares = (self.value(x) @ x.transpose(1, 2) + mask).softmax(-1)
        return self.out((shares @ x.nan_to_num()).mean(1))


@pytest.mark.parametrize("missing", [False, True], ids=["mask", "mask and NaN"])
def test_inputs_may_be_infinite_or_nan_where_the_loss_is_a_number(missing):
    torch.manual_seed(0)
    model, x = MaskedAttention().double(), torch.randn(6, 5, 4).double()
    mask = torch.zeros(6, 5, 5).double()
    mask[:, :, 3:] = -math.inf
    labels = torch.arange(6) % 3
    if missing:
        x[2, 1, 0] = math.nan
        with pytest.raises(NonFiniteError, match=r"inputs have NaN or infinite .* loss is nan"):
            Objective(model, "cross_entropy", (x, mask, labels))
        return
    objective = Objective(model, "cross_entropy", (x, mask, labels))

    def loss(theta):
        parts = dict(zip(objective.space.names, theta.split(objective.space.sizes), strict=True))
        named = {name: parts[name].view(p.shape) for name, p in model.named_parameters()}
        outputs = torch.func.functional_call(model, named, (x, mask))
        return F.cross_entropy(outputs, labels)

    expected = torch.autograd.functional.hessian(loss, objective.theta)
    found = HessianOperator(objective).matmat(torch.eye(objective.num_parameters).double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_model_without_free_parameters_is_refused():
    model = CASES[0].build().requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="no free parameters"):
        Objective(model, "cross_entropy", CASES[0].data())


def test_a_loss_without_a_graph_is_refused():
    objective = Objective(
        CASES[0].build(), lambda o, t: F.cross_entropy(o.detach(), t), CASES[0].data()
    )
    with pytest.raises(InvalidArgumentError, match="does not depend on the parameters"):
        objective.gradient()


def test_dtype_converts_a_copy_and_names_itself():
    model = CASES[0].build()
    objective = Objective(model, "cross_entropy", CASES[0].data(), dtype=torch.float32)
    assert objective.theta.dtype == torch.float32 and objective.describe()["dtype"] == "float32"
    assert next(model.parameters()).dtype == torch.float64


def test_describe_says_which_samples_were_used():
    described = objective_of(CASES[0], samples=10, seed=3).describe()
    assert (described["samples"], described["samples_available"]) == (10, 23)
    other = objective_of(CASES[0], samples=10, seed=4).describe()
    assert described["indices_sha256"] != other["indices_sha256"]


def shared():
    """Return a model in which one module stands in two places, its plain function, and data."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Tanh(), layer, nn.Linear(4, 3)).double()
    data = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))

    def function(theta):
        w0, b0, w1, b1, w2, b2 = (
            part.view(shape)
            for part, shape in zip(
                theta.split([16, 4, 16, 4, 12, 3]),
                [(4, 4), (4,), (4, 4), (4,), (3, 4), (3,)],
                strict=True,
            )
        )
        h = torch.tanh((data[0] @ w0.T + b0) @ w1.T + b1) @ w1.T + b1
        return F.cross_entropy(h @ w2.T + b2, data[1])

    return model, function, data


def test_a_module_in_two_places_keeps_its_parameters():
    model, function, data = shared()
    objective = Objective(model, "cross_entropy", data)
    far = 3 * objective.theta
    assert objective.loss(far) == pytest.approx(float(function(far)), rel=1e-12)
    assert objective.block("0.*").loss() == pytest.approx(float(function(objective.theta)))
    objective.gradient()
    copied = copy.deepcopy(objective.model)
    assert [name for name, _ in copied.named_parameters()] == list(objective.space.names)


@pytest.mark.parametrize("quantities", [("loss",), ("loss", "gradient_norm")])
def test_a_module_in_two_places_moves_in_a_landscape(quantities):
    model, function, data = shared()
    objective = Objective(model, "cross_entropy", data)
    direction = torch.randn(1, objective.num_parameters).double()
    evaluate = evaluator(objective, objective.theta, direction, quantities=quantities)
    for step in (0.3, 1.0):
        point = (objective.theta + step * direction[0]).requires_grad_()
        loss = function(point)
        (found,) = evaluate.values([[step]])
        assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-11)
        if "gradient_norm" in quantities:
            (gradient,) = torch.autograd.grad(loss, point)
            assert found["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-10)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda theta: theta.float(),
            r"got torch\.float32 on cpu; convert it: theta\.to\('cpu', t",
        ),
        (lambda theta: theta.long(), "got torch.int64"),
        (lambda theta: theta.numpy(), "got a ndarray; convert it: torch.as_tensor"),
        (lambda theta: theta.tolist(), "got a list"),
        (lambda theta: theta[None], r"have the shape \["),
        (lambda theta: theta[1:], r"have the shape \["),
    ],
)
def test_a_point_of_another_kind_is_refused_by_what_it_is(made, words):
    objective = objective_of(CASES[0])
    hessian = HessianOperator(objective)
    point = made(objective.theta)
    for call in (objective.loss, objective.gradient):
        with pytest.raises(InvalidArgumentError, match=f"theta must .*{words}"):
            call(point)
    with pytest.raises(InvalidArgumentError, match="theta must"):
        HessianOperator(objective, point)
    with pytest.raises(
        InvalidArgumentError, match=f"vector must .*{words.replace('theta', 'vector')}"
    ):
        hessian.matvec(point)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("float46", "dtype must be one of bfloat16, float32, float64, got 'float46'; did you"),
        ("torch.float", "got 'float'"),
        (torch.int64, "got 'int64'"),
        (64, "got '64'"),
    ],
)
def test_a_dtype_may_be_named_and_another_word_is_refused(given, words):
    model, data = nn.Linear(2, 1), (torch.ones(3, 2), torch.zeros(3, 1))
    assert Objective(model, "mse", data, dtype="float64").dtype == torch.float64
    with pytest.raises(InvalidArgumentError, match=words):
        Objective(model, "mse", data, dtype=given)
