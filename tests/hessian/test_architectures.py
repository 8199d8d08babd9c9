"""The layer-wise engine takes published architectures, and its products are right."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatkit import Objective
from flatkit.hessian.products import build_engine
from flatkit.hessian.unsupported import UnsupportedError
from tests.architectures import ARCHITECTURES
from tests.cases import function_of
from tests.versions import before


class HardSigmoid(nn.Module):
    """That of torch has no second derivative in torch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def truth(model: nn.Module, x: Tensor, y: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient and a product with the Hessian."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, HardSigmoid())
    function, theta = function_of(model, lambda run: F.cross_entropy(run(x), y))
    theta.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(function(theta), theta, create_graph=True)
        (product,) = torch.autograd.grad(gradient, theta, vector)
    return gradient.detach(), product


def check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Compare the gradient and a product of the layer-wise engine with the truth."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=3)
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    engine = build_engine("layers", objective, objective.theta)
    found = torch.zeros(2, objective.num_parameters, dtype=torch.float64)
    for chunk in objective.chunks():
        prepared = engine.prepare(chunk)
        assert prepared.gradient is not None
        found += torch.stack([prepared.gradient, prepared.products(vector[None])[0]])
    for value, right in zip(found, truth(model, x, y, vector), strict=True):
        assert float((value - right).norm()) <= 1e-11 * float(right.norm())


class Corner(nn.Module):
    """A convolution to images [B, 4, 5, 4], something in a corner of torch, and a head."""

    def __init__(self, run: Callable[["Corner", Tensor, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.first, self.head = run, nn.Conv2d(2, 4, 3, padding=1), nn.LazyLinear(3)
        self.scale, self.one = nn.Parameter(torch.rand(1)), nn.Parameter(torch.rand(4, 1, 1))
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        made = self.run(self, self.first(x), x)
        return self.head(made.reshape(x.shape[0], -1))


def conv(*sizes: int, **more: Any) -> nn.Module:
    return nn.Conv2d(*sizes, **more)


def written_over(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h += h.mean((1, 2, 3), keepdim=True)
    h.mul_(0.5)
    F.relu(h, True)
    return h.sin()


def in_a_view(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h[:, :1].mul_(3.0)
    return h * h


def under_two_names(m: Any, h: Tensor, x: Tensor) -> Tensor:
    other = h.view(len(h), -1)
    h += 1
    return other**2


def einsum_in_place(m: Any, h: Tensor, x: Tensor) -> Tensor:
    made = torch.einsum("bchw,bdhw->bcd", h, h)
    made += 1
    return made.flatten(1) * h.mean((1, 2, 3))[:, None]


def over_what_einsum_turns(m: Any, h: Tensor, x: Tensor) -> Tensor:
    turned = torch.einsum("bchw->bhwc", h)
    turned *= 2
    return h * h


def over_time(m: Any, h: Tensor, x: Tensor) -> Tensor:
    state = h.new_zeros(h.shape[0], h.shape[2], 4)
    for place in range(h.shape[1]):
        state = torch.tanh(m.cell(h[:, place]) + state)
    return state if h.size(2) > 4 else h


def without_gradients(m: Any, h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        two = 2 + 0 * h.sum()
    most = h.amax((2, 3), keepdim=True).detach()
    return two * h * h - (h - most).logsumexp((2, 3), keepdim=True) - most


def of_several(m: Any, h: Tensor, x: Tensor) -> Tensor:
    largest, _ = h.max(dim=1)
    flat = h.flatten(1)
    if before(torch, 2, 5):  # aminmax has no derivative there
        low, high = flat.amin(dim=1), flat.amax(dim=1)
    else:
        low, high = flat.aminmax(dim=1)
    return largest * (high - low)[:, None, None] * h.sort(dim=1).values[:, 1]


def cut(m: Any, h: Tensor, x: Tensor) -> Tensor:
    one, two = h.split([1, 3], dim=1)
    left, right = torch.tensor_split(two, [2], dim=1)
    rows = [row.tanh() for row in h.unbind(2)]
    return torch.cat([one * left, right, h[:, [2, 0]], torch.stack(rows, 2)], axis=1)


CORNERS: dict[str, Callable[[], Corner]] = {
    "reflected": lambda: Corner(
        lambda m, h, x: m.a(h) ** 2, a=conv(4, 2, 3, padding=2, padding_mode="reflect")
    ),
    "circular, dilated, in groups": lambda: Corner(
        lambda m, h, x: m.a(h).sin(),
        a=conv(4, 4, 2, padding=1, dilation=2, groups=2, padding_mode="circular"),
    ),
    "strides that leave a rest": lambda: Corner(
        lambda m, h, x: m.b(m.a(h)), a=conv(4, 2, (1, 2), stride=2), b=nn.BatchNorm2d(2)
    ),
    "one sample after the other": lambda: Corner(
        lambda m, h, x: (
            torch.stack([m.b(m.a(image)) for image in h.unbind(0)]) * F.max_pool2d(h, 2)[:, :2]
        ),
        a=conv(4, 2, 1),
        b=nn.MaxPool2d(2),
    ),
    "normalised by channel": lambda: Corner(
        lambda m, h, x: m.a(h.sin()) ** 2 * m.b(h.flatten(2)).view(h.shape).cos(),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm1d(4, affine=False),
    ),
    "same": lambda: Corner(
        lambda m, h, x: m.a(h).exp(), a=conv(4, 2, 3, padding="same", dilation=2)
    ),
    "pools that end beyond": lambda: Corner(
        lambda m, h, x: (
            m.b(m.a(h.tanh())) * F.max_pool2d(h, 2, 2, 1, 1, True).amax((1, 2, 3), True)
        ),
        a=nn.MaxPool2d(2, 1, padding=1, dilation=2, ceil_mode=True),
        b=nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    "padding with a value": lambda: Corner(
        lambda m, h, x: (
            F.pad(h, (1, 0), "constant", 2.0) ** 2 * F.pad(h, (0, 1, 0, 0), mode="replicate")
        )
    ),
    "written over": lambda: Corner(written_over),
    "written over in a view": lambda: Corner(in_a_view),
    "written over under another name": lambda: Corner(under_two_names),
    "written over what einsum makes": lambda: Corner(einsum_in_place),
    "written over what einsum turns": lambda: Corner(over_what_einsum_turns),
    "a loop over a size": lambda: Corner(over_time, cell=nn.Linear(4, 4)),
    "without gradients": lambda: Corner(without_gradients),
    "of several": lambda: Corner(of_several),
    "cut": lambda: Corner(cut),
    "broadcast": lambda: Corner(
        lambda m, h, x: (m.one - h) / (m.scale * h.mean(1, keepdim=True)).cosh() + 2 ** (3 - h)
    ),
    "of itself": lambda: Corner(
        lambda m, h, x: h * h + h @ h.mT @ h - (h + h) / x.std((1, 2, 3), keepdim=True)
    ),
    "chosen": lambda: Corner(
        lambda m, h, x: torch.where(h > 0, h * h, 0.1 * m.one) + h.masked_fill(x[:, :1] > 0, 3.0)
    ),
    "a layer twice, its weight once more": lambda: Corner(
        lambda m, h, x: m.a(m.a(h).tanh()) @ m.a.weight, a=nn.Linear(4, 4)
    ),
    "dropout and identity": lambda: Corner(
        lambda m, h, x: F.dropout(m.a(h), 0.3, m.training) * m.b(input=h),
        a=nn.Dropout(0.5),
        b=nn.Identity(),
    ),
    "normalised": lambda: Corner(
        lambda m, h, x: m.a(h) * F.layer_norm(h, h.shape[2:], eps=0.1) + F.softmax(h * h, dim=1),
        a=nn.LayerNorm([5, 4], bias=False),
    ),
    "a list of what is computed": lambda: Corner(
        lambda m, h, x: sum([h.relu(), h**2, *({"a": h.sin()}).values()])
    ),
    "channels turned": lambda: Corner(
        lambda m, h, x: h.permute(0, -1, 1, 2) ** 2 + h.permute((0, 3, 1, 2)).flip(1)
    ),
    "attention": lambda: Corner(
        lambda m, h, x: F.scaled_dot_product_attention(query=h, key=h * h, value=h, is_causal=True)
    ),
}
REFUSED = {
    "written over in a view": "mul_ changes a tensor in place, and first is used after it",
    "written over under another name": "changes a tensor in place, and .* is used after it",
    "written over what einsum turns": "mul changes a tensor in place, and .* is used after it",
}


@pytest.mark.parametrize("name", CORNERS)
def test_products_in_corners_of_torch_are_those_of_double_backward(name: str):
    torch.manual_seed(0)
    model, x = CORNERS[name]().double().eval(), torch.randn(5, 2, 5, 4, dtype=torch.float64)
    y = torch.arange(5) % 3
    model(x)
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name]):
            check(model, x, y)
    else:
        check(model, x, y)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_with_architectures_are_those_of_double_backward(name: str):
    torch.manual_seed(0)
    model, x = ARCHITECTURES[name].build().double().eval(), ARCHITECTURES[name].inputs()
    check(model, x, torch.randint(0, 3, (len(x),)))
