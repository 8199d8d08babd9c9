"""The layer-wise engine takes published architectures, and its products are right."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatkit import Objective
from flatkit.hessian.products import build_engine
from tests.architectures import ARCHITECTURES
from tests.cases import function_of


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_with_architectures_are_those_of_double_backward(name: str):
    torch.manual_seed(0)
    model, x = ARCHITECTURES[name].build().double().eval(), ARCHITECTURES[name].inputs()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    y = torch.randint(0, 3, (len(x),))
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=3)
    vector = torch.randn(objective.num_parameters, dtype=torch.float64)
    gradient, product = truth(model, x, y, vector)
    engine = build_engine("layers", objective, objective.theta)
    found = torch.zeros(2, objective.num_parameters, dtype=torch.float64)
    for chunk in objective.chunks():
        prepared = engine.prepare(chunk)
        assert prepared.gradient is not None
        found += torch.stack([prepared.gradient, prepared.products(vector[None])[0]])
    for value, right in zip(found, (gradient, product), strict=True):
        assert float((value - right).norm()) <= 1e-11 * float(right.norm())
