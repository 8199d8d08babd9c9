"""Models that `torch.compile` traced step like the same ones without it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends import debugging
from torch.optim import SGD

from flatkit.errors import InvalidArgumentError
from flatkit.optim import GAM, SAM
from tests.optim.test_contract import bits, same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SETTINGS: dict[str, dict[str, Any]] = {
    "accelerated": {"rho": 0.1, "rho_prime": 0.05},
    "differences": {"mode": "exact", "engine": "central_difference"},
}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)
        return nn.Sequential(*layers).double()


def loss_of(model: Any) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3, generator=g, dtype=torch.float64)
    return nn.functional.cross_entropy(model(x), torch.randint(0, 2, (11,), generator=g))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_compiled_model_steps_alike_and_is_compiled_once(name):
    plain, model = network(), network()
    traced = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return debugging.aot_eager(graph, inputs)

    compiled: Any = torch.compile(model, backend=backend)
    for net, optimized in ((plain, plain), (model, compiled)):
        optimizer = GAM(SGD(net.parameters(), lr=0.1), model=optimized, **SETTINGS[name])
        for _ in range(3):
            optimizer.step(lambda optimized=optimized: loss_of(optimized))
    allowed = 1e-9 if name == "differences" else 1e-12
    for ours, theirs in zip(bits(model), bits(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=allowed, atol=allowed)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=allowed, atol=allowed)
    assert len(traced) == 1


def test_double_backward_through_a_compiled_model_names_the_way_out():
    model = network()
    before = bits(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = GAM(SGD(model.parameters(), lr=0.1), mode="exact", model=compiled)
    with pytest.raises(InvalidArgumentError, match='engine="central_difference"'):
        optimizer.step(lambda: loss_of(compiled))
    assert same(before, bits(model))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_an_optimizer_that_knows_its_model_is_copied_with_it(duplicate):
    model = network()
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), model=model, every=2)
    optimizer.step(lambda: loss_of(model))
    twin_model, twin = duplicate((model, optimizer))
    for _ in range(3):
        optimizer.step(lambda: loss_of(model))
        twin.step(lambda: loss_of(twin_model))
    assert same(bits(model), bits(twin_model))
    assert same(list(model.buffers()), list(twin_model.buffers()))
