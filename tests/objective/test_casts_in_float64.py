"""A model in float64 that casts to float32 inside is computed in float64 throughout."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatkit import HessianOperator, Objective


class Upcast(nn.Module):
    """Normalises in float32, as many language models do whatever the dtype of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def normal(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        wide = hidden.to(dtype)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(hidden.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.normal(self.into(inputs), torch.float32)))


def in_float32(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.float(), targets)


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_it_is_exact_to_float64(dtype):
    model, inputs, targets = Upcast(), torch.randn(20, 4).double(), torch.arange(20) % 3
    hidden = model.normal(model.into(inputs), torch.float64)
    loss = cross_entropy(model.head(torch.tanh(hidden)), targets)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    direction = [torch.ones_like(parameter) for parameter in parameters]
    parts = torch.autograd.grad(slopes, parameters, direction)
    objective = Objective(model, in_float32, (inputs, targets), dtype=dtype)
    gradient = torch.cat([slope.detach().flatten() for slope in slopes])
    product = torch.cat([part.flatten() for part in parts])
    assert objective.loss() == pytest.approx(loss.item(), rel=1e-13)
    assert torch.allclose(objective.gradient(), gradient, rtol=1e-10, atol=1e-12)
    found = HessianOperator(objective) @ torch.ones_like(product)
    assert torch.allclose(found, product, rtol=1e-9, atol=1e-11)
    assert objective.examination["additive"].passed, "no rounding passes for coupled samples"
