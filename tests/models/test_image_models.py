"""The networks for small images, against their published sizes and plain formulas."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS

CIFAR = {"in_shape": (3, 32, 32), "classes": 10}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "count"),
    [
        ("resnet20", {}, 269_722),
        ("resnet56", {}, 853_018),
        ("resnet18", {}, 11_173_962),
        ("wide_resnet", {"depth": 16, "widen": 8}, 10_961_370),
        ("wide_resnet", {"depth": 28, "widen": 10}, 36_479_194),
        ("wide_resnet", {"depth": 40, "widen": 4}, 8_949_210),
        ("pyramidnet", {"alpha": 48}, 1_772_706),
        ("pyramidnet", {"alpha": 270}, 28_485_477),
    ],
)
def test_the_networks_have_their_published_numbers_of_parameters(name, kwargs, count):
    with torch.device("meta"):
        assert parameters(MODELS.build(name, **CIFAR, **kwargs)) == count


def test_a_vit_has_the_parameters_of_its_parts():
    model = MODELS.build("vit", **CIFAR, patch=4, width=24, depth=3, heads=4)
    tokens = 48 * 24 + 24 + 64 * 24
    block = 2 * 48 + (24 * 72 + 72) + (24 * 24 + 24) + (24 * 96 + 96) + (96 * 24 + 24)
    assert parameters(model) == tokens + 3 * block + 48 + 24 * 10 + 10


SMALL = [
    ("resnet20", {"width": 2}),
    ("resnet56", {"width": 2}),
    ("resnet18", {"width": 2}),
    ("wide_resnet", {"depth": 10, "widen": 1}),
    ("pyramidnet", {"depth": 14, "alpha": 5}),
    ("vit", {"width": 8, "depth": 1, "heads": 2}),
]


@pytest.mark.parametrize(("name", "kwargs"), SMALL)
@pytest.mark.parametrize("in_shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
def test_every_network_takes_the_usual_images_and_all_its_parameters_matter(name, kwargs, in_shape):
    model = MODELS.build(name, in_shape=in_shape, classes=7, **kwargs)
    outputs = model(torch.randn(3, *in_shape))
    assert outputs.shape == (3, 7)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize(("name", "kwargs"), SMALL)
def test_hessian_products_of_every_network_agree_with_differences_of_gradients(name, kwargs):
    torch.manual_seed(0)
    model = MODELS.build(name, in_shape=(1, 8, 8), classes=3, **kwargs).double()
    data = (torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 3)
    model(data[0])  # moves the running statistics
    objective = Objective(model.eval(), "cross_entropy", data)
    direction = torch.randn(objective.num_parameters, dtype=torch.float64)
    direction /= direction.norm()
    product = HessianOperator(objective) @ direction
    eps, theta = 1e-6, objective.theta
    forward, back = (objective.gradient(theta + sign * eps * direction) for sign in (1, -1))
    expected = (forward - back) / (2 * eps)
    assert float((product - expected).norm()) <= 1e-5 * (1 + float(expected.norm()))


def state_of(block: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def normalised(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
    return (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + state[f"{name}.bias"].view(
        1, -1, 1, 1
    )


def shaken(model: nn.Module) -> Any:
    """Give BatchNorm statistics and weights that are not those of a new layer."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    return model.double().eval()


def test_a_block_of_resnet18_that_halves_the_image_equals_its_formula():
    model = shaken(MODELS.build("resnet18", in_shape=(1, 8, 8), classes=3, width=2))
    block = model.layer2[0]
    s, x = state_of(block), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    y = normalised(F.conv2d(x, s["conv1.weight"], stride=2, padding=1), s, "batchnorm1").relu()
    y = normalised(F.conv2d(y, s["conv2.weight"], padding=1), s, "batchnorm2")
    side = normalised(F.conv2d(x, s["shortcut.conv.weight"], stride=2), s, "shortcut.batchnorm")
    torch.testing.assert_close(block(x), (y + side).relu())


def test_a_block_of_wide_resnet_that_halves_the_image_equals_its_formula():
    model = shaken(MODELS.build("wide_resnet", in_shape=(1, 8, 8), classes=3, depth=16, widen=1))
    for number in (0, 1):
        block = model.layer2[number]
        s, x = state_of(block), torch.randn(2, 32 if number else 16, 8, 8, dtype=torch.float64)
        stride = 1 if number else 2
        active = normalised(x, s, "batchnorm1").relu()
        y = F.conv2d(active, s["conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(normalised(y, s, "batchnorm2").relu(), s["conv2.weight"], padding=1)
        side = x if number else F.conv2d(active, s["shortcut.weight"], stride=2)
        torch.testing.assert_close(block(x), y + side)


def test_a_block_of_pyramidnet_that_halves_the_image_equals_its_formula():
    model = shaken(MODELS.build("pyramidnet", in_shape=(1, 8, 8), classes=3, depth=14, alpha=7))
    block = model.layer2[0]
    s, channels = state_of(block), block.conv1.in_channels
    x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    y = F.conv2d(normalised(x, s, "batchnorm1"), s["conv1.weight"], stride=2, padding=1)
    y = F.conv2d(normalised(y, s, "batchnorm2").relu(), s["conv2.weight"], padding=1)
    y = normalised(y, s, "batchnorm3")
    pooled = sum(x[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)) / 4
    expected = y.clone()
    expected[:, :channels] += pooled
    torch.testing.assert_close(block(x), expected)


def test_a_pyramid_grows_by_alpha_channels_in_equal_steps():
    model: Any = MODELS.build("pyramidnet", in_shape=(3, 32, 32), classes=10, depth=20, alpha=30)
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    widths = [block.conv2.out_channels for block in blocks]
    assert widths == [round(16 + 30 * (i + 1) / 9) for i in range(9)]
    assert widths[-1] == 46


def test_the_attention_of_the_vit_equals_its_formula():
    model: Any = MODELS.build("vit", in_shape=(1, 8, 8), classes=3, width=6, depth=1, heads=2)
    model.double()
    attention = model.blocks[0].attention
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    p = dict(attention.named_parameters())
    rows = x @ p["query_key_value.weight"].T + p["query_key_value.bias"]
    parts = []
    for head in range(2):
        q, k, v = (rows[..., 6 * i + 3 * head : 6 * i + 3 * head + 3] for i in range(3))
        parts.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(3), -1) @ v)
    expected = torch.cat(parts, -1) @ p["back.weight"].T + p["back.bias"]
    torch.testing.assert_close(attention(x), expected)


def test_the_vit_sees_where_a_patch_is():
    model = MODELS.build("vit", in_shape=(1, 8, 8), classes=3, width=6, depth=1, heads=2)
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(model(x), model(x.flip(3)))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet18", {"in_shape": (3, 4, 4)}, "resnet18 needs in_shape.*at least 8"),
        ("resnet56", {"in_shape": (8,)}, "resnet56 needs in_shape"),
        ("resnet56", {"width": 0}, "width"),
        ("wide_resnet", {"depth": 20}, r"depth must be 6n \+ 4"),
        ("wide_resnet", {"depth": 4}, "depth must be a whole number >= 10"),
        ("wide_resnet", {"widen": 0}, "widen"),
        ("pyramidnet", {"depth": 16}, r"depth must be 6n \+ 2"),
        ("pyramidnet", {"alpha": 0}, "alpha"),
        ("pyramidnet", {"in_shape": (3, 30, 30)}, "multiples of 4"),
        ("vit", {"patch": 5}, "patch must divide"),
        ("vit", {"patch": 64}, "vit needs in_shape.*at least 64"),
        ("vit", {"width": 10, "heads": 3}, "width must be a multiple of heads"),
        ("vit", {"depth": 0}, "depth"),
    ],
)
def test_sizes_that_cannot_be_are_named(name, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        MODELS.build(name, **{**CIFAR, **kwargs})
