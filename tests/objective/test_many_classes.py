"""Cross-entropy over many classes: the values and derivatives of torch's, and less memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatkit import Objective
from flatkit.hessian import HessianOperator
from flatkit.hessian.memory import measure_bytes
from flatkit.objective import vocabulary
from flatkit.objective.losses import CrossEntropy, TokenCrossEntropy, WeightedMean
from flatkit.objective.vocabulary import MANY_CLASSES, cross_entropy


@pytest.fixture
def in_blocks(monkeypatch):
    """Few classes are many here, and blocks of a few rows, as in a large vocabulary."""
    monkeypatch.setattr(vocabulary, "MANY_CLASSES", 8)
    monkeypatch.setattr(vocabulary, "_BLOCK", 40)


def second_derivatives(values, scores: Tensor) -> list[Tensor]:
    """The values, their gradient, and its derivatives along a direction and in the weights."""
    found = values(scores)
    weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
    weights.requires_grad_()
    (slope,) = torch.autograd.grad((found * weights).sum(), scores, create_graph=True)
    along = torch.linspace(-3, 1, scores.numel(), dtype=torch.float64).view_as(scores).cos()
    bent = torch.autograd.grad((slope * along).sum(), (scores, weights))
    return [found.detach(), slope.detach(), *bent]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(7, 11), (3, 11, 5), (2, 11, 3, 4)])
def test_values_and_two_derivatives_are_those_of_torch(in_blocks, shape, smoothing):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    classes = torch.randint(11, (shape[0], *shape[2:]), generator=generator)
    classes.view(-1)[[0, -2]] = -100
    ours, theirs = (
        second_derivatives(
            lambda s, f=f, given=given: f(s, classes, label_smoothing=smoothing, **given), scores
        )
        for f, given in ((cross_entropy, {}), (F.cross_entropy, {"reduction": "none"}))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", [1e4, -300.0])
def test_what_is_added_to_all_scores_of_a_row_rounds_nothing(in_blocks, level):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-40, 40, (7, 11), generator=generator) / 8  # exact in 32 bits, also + 1e4
    classes = steps.argmax(1)
    found = second_derivatives(
        lambda s: cross_entropy(s, classes), (steps + level).requires_grad_()
    )
    truth = second_derivatives(
        lambda s: F.cross_entropy(s, classes, reduction="none"), steps.double().requires_grad_()
    )
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), WeightedMean(nn.CrossEntropyLoss())])
@pytest.mark.parametrize("many", [8, 1000])
def test_classes_of_8_bits_count_as_those_of_64(loss, many, monkeypatch):
    monkeypatch.setattr(vocabulary, "MANY_CLASSES", many)
    scores, classes = torch.randn(4, 200), torch.tensor([156, 3, 156, 199])
    torch.testing.assert_close(loss(scores, classes.byte()), loss(scores, classes))
    assert loss.weights(classes.byte()).tolist() == [1, 1, 1, 1]


def test_tokens_of_8_bits_count_as_those_of_64():
    scores, classes = torch.randn(2, 3, 200), torch.tensor([[156, 3, 4], [156, 156, 199]])
    loss = TokenCrossEntropy()
    torch.testing.assert_close(loss(scores, classes.byte()), loss(scores, classes))
    assert loss.weights(classes.byte()).tolist() == [3, 3]


@pytest.mark.parametrize("shift", [False, True])
def test_tokens_go_through_it_as_views(in_blocks, shift, monkeypatch):
    scores = torch.randn(3, 6, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (3, 6))
    ours = second_derivatives(lambda s: TokenCrossEntropy(shift=shift)(s, targets), scores)
    monkeypatch.setattr(vocabulary, "MANY_CLASSES", 100)
    theirs = second_derivatives(lambda s: TokenCrossEntropy(shift=shift)(s, targets), scores)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_third_derivative_is_refused_not_wrong(in_blocks):
    scores = torch.randn(3, 11, requires_grad=True)
    (slope,) = torch.autograd.grad(
        cross_entropy(scores, torch.arange(3)).sum(), scores, create_graph=True
    )
    (bent,) = torch.autograd.grad(slope.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(bent.sum(), scores)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_forward_derivatives_are_those_of_torch(in_blocks):
    scores, along = torch.randn(3, 11), torch.randn(3, 11)
    classes = torch.arange(3)
    ours, theirs = (
        torch.func.jvp(lambda s, f=f: f(s).sum(), (scores,), (along,))[1]
        for f in (
            lambda s: cross_entropy(s, classes),
            lambda s: F.cross_entropy(s, classes, reduction="none"),
        )
    )
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_class_weights_keep_nothing_of_a_transform():
    loss, classes = WeightedMean(nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))), torch.arange(2)
    scores = torch.randn(2, 2, dtype=torch.float64)
    slope = torch.func.grad(lambda s: loss(s, classes).sum())
    torch.func.jvp(slope, (scores,), (scores,))
    truth = (scores.softmax(1) - torch.eye(2)) * torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(slope(scores), truth)


@pytest.mark.parametrize("engine", ["layers", "double_backward", "forward_over_reverse"])
def test_products_are_those_of_torch(engine, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 11))
    data = (torch.randn(9, 4), torch.randint(11, (9,)))
    theirs = Objective(model, F.cross_entropy, data, dtype=torch.float64)
    vector = torch.randn(theirs.num_parameters, dtype=torch.float64)
    truth = HessianOperator(theirs) @ vector
    monkeypatch.setattr(vocabulary, "MANY_CLASSES", 8)
    ours = Objective(model, "cross_entropy", data, dtype=torch.float64)
    product = HessianOperator(ours, engine=engine) @ vector
    torch.testing.assert_close(product, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("loss", [CrossEntropy(), WeightedMean(nn.CrossEntropyLoss())])
def test_no_second_tensor_of_the_outputs_is_made(loss):
    rows = 2**13 // 8
    scores = torch.randn(rows, 2 * MANY_CLASSES, requires_grad=True)
    classes = torch.randint(2 * MANY_CLASSES, (rows,))
    blocks = 4 * 4 * vocabulary._BLOCK

    def passes(values) -> None:
        (slope,) = torch.autograd.grad(values(scores, classes).sum(), scores, create_graph=True)
        torch.autograd.grad(slope, scores, slope.detach())

    def value(values) -> None:
        with torch.no_grad():
            values(scores, classes)

    assert measure_bytes(lambda: value(loss))[0] < blocks
    # The gradient, and along it the second derivative.
    assert measure_bytes(lambda: passes(loss))[0] < 2 * scores.nbytes + blocks
    assert measure_bytes(lambda: passes(F.cross_entropy))[0] > 3 * scores.nbytes


def test_scores_of_16_bits_are_computed_with_in_32(in_blocks):
    scores = torch.randn(5, 11).bfloat16().requires_grad_()
    values = cross_entropy(scores, torch.arange(5))
    assert values.dtype == torch.float32
    truth = F.cross_entropy(scores.detach().float(), torch.arange(5), reduction="none")
    torch.testing.assert_close(values, truth)
    assert torch.autograd.grad(values.sum(), scores)[0].dtype == torch.bfloat16
