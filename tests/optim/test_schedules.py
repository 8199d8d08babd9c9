"""Schedules of the radii against their formulas."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, lr_scheduler

from flatkit.errors import InvalidArgumentError
from flatkit.optim import GAM, SAM, ConstantRho, CosineRho, ProportionalRho


def theta() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def test_a_cosine_ends_where_it_should_and_scales_all_radii_of_all_groups():
    groups = [{"params": [theta()], "rho": 0.4}, {"params": [theta()]}]
    optimizer = GAM(SGD(groups, lr=0.1), rho=0.2, rho_prime=0.1, oracle="sam", rho_sam=0.05)
    schedule = CosineRho(optimizer, total_steps=8, final=0.25)
    for step in range(12):
        factor = 0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * min(step, 8) / 8))
        for group, rho in zip(optimizer.param_groups, (0.4, 0.2), strict=True):
            got = [group[key] for key in ("rho", "rho_prime", "rho_sam")]
            assert got == pytest.approx([rho * factor, 0.1 * factor, 0.05 * factor], rel=1e-14)
            assert (group["alpha"], group["beta"]) == (0.6, 0.5)
        schedule.step()


def test_a_proportional_radius_follows_the_rate_of_its_group():
    groups = [{"params": [theta()], "lr": 0.4}, {"params": [theta()]}]
    optimizer = SAM(SGD(groups, lr=0.1), rho=0.2)
    rates = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    schedule = ProportionalRho(optimizer, final=0.1)
    for step in range(4):
        for group in optimizer.param_groups:
            assert group["rho"] == pytest.approx(0.2 * (0.1 + 0.9 * 0.5**step), rel=1e-14)
        optimizer._opt_called = True  # no step was made; torch would warn  # type: ignore[attr-defined]
        rates.step()
        schedule.step()


def test_a_given_rate_is_where_the_radius_is_as_given():
    optimizer = SAM(SGD([theta()], lr=0.05), rho=0.2)
    schedule = ProportionalRho(optimizer, lr=0.1)
    assert optimizer.param_groups[0]["rho"] == pytest.approx(0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    schedule.step()
    assert optimizer.param_groups[0]["rho"] == pytest.approx(0.2)


def test_a_constant_radius_stays():
    optimizer = SAM(SGD([theta()], lr=0.05), rho=0.2)
    schedule = ConstantRho(optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["rho"] == 0.2 and schedule.steps == 1


@pytest.mark.parametrize(
    "make",
    [
        ConstantRho,
        lambda optimizer: CosineRho(optimizer, total_steps=5),
        lambda optimizer: ProportionalRho(optimizer),
    ],
)
def test_a_resumed_schedule_goes_on(make):
    optimizer = SAM(Adadelta([theta()], lr=0.4), rho=0.2)
    schedule = make(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(2):
        schedule.step()
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    schedule.step()
    again = SAM(Adadelta([theta()], lr=0.4), rho=0.2)
    resumed = make(again)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    resumed.step()
    assert again.param_groups[0]["sam_rho"] == optimizer.param_groups[0]["sam_rho"]
    assert again.param_groups[0]["rho"] == 0.9  # Adadelta's own


def test_what_cannot_be_scheduled_is_refused():
    with pytest.raises(InvalidArgumentError, match="have a radius"):
        ConstantRho(SGD([theta()], lr=0.1))
    optimizer = SAM(SGD([theta()], lr=0.1))
    with pytest.raises(InvalidArgumentError, match="total_steps must be"):
        CosineRho(optimizer, total_steps=0)
    with pytest.raises(InvalidArgumentError, match="final must be"):
        ProportionalRho(optimizer, final=1.5)
    with pytest.raises(InvalidArgumentError, match="lr must be"):
        ProportionalRho(optimizer, lr=-1.0)
