"""The optimizer that the settings name, and the schedule of its radii."""

from typing import Any

from torch import nn, optim

from flatkit.optim import ASAM, GSAM, SAM
from flatkit.optim.gam import GAM
from flatkit.optim.schedules import CosineRho, ProportionalRho, RhoSchedule
from flatkit.training.config import TrainingConfig


def build_optimizer(config: TrainingConfig, model: nn.Module) -> optim.Optimizer:
    """Return SGD or AdamW, wrapped in SAM, GAM or a relative where the settings say so.

    A wrapped one lets the buffers of the model, such as the statistics of BatchNorm, change in the
    first pass of a step only.

    >>> build_optimizer(TrainingConfig(optimizer="adamw"), nn.Linear(2, 1)).defaults["lr"]
    0.001
    """
    base = _build_base(config, model)
    shared = {"model": model, **_given(config, "every", "max_norm")}
    if config.optimizer == "sam":
        return SAM(base, **_given(config, "rho"), **shared)
    if config.optimizer == "asam":
        return ASAM(base, **_given(config, "rho", "eta"), **shared)
    if config.optimizer == "gsam":
        return GSAM(base, **_given(config, "rho", "alpha"), **shared)
    if config.optimizer == "gam":
        names = ("oracle", "rho", "rho_prime", "rho_sam", "alpha", "beta", "gamma")
        return GAM(base, mode=config.gam_mode or "accelerated", **_given(config, *names), **shared)
    return base


def build_rho_schedule(config: TrainingConfig, optimizer: optim.Optimizer) -> RhoSchedule | None:
    """Return the schedule of the radii, one step of it an epoch; None where they stay.

    >>> config = TrainingConfig(optimizer="sam", rho=0.2, rho_schedule="cosine", epochs=2)
    >>> optimizer = build_optimizer(config, nn.Linear(2, 1))
    >>> schedule = build_rho_schedule(config, optimizer)
    >>> schedule.load_state_dict({"steps": 1})  # the second epoch
    >>> round(optimizer.param_groups[0]["rho"], 3)
    0.1
    """
    final = config.rho_final or 0.0
    if config.rho_schedule == "cosine":
        return CosineRho(optimizer, total_steps=config.epochs, final=final)
    if config.rho_schedule == "proportional":
        return ProportionalRho(optimizer, lr=config.lr, final=final)
    return None


def _build_base(config: TrainingConfig, model: nn.Module) -> optim.Optimizer:
    if config.base_optimizer == "sgd":
        return optim.SGD(model.parameters(), **_given(config, "lr", "momentum", "weight_decay"))
    return optim.AdamW(model.parameters(), **_given(config, "lr", "weight_decay"))


def _given(config: TrainingConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}
