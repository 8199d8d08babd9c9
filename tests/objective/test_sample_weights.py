"""Means over what counts: class weights, ignored classes, padding; any chunking gives one value."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError, NonAdditiveLossError
from flatkit.flatness import m_sharpness
from flatkit.landscape.evaluate import evaluator
from flatkit.objective.losses import TokenCrossEntropy
from flatkit.objective.proofs.sample_weights import counts_that_differ, find_weights
from tests.cases import CASES

CASE = CASES[0]
X, Y = CASE.data()
every_chunking = pytest.mark.parametrize("chunk_size", [1, 4, 5, 100])

WEIGHT = torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
LOSSES = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "an ignored class": nn.CrossEntropyLoss(ignore_index=0),
    "both, smoothed": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2, label_smoothing=0.1),
    "the function": F.cross_entropy,
}


def dense(function, theta):
    hessian = torch.autograd.functional.hessian(function, theta)
    assert isinstance(hessian, torch.Tensor)
    return hessian


def at(model, theta, *inputs):
    parameters, start = {}, 0
    for name, parameter in model.named_parameters():
        parameters[name] = theta[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return torch.func.functional_call(model, parameters, inputs)


@every_chunking
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_weighted_means_of_torch_are_those_of_the_full_batch(loss, chunk_size):
    model = CASE.build()
    objective = Objective(model, loss, (X, Y), chunk_size=chunk_size)
    theta = objective.theta
    assert objective.loss() == pytest.approx(float(loss(at(model, theta, X), Y)), rel=1e-12)
    reference = dense(lambda point: loss(at(model, point, X), Y), theta)
    hessian = HessianOperator(objective)
    columns = torch.stack([hessian @ column for column in torch.eye(len(theta)).double()])
    torch.testing.assert_close(columns, reference, rtol=1e-9, atol=1e-11)


def test_pixels_that_are_ignored_do_not_count():
    model = nn.Conv2d(2, 3, 1).double()
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (6, 4, 4))
    y[2:5, 1:] = 255
    loss = nn.CrossEntropyLoss(ignore_index=255, weight=WEIGHT)
    expected = float(loss(model(x), y).detach())
    assert Objective(model, loss, (x, y), chunk_size=4).loss() == pytest.approx(expected, rel=1e-12)


def test_targets_that_are_probabilities_are_a_mean_over_samples():
    targets = torch.softmax(torch.randn(len(X), 3, dtype=torch.float64), dim=1)
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    expected = float(loss(CASE.build()(X), targets).detach())
    found = Objective(CASE.build(), loss, (X, targets), chunk_size=4).loss()
    assert found == pytest.approx(expected, rel=1e-12)


def test_samples_without_any_target_that_counts_are_left_out_and_said():
    loss = nn.CrossEntropyLoss(ignore_index=0)
    objective = Objective(CASE.build(), loss, (X, Y), chunk_size=3)
    assert objective.indices.tolist() == (Y != 0).nonzero().squeeze(1).tolist()
    with pytest.raises(InvalidArgumentError, match="no sample counts"):
        Objective(CASE.build(), loss, (X, torch.zeros_like(Y)))


def test_all_measures_use_the_same_weights():
    objective = Objective(CASE.build(), LOSSES["class weights"], (X, Y), chunk_size=9)
    step = torch.full((1, objective.num_parameters), 0.1, dtype=torch.float64)
    for batched in (True, False):
        evaluate = evaluator(objective, objective.theta, step, batched=batched)
        found = evaluate.values([[0.5]])[0]["loss"]
        assert found == pytest.approx(objective.loss(objective.theta + 0.05), rel=1e-12)
    whole = m_sharpness(
        objective, rho=1e-9, m=11, generator=torch.Generator().manual_seed(0), max_batches=2
    )
    assert abs(whole.value) < 1e-6  # a batch has its own mean, not a share of that of all


class Reader(nn.Module):
    """A causal language model of one kind of word at a time."""

    def __init__(self, words=7):
        super().__init__()
        self.table = nn.Embedding(words, 5)
        self.head = nn.Linear(5, words)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.table(input_ids).cumsum(1)))


class WithLoss(Reader):
    """Returns its own loss, like the models of Hugging Face."""

    def __init__(self, divide):
        super().__init__()
        self.divide = divide

    def forward(self, input_ids, labels):  # type: ignore[override]
        logits = super().forward(input_ids)
        if self.divide == "shifted":
            logits, labels = logits[:, :-1], labels[:, 1:]
        values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        loss = {
            "labels": values.sum() / (labels != -100).sum(),
            "shifted": values.sum() / (labels != -100).sum(),
            "samples": values.sum(1).mean(),
            "something else": values.sum() / (1 + (labels != -100).sum()),
        }[self.divide]
        return {"loss": loss, "logits": logits}


def sentences(n=11, length=6):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 7, (n, length), generator=generator)
    lengths = torch.randint(2, length + 1, (n,), generator=generator)
    labels = words.masked_fill(torch.arange(length) >= lengths[:, None], -100)
    return words, labels


@every_chunking
@pytest.mark.parametrize("shift", [False, True])
def test_a_mean_over_tokens_is_that_of_the_full_batch(chunk_size, shift):
    torch.manual_seed(0)
    words, labels = sentences()
    model = Reader().double()
    logits = model(words)
    expected = (
        F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
        if shift
        else F.cross_entropy(logits.transpose(1, 2), labels)
    )
    loss = TokenCrossEntropy(shift=shift)
    found = Objective(model, loss, (words, labels), chunk_size=chunk_size).loss()
    assert found == pytest.approx(float(expected.detach()), rel=1e-12)


@every_chunking
@pytest.mark.parametrize("divide", ["labels", "shifted", "samples"])
def test_how_a_model_weights_its_own_loss_is_found_out(divide, chunk_size):
    torch.manual_seed(0)
    words, labels = sentences()
    model = WithLoss(divide).double()
    expected = float(model(words, labels)["loss"].detach())
    data = {"input_ids": words, "labels": labels}
    objective = Objective(model, "model", data, chunk_size=chunk_size)
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    assert {"labels": "not -100", "shifted": "shifted by one", "samples": "samples"}[divide] in (
        objective.describe()["mean_over"]
    )


def test_a_head_of_zeros_does_not_hide_the_weights():
    """All samples lose alike at such a point, but their curvatures count differently."""
    torch.manual_seed(0)
    words, labels = sentences()
    model = WithLoss("labels").double()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    objective = Objective(model, "model", {"input_ids": words, "labels": labels}, chunk_size=3)
    assert objective.total_weight == float((labels != -100).sum())


def test_a_model_that_divides_by_something_else_is_refused():
    words, labels = sentences()
    with pytest.raises(NonAdditiveLossError, match="neither samples nor labels"):
        Objective(
            WithLoss("something else").double(), "model", {"input_ids": words, "labels": labels}
        )


def test_a_model_without_a_loss_is_refused():
    words, labels = sentences()
    with pytest.raises(InvalidArgumentError, match="does the batch hold the labels"):
        Objective(Reader(), "model", {"input_ids": words, "labels": labels})


def test_sentences_without_a_label_are_left_out():
    words, labels = sentences()
    labels[3] = -100
    model = WithLoss("labels").double()
    objective = Objective(model, "model", {"input_ids": words, "labels": labels}, chunk_size=1)
    assert 3 not in objective.indices.tolist() and objective.num_samples == 10
    expected = float(model(words, labels)["loss"].detach())
    assert objective.loss() == pytest.approx(expected, rel=1e-12)


def test_where_every_label_counts_samples_weigh_alike():
    labels = torch.ones(4, 3).long()
    ways = counts_that_differ(labels, 4)
    weights, what = find_weights(lambda rows: 0.0, ways, 4, tolerance=1e-6)
    assert what == "samples" and weights.tolist() == [1, 1, 1, 1]


class ClassWeighted(nn.Module):
    """As many losses of users do, it keeps the weights of classes under the name `weights`."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, outputs, targets):
        values = F.cross_entropy(outputs, targets, reduction="none")
        return values * torch.as_tensor(self.weights, dtype=values.dtype)[targets]


@pytest.mark.parametrize(
    "weights",
    [WEIGHT, WEIGHT.tolist(), nn.Parameter(WEIGHT, requires_grad=False)],
    ids=["tensor", "list", "parameter"],
)
def test_weights_that_a_loss_only_keeps_are_not_asked_for_those_of_samples(weights):
    model = CASE.build()
    objective = Objective(model, ClassWeighted(weights), (X, Y))
    expected = (F.cross_entropy(model(X), Y, reduction="none") * WEIGHT[Y]).mean()
    assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)
    assert objective.num_samples == len(X)


def test_smoothed_labels_of_a_class_that_counts_for_nothing_still_add_to_the_loss():
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    loss, model = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1), CASE.build()
    objective = Objective(model, loss, (X, Y))
    assert objective.loss() == pytest.approx(float(loss(model(X), Y).detach()), rel=1e-12)
    reference = dense(lambda point: loss(at(model, point, X), Y), objective.theta)
    columns = HessianOperator(objective).matmat(torch.eye(len(reference)).double())
    torch.testing.assert_close(columns, reference, rtol=1e-9, atol=1e-11)
    with pytest.raises(NonAdditiveLossError, match="chunk_size"):
        Objective(model, loss, (X, Y), chunk_size=4)
