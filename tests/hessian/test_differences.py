"""Central differences: what they say of their error holds for every vector, not for one."""

import pytest
import torch
from torch import Tensor, nn

from flatkit import Objective
from flatkit.hessian import HessianOperator

INPUTS = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
CLASSES = INPUTS[:, :4].argmax(1)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 4))


def dense(seed: int) -> Tensor:
    """The Hessian [P, P] in float64, by torch alone."""
    model = network(seed).double()
    named = dict(model.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in named.values()])

    def loss(theta: Tensor) -> Tensor:
        parts = zip(named.items(), theta.split([p.numel() for p in named.values()]), strict=True)
        weights = {name: part.view(p.shape) for (name, p), part in parts}
        outputs = torch.func.functional_call(model, weights, (INPUTS.double(),))
        return nn.functional.cross_entropy(outputs, CLASSES)

    found = torch.autograd.functional.hessian(loss, theta)
    assert isinstance(found, Tensor)
    return found


def unit(count: int, size: int) -> Tensor:
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(3)).double()
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_that_is_said_holds_for_many_vectors(seed, dtype):
    objective = Objective(network(seed), "cross_entropy", (INPUTS, CLASSES), dtype=dtype)
    hessian = dense(seed)
    operator = HessianOperator(objective, engine="central_difference")
    said = operator.choice.error
    assert said is not None
    vectors = unit(200, len(hessian))
    truth = vectors @ hessian
    sizes = truth.norm(dim=1)
    off = (operator.matmat(vectors.to(dtype)).double() - truth).norm(dim=1)
    worst = float((off / sizes).max())
    assert worst <= said < 4 * worst
    # Products with others may be shorter, as next to the kernel: off by no more than those.
    _, basis = torch.linalg.eigh(hessian)
    for others in (basis.T, torch.eye(len(hessian), dtype=torch.float64)):
        off = (operator.matmat(others.to(dtype)).double() - others @ hessian).norm(dim=1)
        assert float(off.max()) <= said * float(sizes.mean())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_errors_along_eigenvectors_hold_for_each(seed, dtype):
    objective = Objective(network(seed), "cross_entropy", (INPUTS, CLASSES), dtype=dtype)
    hessian = dense(seed)
    operator = HessianOperator(objective, engine="central_difference")
    values, basis = torch.linalg.eigh(hessian)
    vectors = basis.T[-12:].to(dtype)
    off = (operator.matmat(vectors).double() - vectors.double() @ hessian).norm(dim=1)
    scale = float(values.abs().max())
    said = operator.product_errors(vectors, values[-12:].to(dtype), scale=scale)
    assert bool((off <= said).all())
