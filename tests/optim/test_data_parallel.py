"""Two processes over gloo: equal weights always, and whose gradient perturbs as was chosen."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.optim import step_reference as reference
from tests.optim.worker import SETTINGS, STEPS, data, network, sgd, train, weights, work, wrapped
from tests.processes import finish, start

pytestmark = pytest.mark.distributed
every_name = pytest.mark.parametrize("name", SETTINGS)
every_batch = pytest.mark.parametrize("batch", ["global", "local"])
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    finish([start(work, rank, folder) for rank in range(2)])
    yield [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def alone(name: str) -> Tensor:
    model = network()
    return train(name, model, wrapped(name, sgd(model)), None)


def precision(name: str) -> float:
    return 1e-8 if "differences" in name else 1e-12


@every_name
@every_batch
@pytest.mark.parametrize("loop", [False, True])
def test_all_processes_hold_the_same_weights(results, name, batch, loop):
    first, second = (result[f"{name} {batch} {loop}"] for result in results)
    assert torch.equal(first, second)
    assert not torch.equal(first, weights(network()))


@every_name
@pytest.mark.parametrize("loop", [False, True])
def test_a_global_perturbation_is_that_of_one_process_with_all_samples(results, name, loop):
    got = results[0][f"{name} global {loop}"]
    torch.testing.assert_close(got, alone(name), rtol=precision(name), atol=precision(name))


class Part:
    """The mean loss over the samples of one process as a function of θ, for the references."""

    def __init__(self, step: int, rank: int) -> None:
        self.x, self.y = data(step, rank)

    def loss(self, theta: Tensor) -> Tensor:
        w1, b1, w2, b2 = theta.split([12, 4, 8, 2])
        hidden = torch.tanh(self.x @ w1.view(4, 3).T + b1)
        return nn.functional.cross_entropy(hidden @ w2.view(2, 4).T + b2, self.y)

    def gradient(self, theta: reference.Array) -> reference.Array:
        found = torch.autograd.functional.jacobian(self.loss, torch.from_numpy(theta))
        assert isinstance(found, Tensor)
        return found.numpy()

    def hessian(self, theta: reference.Array) -> reference.Array:
        found = torch.autograd.functional.hessian(self.loss, torch.from_numpy(theta))
        assert isinstance(found, Tensor)
        return found.numpy()


def combined(name: str, part: Part, theta: reference.Array) -> reference.Array:
    own = SETTINGS[name]
    if name == "sam":
        return reference.sam(part.gradient, theta, rho=own["rho"])
    if name == "gam":
        return reference.accelerated_gam(part.gradient, theta, **own)
    own = {"rho": own["rho"], "alpha": own["alpha"]}
    return reference.exact_gam(part.gradient, part.hessian, theta, **own)


@pytest.mark.parametrize("name", ["sam", "gam", "exact gam", "exact gam by differences"])
def test_a_local_perturbation_is_that_of_each_process_s_own_samples(results, name):
    model = network()
    base = sgd(model)
    for step in range(STEPS):
        theta = weights(model).numpy()
        mean = np.mean([combined(name, Part(step, rank), theta) for rank in range(2)], axis=0)
        sizes = [parameter.numel() for parameter in model.parameters()]
        for parameter, part in zip(
            model.parameters(), torch.from_numpy(mean).split(sizes), strict=True
        ):
            parameter.grad = part.view_as(parameter)
        base.step()
    allowed = 1e-6 if "differences" in name else 1e-12
    for loop in (False, True):
        got = results[0][f"{name} local {loop}"]
        torch.testing.assert_close(got, weights(model), rtol=allowed, atol=allowed)


@every_name
def test_the_two_choices_differ(results, name):
    chosen = [results[0][f"{name} {batch} False"] for batch in ("global", "local")]
    assert (chosen[0] - chosen[1]).abs().max() > 1e-5


@every_batch
@pytest.mark.parametrize("name", ["sam", "gam", "exact gam"])
def test_parts_of_a_batch_are_as_good_as_the_whole(results, name, batch):
    for result in results:
        torch.testing.assert_close(
            result[f"{name} {batch} parts"],
            result[f"{name} {batch} False"],
            rtol=1e-12,
            atol=1e-12,
        )


@every_name
@every_batch
def test_an_explosion_in_one_process_stops_the_step_of_all(results, name, batch):
    for scaled, scale in ((False, 1.0), (True, 512.0)):
        found = [result[f"{name} {batch} broken {scaled}"] for result in results]
        for one in found:
            assert one["restored"] and one["scale"] == scale
            assert ("NonFiniteError" in one["raised"]) is not scaled
        assert torch.equal(found[0]["end"], found[1]["end"])
    if batch == "local":
        assert "another process" in results[0][f"{name} local broken False"]["raised"]


def test_running_statistics_are_those_of_the_first_pass(results):
    for result in results:
        found = result["statistics"]
        assert found["step"].keys() == found["plain"].keys() and len(found["step"]) == 3
        assert all(torch.equal(found["step"][key], found["plain"][key]) for key in found["step"])


def test_the_model_is_asked_for_where_it_is_needed(results):
    for result in results:
        assert "the exact mode needs the model" in result["exact without model"]
        assert 'batch="local" needs the model' in result["local without model"]


def test_sharded_parameters_are_refused(results):
    assert all("parameters must be whole" in result["sharded"] for result in results)


def test_one_process_needs_no_model():
    model = network()
    optimizer = wrapped("sam", sgd(model), batch="local")
    assert torch.equal(train("sam", model, optimizer, None), alone("sam"))
