import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import nn

from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.objective.losses import LOSSES, CrossEntropy, MeanSquared, build_loss

OUTPUTS = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 3, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_its_definition_for_every_sample(smoothing):
    targets = (1 - smoothing) * np.eye(4)[TARGETS.numpy()] + smoothing / 4
    expected = -(targets * log_softmax(OUTPUTS.numpy(), axis=1)).sum(1)
    values = CrossEntropy(label_smoothing=smoothing)(OUTPUTS, TARGETS)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


def test_mse_of_classes_is_the_squared_distance_to_one_hot_over_the_outputs():
    expected = ((OUTPUTS.numpy() - np.eye(4)[TARGETS.numpy()]) ** 2).mean(1)
    np.testing.assert_allclose(MeanSquared()(OUTPUTS, TARGETS).numpy(), expected, rtol=1e-12)


def test_mse_of_numbers_is_the_squared_error():
    assert MeanSquared()(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])).tolist() == [4.0, 0.0]


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.25), MeanSquared()])
def test_a_loss_is_rebuilt_from_its_spec(loss):
    assert build_loss(loss.spec()) == loss
    assert loss.spec()["name"] in LOSSES.names
    assert str(loss).startswith(loss.spec()["name"] + "(")


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"outputs \[B, C\].*\[7, 4\] and \[7, 4\]"):
        CrossEntropy()(OUTPUTS, OUTPUTS)
    with pytest.raises(InvalidArgumentError, match=r"got \[7, 3\] for \[7, 4\]"):
        MeanSquared()(OUTPUTS, torch.zeros(7, 3))


def test_label_smoothing_outside_the_unit_interval_is_refused():
    with pytest.raises(InvalidArgumentError, match="label_smoothing"):
        CrossEntropy(label_smoothing=1.5)


def test_class_weights_of_32_bits_weigh_a_network_of_64_as_torch_does():
    model, weight = nn.Linear(4, 3).double(), torch.tensor([1.0, 3.0, 0.5])
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    found = Objective(model, nn.CrossEntropyLoss(weight=weight), (x, y), chunk_size=7).loss()
    expected = F.cross_entropy(model(x), y, weight=weight.double())
    assert found == pytest.approx(expected.item(), rel=1e-12)
