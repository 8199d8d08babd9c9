"""Engines on networks of every kind: each product is the dense Hessian's, or states its error."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatkit import HessianOperator, Objective
from flatkit.errors import FlatkitError
from flatkit.hessian import EngineName
from tests.cases import function_of

N = 7
ENGINES: tuple[EngineName, ...] = ("layers", "double_backward", "forward_over_reverse")


class Net(nn.Module):
    """A forward pass written as a function of the module and its inputs, and its layers."""

    def __init__(self, run: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(2, 5)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x) + self.c(z)))


def two(run: Callable[..., Tensor], **more: Any) -> Net:
    return Net(run, a=nn.Linear(4, 5), b=nn.Linear(5, 3), **more)


def images(run: Callable[..., Tensor], features: int, channels: int = 2) -> Net:
    return Net(run, a=nn.Conv2d(2, channels, 2), b=nn.Linear(features, 3))


def in_place(net: Net, x: Tensor) -> Tensor:
    hidden = net.a(x).clone()
    hidden *= 2
    return net.b(hidden.mul_(net.a(x)))


def attention(net: Net, x: Tensor) -> Tensor:
    hidden = net.a(x)
    return net.b(F.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True).mean(1))


def gated(net: Net, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, dim=-1)
    return net.b(left * right.sigmoid())


def branched(net: Net, x: Tensor) -> Tensor:
    return torch.where(x[:, :1] > 0.8, net.b(net.a(x).tanh()), net.b(net.a(x) ** 2))


def routed(net: Net, x: Tensor) -> Tensor:
    """A mixture of experts, to one of which no sample is sent."""
    share, chosen = (net.gate(x) + torch.tensor([0.0, 0.0, -100.0])).softmax(1).max(1)
    images = x.view(-1, 1, 2, 2)
    total = x.new_zeros(len(x), 3)
    for number, expert in enumerate((net.a, net.b, net.c)):
        rows = (chosen == number).nonzero()[:, 0]
        total = total.index_add(0, rows, share[rows, None] * expert(images[rows]))
    return total


def expert() -> nn.Module:
    middle = (nn.GroupNorm(1, 2), nn.GELU(), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4))
    return nn.Sequential(nn.Conv2d(1, 2, 1), *middle, nn.Tanh(), nn.Linear(4, 3))


def learned(net: Net, x: Tensor) -> Tensor:
    """Takes a step of gradient descent on its own weight inside the forward pass."""
    with torch.enable_grad():
        inner = F.linear(torch.eye(4, dtype=x.dtype), net.a.weight).sin().sum()
        (slope,) = torch.autograd.grad(inner, net.a.weight, create_graph=True)
    return F.linear(x, net.a.weight - 0.1 * slope, net.a.bias)


def laplacian(net: Net, x: Tensor) -> Tensor:
    """Sums second derivatives by its inputs, by transforms of torch.func."""

    def at(place: Tensor) -> Tensor:
        return net.b(net.a(place).tanh())

    def one(place: Tensor) -> Tensor:
        return torch.func.hessian(at)(place).diagonal(dim1=1, dim2=2).sum(1)

    return torch.func.vmap(one)(x)


def controlled(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x).tanh()) if float(x.sum()) < 1e9 else net.b(net.a(x))


def rows_first(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(N, *shape, dtype=torch.float64),)


def words() -> tuple[Tensor, ...]:
    return (torch.randint(0, 6, (N, 3)),)


def last(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x)[0][:, -1])


def tied() -> Net:
    net = Net(
        lambda m, w: m.head(m.a(m.table(w)).tanh().mean(1))[:, :3],
        table=nn.Embedding(6, 4),
        a=nn.Linear(4, 4),
        head=nn.Linear(4, 6, bias=False),
    )
    net.head.weight = net.table.weight
    return net


def experts() -> Net:
    return Net(routed, gate=nn.Linear(4, 3), a=expert(), b=expert(), c=expert())


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "activation in place": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        rows_first(4),
    ),
    "experts without samples": (experts, rows_first(4)),
    "a step of learning inside": (lambda: Net(learned, a=nn.Linear(4, 3)), rows_first(4)),
    "second derivatives inside": (lambda: two(laplacian), rows_first(4)),
    "products in place": (lambda: two(in_place), rows_first(4)),
    "functional activation in place": (
        lambda: two(lambda m, x: m.b(F.silu(m.a(x), inplace=True))),
        rows_first(4),
    ),
    "functional attention": (lambda: two(attention), rows_first(3, 4)),
    "lstm": (
        lambda: Net(last, a=nn.LSTM(4, 2, batch_first=True), b=nn.Linear(2, 3)),
        rows_first(3, 4),
    ),
    "gru in both directions": (
        lambda: Net(last, a=nn.GRU(4, 2, bidirectional=True, batch_first=True), b=nn.Linear(4, 3)),
        rows_first(3, 4),
    ),
    "embedding with a tied head": (tied, words),
    "groups and normalisation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, groups=2, bias=False),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        rows_first(2, 3, 3),
    ),
    "dropout modules": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.Dropout(0.5), nn.FeatureAlphaDropout(0.2), nn.Linear(5, 3)
        ),
        rows_first(4),
    ),
    "spectral norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
        ),
        rows_first(4),
    ),
    "control flow that depends on values": (lambda: two(controlled), rows_first(4)),
    "samples that take another way": (lambda: two(branched), rows_first(4)),
    "several inputs": (
        TwoInputs,
        lambda: (torch.randn(N, 4).double(), torch.randn(N, 2).double()),
    ),
    "a module that is called twice": (
        lambda: two(lambda m, x: m.b(m.a(x).tanh() * m.a(2 * x).sigmoid())),
        rows_first(4),
    ),
    "gates": (lambda: Net(gated, a=nn.Linear(4, 10), b=nn.Linear(5, 3)), rows_first(4)),
    "padding with a value": (
        lambda: images(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=2.0).flatten(1)), 32),
        rows_first(2, 3, 3),
    ),
    "bilinear interpolation": (
        lambda: images(
            lambda m, x: m.b(F.interpolate(m.a(x), size=3, mode="bilinear").flatten(1)), 18
        ),
        rows_first(2, 3, 3),
    ),
    "time first inside": (
        lambda: two(lambda m, x: m.b(m.a(x.transpose(0, 1)).tanh().mean(0))),
        rows_first(3, 4),
    ),
    "tokens as rows inside": (
        lambda: two(lambda m, x: m.b(m.a(x.reshape(-1, 4)).tanh()).view(-1, 3, 3).mean(1)),
        rows_first(3, 4),
    ),
    "time to the front at the end": (
        lambda: two(lambda m, x: m.b(m.a(x).tanh()).transpose(0, 1).sum(0)),
        rows_first(3, 4),
    ),
    "a parameter that the model uses itself": (
        lambda: two(lambda m, x: m.b((m.p + m.a(x)).tanh()) / m.p.exp().sum(), p=weight(5)),
        rows_first(4),
    ),
    "the largest of several": (
        lambda: two(lambda m, x: m.b(m.a(x).max(1).values)),
        rows_first(3, 4),
    ),
    "hooks": (lambda: hooked(), rows_first(4)),
}


NO_LAYERS = {
    "second derivatives inside",
    "a step of learning inside",
    "control flow that depends on values",
    "hooks",
}
"""Networks that layers refuse; elsewhere they multiply, or state their error."""


def weight(size: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.1, 1.0, size))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[1].register_forward_hook(lambda module, given, output: output * 2)
    return model


def dense(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Return the Hessian [P, P] by torch's own nested differentiation."""
    function, theta = function_of(model, lambda run: F.cross_entropy(run(*inputs), targets))
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(function, theta)
    assert isinstance(hessian, Tensor)
    return hessian


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by what torch.func imports
@pytest.mark.parametrize("name", NETS)
def test_every_product_is_right_or_states_how_wrong_it_is(name):
    build, draw = NETS[name]
    torch.manual_seed(0)
    model, inputs = build().double().eval(), draw()
    targets = torch.randint(0, 3, (N,))
    vectors = torch.randn(sum(p.numel() for p in model.parameters()), 2, dtype=torch.float64)
    truth = dense(model, inputs, targets) @ vectors
    objective = Objective(model, "cross_entropy", (*inputs, targets), chunk_size=4)
    auto = HessianOperator(objective)
    assert float((auto @ vectors - truth).norm() / truth.norm()) < 1e-9
    for engine in ENGINES:
        hessian = HessianOperator(objective, engine=engine)
        try:
            error = hessian.choice.error
        except FlatkitError as refusal:
            assert "no engine can multiply" in str(refusal)
            assert engine != "layers" or name in NO_LAYERS
            continue
        off = float((hessian @ vectors - truth).norm() / truth.norm())
        assert off < 1e-9 or (engine != "layers" and error is not None and off < 50 * error), (
            engine,
            off,
            error,
        )


def test_a_model_whose_output_is_one_number_inside_has_products():
    torch.manual_seed(0)
    model = two(lambda m, x: m.b(m.a(x).tanh()).mean().unsqueeze(0)).double()
    objective = Objective(
        model, lambda outputs, targets: outputs, (torch.randn(1, 4).double(), torch.zeros(1))
    )
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    layers, graph = (
        HessianOperator(objective, engine=engine) @ vector
        for engine in ("layers", "double_backward")
    )
    torch.testing.assert_close(layers, graph, rtol=1e-10, atol=1e-12)


def test_what_torch_differentiates_wrongly_twice_is_found_out():
    """The double backward of the fused kernel of weight_norm is no Hessian in torch 2.13."""
    torch.manual_seed(0)

    def run(net, x):
        weight = torch.ops.aten._weight_norm.default(net.first.weight, net.length, 0)
        return net.last(torch.tanh(F.linear(x, weight, net.first.bias)))

    model = Net(run, first=nn.Linear(4, 5), last=nn.Linear(5, 3))
    model.length = nn.Parameter(torch.ones(5, 1))
    differences_agree(model.double(), rel=1e-4)  # by central differences, as autograd is wrong


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_normalised_weights_are_differentiated_twice_by_autograd(norm, dim):
    """In place of that kernel, in both forms of torch."""
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(4, 5), dim=dim), nn.Tanh(), nn.Linear(5, 3))
    hessian = differences_agree(model.double())
    assert hessian.choice.engine in ("layers", "double_backward")
    assert "contradict" not in hessian.choice.against


def differences_agree(model: nn.Module, rel: float = 1e-5) -> HessianOperator:
    """Hold the Hessian along two directions against differences of the loss."""
    data = torch.randn(N, 4, dtype=torch.float64), torch.randint(0, 3, (N,))
    objective = Objective(model, "cross_entropy", data)
    hessian, theta = HessianOperator(objective), objective.theta
    u, v = torch.nn.functional.normalize(torch.randn(2, hessian.size, dtype=torch.float64))
    h = 1e-3
    corners = [
        s * t * objective.loss(theta + h * (s * u + t * v)) for s in (1, -1) for t in (1, -1)
    ]
    assert float(u @ (hessian @ v)) == pytest.approx(sum(corners) / (4 * h * h), rel=rel)
    return hessian


@pytest.mark.parametrize(
    "scaled",
    [
        lambda net, x: net.layer(x) * net.scale.exp(),  # as of CLIP
        lambda net, x: net.layer(x) * (net.scale * net.scale.tanh()).sigmoid(),
        lambda net, x: net.layer(x) * torch.stack([net.scale, net.scale.exp()]),
        lambda net, x: torch.tanh(net.layer(x) / (1 + net.scale**2) - net.scale.exp()),
    ],
)
def test_layers_take_functions_of_a_scalar_parameter(scaled):
    torch.manual_seed(0)
    model = Net(scaled, layer=nn.Linear(3, 2)).double()
    model.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    inputs, targets = torch.randn(N, 3).double(), torch.arange(N) % 2
    objective = Objective(model, "cross_entropy", (inputs, targets))
    function, theta = function_of(model, lambda run: F.cross_entropy(run(inputs), targets))
    hessian = torch.autograd.functional.hessian(function, theta)
    operator = HessianOperator(objective, engine="layers")
    vectors = torch.eye(objective.num_parameters).double()
    for products in (operator.matmat(vectors), torch.stack([operator.matvec(v) for v in vectors])):
        torch.testing.assert_close(products, hessian)
