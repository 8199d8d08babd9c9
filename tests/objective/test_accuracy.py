"""An accuracy where outputs name classes, and none elsewhere, whatever the shapes look like."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatkit
from flatkit import Objective
from flatkit.landscape.evaluate import evaluator
from flatkit.objective.losses import CrossEntropy

N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))
TWO = CLASSES.clamp(max=1)


def linear(outputs):
    torch.manual_seed(outputs)
    return nn.Linear(4, outputs)


class Flat(nn.Module):
    """One score a sample, of shape [B]."""

    def __init__(self):
        super().__init__()
        self.layer = linear(1)

    def forward(self, x):
        return self.layer(x)[:, 0]


class Named(Flat):
    """Scores beside something else."""

    def __init__(self):
        super().__init__()
        self.layer = linear(3)

    def forward(self, x):
        return {"norm": x.norm(), "logits": self.layer(x)}


def focal(outputs, targets):
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


def of_logits(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


CLASSIFIERS = {
    "cross-entropy": (linear(3), "cross_entropy", CLASSES),
    "cross-entropy of torch": (linear(3), nn.CrossEntropyLoss(), CLASSES),
    "squared error to one-hot": (linear(3), "mse", CLASSES),
    "smoothed labels": (linear(3), CrossEntropy(label_smoothing=0.3), CLASSES),
    "a function of one's own": (linear(3), focal, CLASSES),
    "log-probabilities": (nn.Sequential(linear(3), nn.LogSoftmax(1)), nn.NLLLoss(), CLASSES),
    "margins": (linear(3), nn.MultiMarginLoss(), CLASSES),
    "scores in a dictionary": (Named(), of_logits, CLASSES),
    "one-hot targets": (linear(3), nn.MSELoss(), F.one_hot(CLASSES).float()),
    "probabilities of torch": (linear(3), nn.CrossEntropyLoss(), F.one_hot(CLASSES).float()),
}


@pytest.mark.parametrize(("model", "loss", "targets"), CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_the_accuracy_of_scores_of_classes_is_the_share_of_right_ones(model, loss, targets):
    outputs = model(X)
    scores = outputs["logits"] if isinstance(outputs, dict) else outputs
    expected = float((scores.argmax(1) == CLASSES).double().mean())
    assert Objective(model, loss, (X, targets), chunk_size=7).accuracy() == expected


def logistic(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs), reduction="none")


def hinge(outputs, targets):
    return F.relu(1 - (2 * targets - 1) * outputs[:, 0])


BINARY = {
    "logits [B]": (Flat(), nn.BCEWithLogitsLoss(), TWO.float(), 0.0),
    "logits [B, 1]": (linear(1), nn.BCEWithLogitsLoss(), TWO.float()[:, None], 0.0),
    "weighted": (
        linear(1),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
        TWO.float()[:, None],
        0.0,
    ),
    "whole numbers": (linear(1), logistic, TWO, 0.0),
    "a hinge": (linear(1), hinge, TWO, 0.0),
    "probabilities": (nn.Sequential(Flat(), nn.Sigmoid()), nn.BCELoss(), TWO.float(), 0.5),
}


@pytest.mark.parametrize(("model", "loss", "targets", "border"), BINARY.values(), ids=BINARY.keys())
def test_one_score_names_two_classes(model, loss, targets, border):
    expected = float(((model(X).flatten() > border) == TWO).double().mean())
    objective = Objective(model, loss, (X, targets), chunk_size=7)
    assert 0 < expected < 1 and objective.accuracy() == expected
    away = evaluator(
        objective, objective.theta, objective.theta[None], quantities=("loss", "accuracy")
    ).values([[-2.0]])  # at −θ every score is the other way round
    moved = objective.accuracy(-objective.theta)
    assert away[0]["accuracy"] == moved and (border or moved == pytest.approx(1 - expected))


def quantiles(outputs, targets):
    levels = torch.tensor([0.1, 0.5, 0.9])
    gap = targets[:, None] - outputs
    return torch.maximum(levels * gap, (levels - 1) * gap).mean(1)


def gaussian(outputs, targets):
    return F.gaussian_nll_loss(
        outputs[:, 0], targets.to(outputs), outputs[:, 1].exp(), reduction="none"
    )


def counts(outputs, targets):
    return F.poisson_nll_loss(outputs[:, 0], targets.to(outputs), reduction="none")


REGRESSIONS = {
    "counts": (linear(1), counts, CLASSES),
    "counts of none and one": (linear(1), counts, TWO),
    "counts beside other outputs": (linear(3), counts, CLASSES),
    "quantiles of counts": (linear(3), quantiles, CLASSES),
    "mean and variance": (linear(2), gaussian, TWO),
    "squared error to 0 and 1": (linear(1), nn.MSELoss(), TWO.float()[:, None]),
    "named squared error": (linear(1), "mse", TWO.float()[:, None]),
    "absolute error": (Flat(), nn.L1Loss(), TWO.float()),
    "several numbers": (linear(3), "mse", X[:, :3]),
    "several labels": (linear(3), nn.BCEWithLogitsLoss(), (X[:, :3] > 0).float()),
    "shares of classes": (linear(3), nn.CrossEntropyLoss(), X[:, :3].softmax(1)),
    "the norm of what is predicted": (Named(), lambda o, t: o["logits"].square().mean(1), CLASSES),
}


@pytest.mark.parametrize(("model", "loss", "targets"), REGRESSIONS.values(), ids=REGRESSIONS.keys())
def test_what_is_no_classifier_has_no_accuracy(model, loss, targets):
    report = flatkit.analyze(model, loss, (X, targets), measures=["loss", "accuracy"])
    assert [result.measure for result in report] == ["loss"]
