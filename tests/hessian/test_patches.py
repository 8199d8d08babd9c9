"""The gradient of a convolution's weight by patches is that of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.hessian.layers import affine, patches

SETTINGS = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 2), (2, 1), (0, 2), (1, 3)),
    ((1, 1), (2, 2), (0, 0), (1, 1)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), SETTINGS)
@pytest.mark.parametrize("block", [1, 2**20])
def test_the_gradient_of_a_weight_is_that_of_torch(
    monkeypatch, kernel, stride, padding, dilation, block
):
    monkeypatch.setattr(patches, "_BLOCK", block)
    torch.manual_seed(0)
    weight = torch.randn(5, 4, *kernel, dtype=torch.float64, requires_grad=True)
    value, pairs = torch.zeros((), dtype=torch.float64), []
    for _ in range(2):
        x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
        y = F.conv2d(x, weight, None, stride, padding, dilation)
        pairs.append((torch.randn_like(y), x.contiguous(memory_format=torch.channels_last)))
        value = value + (y * pairs[-1][0]).sum()
    (exact,) = torch.autograd.grad(value, weight)
    found = patches.weight_gradient(pairs, kernel, stride, padding, dilation)
    torch.testing.assert_close(found, exact)


def test_many_channels_over_few_pixels_go_by_patches_and_give_the_same_product(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 128, 1), nn.Tanh(), nn.Conv2d(128, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.Flatten()
    )
    data = torch.randn(6, 2, 4, 4), torch.randint(8, (6,))
    taken = []
    real = affine.weight_gradient
    monkeypatch.setattr(affine, "weight_gradient", lambda *a: taken.append(len(a[0])) or real(*a))
    single = HessianOperator(Objective(model, "cross_entropy", data), engine="layers")
    vector = torch.randn(single.size)
    found = single @ vector
    assert 2 in taken
    exact = HessianOperator(
        Objective(model.double(), "cross_entropy", (data[0].double(), data[1])),
        engine="double_backward",
    )
    expected = exact @ vector.double()
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
