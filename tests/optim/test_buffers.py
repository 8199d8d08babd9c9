"""Running statistics: the first pass of a step updates them, as a plain step would, no other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from flatkit.optim import GAM, SAM
from flatkit.optim.buffers import Buffers
from tests.optim.test_contract import PASSES
from tests.optim.test_passes import own

NORMS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
}


def network(norm: str = "batch") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), NORMS[norm](), nn.Tanh(), nn.Linear(4, 2)
        return nn.Sequential(*layers).double()


def loss_of(model: nn.Module) -> Tensor:
    x = torch.linspace(-1, 2, 18, dtype=torch.float64).reshape(6, 3) ** 2
    return nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 1, 0, 1, 0]))


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def wrapped(wrapper: str, model: nn.Module) -> Any:
    kind = SAM if wrapper == "sam" else GAM
    return kind(SGD(model.parameters(), lr=0.1), model=model, **own(wrapper))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wrapper", ["sam", "gam", "exact gam", "differences over sam"])
def test_a_step_moves_the_statistics_as_one_forward_pass_does(wrapper, norm):
    model, plain = network(norm), network(norm)
    loss_of(plain)
    wrapped(wrapper, model).step(lambda: loss_of(model))
    assert same(buffers(model), buffers(plain))
    assert not same(buffers(model), buffers(network(norm)))
    assert model(torch.ones(2, 3).double()).shape == (2, 2)  # and the layer goes on tracking
    assert not same(buffers(model), buffers(plain))


def test_without_the_model_every_pass_moves_them():
    model, plain = network(), network()
    loss_of(plain)
    SAM(SGD(model.parameters(), lr=0.1)).step(lambda: loss_of(model))
    assert not same(buffers(model), buffers(plain))


@pytest.mark.parametrize("number", range(PASSES["gam"]))
def test_an_error_in_any_pass_leaves_those_of_the_first(number):
    model, plain = network(), network()
    loss_of(plain)
    optimizer = wrapped("gam", model)

    def closure() -> Tensor:
        loss = loss_of(model)
        if optimizer.gradient_pass == number:
            raise KeyboardInterrupt
        return loss

    for _ in range(2):  # nothing sticks: the next step is as good as the first
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
        assert same(buffers(model), buffers(plain))
        loss_of(plain)


def test_all_parts_of_the_first_pass_count():
    model, plain = network(), network()
    loss_of(plain)
    loss_of(plain)
    optimizer = wrapped("sam", model)
    for gradient_pass in optimizer.gradient_passes():
        for _ in range(2):
            gradient_pass.backward(loss_of(model) / 2)
    optimizer.step()
    assert same(buffers(model), buffers(plain))


def test_putting_back_twice_is_putting_back_once():
    model = network()
    kept = Buffers(model)
    kept.put_back()  # before anything was kept
    kept.keep()
    before = buffers(model)
    loss_of(model)
    for _ in range(2):
        kept.put_back()
    assert same(buffers(model), before)
    loss_of(model)
    assert not same(buffers(model), before)


def test_layers_in_evaluation_mode_stay_as_they_are():
    model = network().eval()
    before = buffers(model)
    wrapped("sam", model).step(lambda: loss_of(model))
    assert same(buffers(model), before) and not model.training


def test_a_copy_looks_after_its_own_model():
    model = network()
    optimizer = wrapped("sam", model)
    twin_model, twin = copy.deepcopy((model, optimizer))
    before = buffers(model)
    twin.step(lambda: loss_of(twin_model))
    assert same(buffers(model), before)
    plain = network()
    loss_of(plain)
    assert same(buffers(twin_model), buffers(plain))
