"""The foreach operations against the same ones tensor by tensor, and whole runs of both."""

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from flatkit.optim import GAM
from flatkit.optim.blockwise import Blocks, Blockwise, inner
from tests.optim.test_contract import bits, network, run

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
BOTH = (Blockwise(foreach=True), Blockwise(foreach=False))


def vector(seed: int) -> Blocks:
    g = torch.Generator().manual_seed(seed)
    shapes = ((3, 2), (5,), ())
    return [[torch.randn(s, generator=g).to(dtype) for s in shapes] for dtype in DTYPES]


def flat(x: Blocks) -> Tensor:
    return torch.cat([tensor.double().flatten() for block in x for tensor in block])


WEIGHTS = [0.25, -2.0, 3.0]
CHANGES = {
    "assign_": lambda blockwise, x, y: blockwise.assign_(x, y),
    "scale_": lambda blockwise, x, y: blockwise.scale_(x, WEIGHTS),
    "add_": lambda blockwise, x, y: blockwise.add_(x, y, WEIGHTS),
    "mix_": lambda blockwise, x, y: blockwise.mix_(x, y, [0.25, 0.5, 1.0]),
    "stretch_": lambda blockwise, x, y: blockwise.stretch_(x, y, 0.125),
    "project_out_": lambda blockwise, x, y: blockwise.project_out_(x, y),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_operation_is_the_same_tensor_by_tensor_and_does_something(name):
    ends = []
    for blockwise in BOTH:
        x, y = vector(1), vector(2)
        CHANGES[name](blockwise, x, y)
        assert torch.equal(flat(y), flat(vector(2)))
        assert not torch.equal(flat(x), flat(vector(1)))
        ends.append(flat(x))
    precision = 0.0 if name != "project_out_" else 1e-14
    torch.testing.assert_close(*ends, rtol=precision, atol=precision)


def test_differences_and_norms_are_the_same_and_right():
    x, y = vector(1), vector(2)
    first, second = (blockwise.difference(x, y) for blockwise in BOTH)
    assert torch.equal(flat(first), flat(second))
    for blockwise in BOTH:
        assert blockwise.norm(x) == pytest.approx(flat(x).norm().item(), rel=1e-6)
    assert inner(x, y) == pytest.approx((flat(x) @ flat(y)).item(), rel=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mode", ["accelerated", "exact"])
def test_fifty_steps_tensor_by_tensor_are_the_same(mode, adaptive):
    ends = []
    for foreach in (True, False):
        model = network()
        base = SGD(model.parameters(), lr=0.1, momentum=0.9)
        run(model, GAM(base, mode=mode, adaptive=adaptive, foreach=foreach), 50)
        ends.append(torch.cat([p.flatten() for p in bits(model)]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_no_foreach_operation_runs_where_it_is_switched_off(monkeypatch):
    for name in dir(torch):
        if name.startswith("_foreach"):
            monkeypatch.setattr(torch, name, None)
    model = network()
    run(model, GAM(SGD(model.parameters(), lr=0.1, foreach=False), foreach=False), 2)
    run(model, GAM(SGD(model.parameters(), lr=0.1, foreach=False), adaptive=True, foreach=False), 2)
