"""Labels of every form: converted where that is exact, else explained; images against labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.errors import FlatkitError, InvalidArgumentError, UserCodeError
from flatkit.objective.losses import LOSSES, CrossEntropy, build_loss

N = 24
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))
TWO = CLASSES.clamp(max=1)


def linear(outputs, dtype=torch.float64):
    torch.manual_seed(outputs)
    return nn.Linear(4, outputs).to(dtype)


def own(outputs, targets):
    return F.cross_entropy(outputs, targets)


FORMS = {
    "int32": CLASSES.int(),
    "int16": CLASSES.short(),
    "uint8": CLASSES.byte(),
    "float": CLASSES.double(),
    "a column": CLASSES[:, None],
    "a column of int32": CLASSES[:, None].int(),
    "a column of floats": CLASSES[:, None].float(),
    "one-hot": F.one_hot(CLASSES),
    "one-hot of bools": F.one_hot(CLASSES).bool(),
    "one-hot of floats": F.one_hot(CLASSES).double(),
}
LOSSES_OF_CLASSES = {
    "by name": "cross_entropy",
    "torch": nn.CrossEntropyLoss(),
    "a value per sample": nn.CrossEntropyLoss(reduction="none"),
    "a function": own,
}


@pytest.mark.parametrize("loss", LOSSES_OF_CLASSES.values(), ids=LOSSES_OF_CLASSES.keys())
@pytest.mark.parametrize("targets", FORMS.values(), ids=FORMS.keys())
def test_classes_of_every_form_give_the_loss_of_int64_ones(targets, loss):
    model = linear(3)
    expected = float(F.cross_entropy(model(X), CLASSES).detach())
    objective = Objective(model, loss, (X, targets), chunk_size=7)
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    again = Objective(model, loss, (X, targets), chunk_size=N)
    torch.testing.assert_close(objective.gradient(), again.gradient(), rtol=1e-12, atol=1e-14)


NUMBERS = {
    "whole numbers": TWO,
    "bools": TWO.bool(),
    "int32 in a column": TWO[:, None].int(),
    "float32 in a column": TWO[:, None].float(),
    "bytes": TWO.byte(),
}


@pytest.mark.parametrize("targets", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_of_every_form_give_the_binary_loss_of_floats(targets):
    for shape in ((N, 1), (N,)):
        model = linear(1) if len(shape) == 2 else nn.Sequential(linear(1), nn.Flatten(0))
        wanted = TWO.double().view(shape)
        expected = float(F.binary_cross_entropy_with_logits(model(X), wanted).detach())
        objective = Objective(model, nn.BCEWithLogitsLoss(), (X, targets), chunk_size=5)
        assert objective.loss() == pytest.approx(expected, rel=1e-12)
        assert 0.2 < objective.accuracy() < 1


@pytest.mark.parametrize("targets", NUMBERS.values(), ids=NUMBERS.keys())
def test_the_named_squared_error_takes_columns_and_whole_numbers(targets):
    model = linear(1)
    expected = float((model(X)[:, 0] - TWO).square().mean().detach())
    found = Objective(model, "mse", (X, targets), chunk_size=5)
    assert found.loss() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [nn.HuberLoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.MSELoss()])
def test_regression_losses_take_whole_numbers_and_doubles(loss):
    model = linear(1, torch.float32)
    wanted = CLASSES[:, None]
    expected = float(loss(model.double()(X), wanted.double()).detach())
    for targets in (wanted, wanted.int(), wanted.double()):
        found = Objective(linear(1, torch.float32), loss, (X, targets), chunk_size=5)
        assert found.loss() == pytest.approx(expected, rel=1e-5)
        assert found.gradient().isfinite().all()


def test_what_was_converted_is_said():
    described = Objective(linear(3), "cross_entropy", (X, CLASSES[:, None].int())).describe()
    assert described["targets_converted"] == "int32 [24, 1] to int64 [24]"
    assert "targets_converted" not in Objective(linear(3), own, (X, CLASSES)).describe()


def spread(outputs, targets):
    return (outputs - targets).square().mean()


def spread_by_row(outputs, targets):
    return (outputs - targets).square().mean(-1)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.PoissonNLLLoss(), nn.L1Loss(), spread, spread_by_row]
)
def test_outputs_in_a_column_against_targets_in_a_row_are_refused(loss):
    with pytest.raises(InvalidArgumentError, match=r"\[B, 1\].*\[B\].*broadcast.*\[:, None\]"):
        Objective(linear(1), loss, (X, CLASSES.double()), chunk_size=N)


def test_a_loss_that_takes_the_column_itself_is_measured():
    found = Objective(linear(1), lambda o, t: (o[:, 0] - t) ** 2, (X, CLASSES.double()))
    expected = float((linear(1)(X)[:, 0] - CLASSES).square().mean().detach())
    assert found.loss() == pytest.approx(expected, rel=1e-12)


def numbered(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")  # the line that is shown


EXPLAINED = {
    "a class too many": ("cross_entropy", CLASSES + 1, "hold 3.*3 classes, 0 to 2.*ignore_index"),
    "a marked class": (nn.CrossEntropyLoss(), CLASSES - 1, "hold -1.*ignore_index=-1"),
    "parts of classes": ("cross_entropy", CLASSES + 0.5, r"cross_entropy needs.*got \[2, 3\]"),
    "shares of classes": (
        "cross_entropy",
        torch.full((N, 3), 1 / 3),
        r"cross_entropy needs.*probabilities \[B, C\] give torch.nn.CrossEntropyLoss\(\)",
    ),
    "parts of classes to a function": (
        numbered,
        CLASSES + 0.5,
        r"test_targets.py, line \d+, numbered \(return F.cross.*float64 \[2, 3\].*float64 \[2\]",
    ),
    "no number at all": (lambda o, t: float(o.sum()), CLASSES, "must return a tensor.*float"),
}


@pytest.mark.parametrize(("loss", "targets", "words"), EXPLAINED.values(), ids=EXPLAINED.keys())
def test_what_has_no_exact_form_is_explained(loss, targets, words):
    with pytest.raises(FlatkitError, match=words):
        Objective(linear(3), loss, (X, targets))


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()])
@pytest.mark.parametrize("targets", [torch.zeros(N).long(), torch.zeros(N, 1)])
def test_one_score_is_no_cross_entropy(loss, targets):
    with pytest.raises(InvalidArgumentError, match=r"one score a sample.*BCEWithLogitsLoss"):
        Objective(linear(1), loss, (X, targets))


IMAGES = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MASKS = torch.randint(0, 3, (5, 6, 6), generator=torch.Generator().manual_seed(3))
MASKS[0, :4] = 255
MASKS[1] = 255


class Segments(nn.Module):
    """Labels of pixels in a dictionary, as torchvision gives them."""

    def __init__(self, key):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.key = nn.Conv2d(3, 3, 3, padding=1).double(), key

    def forward(self, x):
        found = self.conv(x)
        return found if self.key is None else {self.key: found, "aux": found.mean()}


PIXELS = {
    "by name": LOSSES.build("cross_entropy", ignore_index=255),
    "torch": nn.CrossEntropyLoss(ignore_index=255),
    "weights": nn.CrossEntropyLoss(
        weight=torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64), ignore_index=255
    ),
}


@pytest.mark.parametrize("key", [None, "out", "logits"])
@pytest.mark.parametrize("loss", PIXELS.values(), ids=PIXELS.keys())
@pytest.mark.parametrize("form", [torch.int64, torch.uint8, torch.int32])
def test_images_against_labels_are_the_mean_over_the_pixels_that_count(loss, key, form):
    model = Segments(key)
    outputs = model(IMAGES) if key is None else model(IMAGES)[key]
    weight = getattr(loss, "weight", None)
    expected = F.cross_entropy(outputs, MASKS, ignore_index=255, weight=weight).detach()
    for masks in (MASKS, MASKS[:, None]):
        for size in (1, 2, 5):
            objective = Objective(model, loss, (IMAGES, masks.to(form)), chunk_size=size)
            assert objective.loss() == pytest.approx(float(expected), rel=1e-12)
            assert objective.num_samples == 4  # of one no pixel counts
    with pytest.raises(InvalidArgumentError, match="accuracy needs"):
        objective.accuracy()


def test_the_top_eigenvalue_of_images_is_that_of_the_mean_over_pixels():
    model = nn.Conv2d(3, 3, 1).double()

    def mean(theta):
        outputs = F.conv2d(IMAGES, theta[:9].view(3, 3, 1, 1), theta[9:])
        return F.cross_entropy(outputs, MASKS, ignore_index=255)

    objective = Objective(model, CrossEntropy(ignore_index=255), (IMAGES, MASKS), chunk_size=2)
    expected = torch.autograd.functional.hessian(mean, objective.theta)
    hessian = HessianOperator(objective)
    found = torch.stack([hessian @ unit for unit in torch.eye(12, dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_loss_with_an_ignored_class_is_named_and_built_again():
    loss = CrossEntropy(ignore_index=255)
    assert build_loss(loss.spec()) == loss and "ignore_index=255" in str(loss)
    assert CrossEntropy().spec() == {"name": "cross_entropy", "kwargs": {"label_smoothing": 0.0}}


def test_samples_whose_class_is_ignored_do_not_count():
    targets = CLASSES.clone()
    targets[3] = -100
    model = linear(3)
    objective = Objective(model, "cross_entropy", (X, targets), chunk_size=5)
    expected = float(F.cross_entropy(model(X), targets).detach())
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    assert objective.num_samples == N - 1
    assert objective.describe()["mean_over"] == "samples"


class WithLoss(nn.Module):
    """Returns its loss and scores as Hugging Face's models do without a dictionary."""

    def __init__(self):
        super().__init__()
        self.layer = linear(3)

    def forward(self, input, labels):
        scores = self.layer(input)
        return F.cross_entropy(scores, labels), scores


@pytest.mark.parametrize("loss", ["model", "cross_entropy", own])
def test_a_tuple_with_a_loss_gives_loss_and_scores(loss):
    expected = float(F.cross_entropy(linear(3)(X), CLASSES).detach())
    if loss is own:
        loss = lambda outputs, targets: own(outputs[1], targets)  # noqa: E731
    objective = Objective(WithLoss(), loss, {"input": X, "labels": CLASSES}, chunk_size=5)
    assert objective.loss() == pytest.approx(expected, rel=1e-12)


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear(3)

    def forward(self, x):
        return self.layer(x[:, :3])  # too few numbers


def test_what_the_model_raises_is_shown_with_its_line_and_layer():
    words = r"model fails in .*test_targets.py, line \d+, forward \(return self.layer.*layer layer"
    with pytest.raises(UserCodeError, match=words) as raised:
        Objective(Fails(), "cross_entropy", (X, CLASSES))
    assert isinstance(raised.value.__cause__, RuntimeError)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.layer(self.first(x).double())


def test_errors_that_the_way_of_calling_brings_about_come_with_advice():
    with pytest.raises(UserCodeError, match=r"same dtype.*; flatkit computes in a copy.*x.to\("):
        Objective(Mixed(), "cross_entropy", (X, CLASSES))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(UserCodeError, match=r"more than 1 value.*`chunk_size` that leaves no"):
        Objective(model, "mse", (X, CLASSES), batchnorm="train", chunk_size=N - 1).loss()


def test_layers_of_torch_alone_are_named():
    with pytest.raises(UserCodeError, match="the model fails, layer 1: RuntimeError: mat1"):
        Objective(nn.Sequential(nn.Tanh(), nn.Linear(5, 3)).double(), "mse", (X, CLASSES))


class Ignoring(nn.Module):
    """A loss with an `ignore_index` of its own meaning, as of pixels in segmentation."""

    ignore_index = -100

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, outputs, targets):
        counts = (targets != self.ignore_index).to(outputs)
        return (self.value(outputs, targets.to(outputs), reduction="none") * counts).mean()


@pytest.mark.parametrize("scores", [1, 3], ids=["one score", "counts"])
def test_what_an_ignore_index_means_to_a_loss_of_the_user_is_left_to_it(scores):
    value = F.binary_cross_entropy_with_logits if scores == 1 else F.poisson_nll_loss
    targets = TWO[:, None].double() if scores == 1 else CLASSES[:, None] + torch.tensor([0, 2, 5])
    model = linear(scores)
    objective = Objective(model, Ignoring(value), (X, targets))
    expected = float(value(model(X), targets.double()).detach())
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
