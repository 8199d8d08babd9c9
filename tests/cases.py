"""Small networks and data that the tests share, and references that share no code with flatkit.

The references use `torch.autograd.functional` on a full-batch loss written out here, in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A model with its data and loss.

    `mean_loss` is the plain mean over the full batch, as a user would write it.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], Pair]
    loss: str = "cross_entropy"

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "mse":
            return ((outputs - targets) ** 2).mean()
        return F.cross_entropy(outputs, targets)


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().double()

    return make


def classes(n: int, *shape: int, num_classes: int = 3, seed: int = 1) -> Callable[[], Pair]:
    def make() -> Pair:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
        y = torch.randint(0, num_classes, (n,), generator=g)
        return x, y

    return make


def regression(n: int, inputs: int, outputs: int) -> Callable[[], Pair]:
    def make() -> Pair:
        g = torch.Generator().manual_seed(2)
        x = torch.randn(n, inputs, generator=g, dtype=torch.float64)
        y = torch.randn(n, outputs, generator=g, dtype=torch.float64)
        return x, y

    return make


def tokens(n: int, length: int) -> Callable[[], Pair]:
    def make() -> Pair:
        g = torch.Generator().manual_seed(3)
        # Words 5..9 never occur: their embedding rows have no gradient.
        return torch.randint(0, 5, (n, length), generator=g), torch.randint(0, 3, (n,), generator=g)

    return make


class Attention(nn.Module):
    """Embedding, scaled dot-product attention, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embedding(words)).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(dim=1))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class PartlyFrozen(nn.Module):
    """A frozen layer, and a free parameter that the output does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 5)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.frozen(x)))


class SineOnce(torch.autograd.Function):
    """A sine that has no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):  # pyright: ignore
        return g * ctx.saved_tensors[0].cos()


def batchnorm_net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
    return net


def transposed_linear() -> nn.Module:
    """A layer whose weight is not contiguous in memory."""
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.randn(3, 4).T)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))


CASES = [
    Case(
        "tanh mlp",
        seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
        classes(23, 4),
    ),
    Case(
        "relu mlp",
        seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))),
        classes(23, 4),
    ),
    Case(
        "regression",
        seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))),
        regression(17, 3, 2),
        loss="mse",
    ),
    Case("batchnorm convolution", seeded(batchnorm_net), classes(19, 1, 4, 4)),
    Case("attention", seeded(Attention), tokens(13, 6)),
    Case("tied weights", seeded(Tied), classes(21, 4)),
    Case("frozen and unused", seeded(PartlyFrozen), classes(21, 4)),
    Case("non-contiguous weight", seeded(transposed_linear), classes(15, 3)),
    Case(
        "dropout and layernorm",
        seeded(
            lambda: nn.Sequential(
                nn.Linear(4, 5), nn.LayerNorm(5), nn.Dropout(0.5), nn.SiLU(), nn.Linear(5, 3)
            )
        ),
        classes(14, 4),
    ),
]


def function_of(
    model: nn.Module, value: Callable[[Callable[..., Any]], Tensor]
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a value of a model as a function of the flat vector, and the vector at the model.

    Args:
        model: its free parameters are the vector.
        value: (what runs the model at a vector) -> the value there.
    """
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def function(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in free.values()])
        given = {
            n: part.reshape(p.shape) for (n, p), part in zip(free.items(), pieces, strict=True)
        }
        return value(lambda *inputs: functional_call(model, given, inputs))

    return function, torch.cat([p.detach().flatten() for p in free.values()])


def reference_function(case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return L as a function of the flat vector, and the vector at the model, without flatkit."""
    x, y = case.data()

    def value(run: Callable[..., Any]) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return case.mean_loss(run(x), y)

    return function_of(case.build().eval(), value)


@cache
def dense_hessian(case: Case) -> Tensor:
    """Return the float64 Hessian [P, P] by torch's own nested differentiation, computed once."""
    function, theta = reference_function(case)
    hessian = torch.autograd.functional.hessian(function, theta)
    assert isinstance(hessian, Tensor)
    return hessian


def draws(size: int, count: int = 6) -> Tensor:
    """Return random vectors [P, count] in float64, to compare two matrices by.

    Matrices that differ, be it in one entry, differ in their products with these but for a chance
    of zero; the identity takes P products, seconds with the engines in forward mode.
    """
    g = torch.Generator().manual_seed(4)
    return torch.randn(size, count, generator=g, dtype=torch.float64)


def random_symmetric(eigenvalues: list[float], seed: int = 0) -> Tensor:
    """Return a float64 matrix with the given eigenvalues in a random basis."""
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


class Quadratic(nn.Module):
    """L(θ) = ½θᵀAθ + bᵀθ as a model whose output is its own loss."""

    def __init__(self, matrix: Tensor, linear: Tensor | None = None) -> None:
        super().__init__()
        self.matrix: Tensor
        self.linear: Tensor
        self.register_buffer("matrix", matrix)
        self.register_buffer("linear", torch.zeros(len(matrix)) if linear is None else linear)
        self.theta = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        value = 0.5 * self.theta @ self.matrix @ self.theta + self.linear @ self.theta
        return value.expand(len(inputs))


def quadratic_task(
    matrix: Tensor, linear: Tensor | None = None
) -> tuple[nn.Module, Callable, Pair]:
    """Return model, loss and data of a quadratic."""
    data = torch.zeros(1, 1, dtype=matrix.dtype), torch.zeros(1, dtype=matrix.dtype)
    return Quadratic(matrix, linear), lambda outputs, targets: outputs, data
