"""Learning rate and radii as functions of the epoch alone, so that a resumed run finds them again.

The tables of schedules need no torch.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError, PluginError
from flatkit.training.optimizers import OPTIMIZERS, SETTINGS_OF_OPTIMIZERS, belonging_settings

if TYPE_CHECKING:
    from torch import optim

    from flatkit.optim.schedules import RhoSchedule
    from flatkit.training.config import TrainingConfig

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "step": {"milestones": (0.5, 0.75), "decay": 0.1},
    "none": {},
}
RHO_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {"rho_final": 0.0},
    "proportional": {"rho_final": 0.0},
}
_OPTIONAL = SETTINGS_OF_OPTIMIZERS | {"rho_schedule", "rho_final", "milestones", "decay"}


def applicable_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional settings that apply to optimizer and schedules: as given, or the default.

    Args:
        given: all settings, `None` for those left open.

    Raises:
        InvalidArgumentError: a setting was given that does not apply.
        PluginError: another package's optimizer names settings that there are not.

    >>> applicable_settings({"optimizer": "adamw", "schedule": "none", "lr": 0.01})
    {'lr': 0.01, 'weight_decay': 0.01}
    """
    optimizer = check_choice("optimizer", given["optimizer"], OPTIMIZERS)
    schedule = check_choice("schedule", given["schedule"], SCHEDULES)
    defaults, chosen = belonging_settings(optimizer, given)
    defaults |= SCHEDULES[schedule]
    chosen += f", schedule {schedule}"
    if OPTIMIZERS.load(optimizer).wraps:
        kind = _rho_schedule(given)
        defaults |= {"rho_schedule": kind, **RHO_SCHEDULES[kind]}
        chosen += f", rho_schedule {kind}"
    for name, value in given.items():
        # A setting that would be ignored is refused: nobody must believe that it was used.
        if value is not None and name in _OPTIONAL and name not in defaults:
            raise InvalidArgumentError(
                f"{name} does not apply to {chosen}; remove it (it is {value!r} here), "
                "or choose what it belongs to"
            )
    if unknown := sorted(defaults.keys() - _OPTIONAL):
        raise PluginError(
            f"optimizer {optimizer} names settings that training does not have: "
            f"{', '.join(unknown)}; it can take them by optimizer_kwargs"
        )
    return {
        name: default if given.get(name) is None else given[name]
        for name, default in defaults.items()
    }


def learning_rate(config: "TrainingConfig", epoch: int) -> float:
    """Return the learning rate during an epoch.

    With t = (epoch - 1) / epochs in [0, 1): cosine (Loshchilov & Hutter 2017, one cycle) is
    lr * (1 + cos(pi t)) / 2; step is lr * decay^k with k milestones at or below t. In the first W
    epochs of a warm-up that is multiplied by epoch / (W + 1).

    Args:
        config: whose lr, schedule and epochs count.
        epoch: from 1.

    >>> from flatkit.training.config import TrainingConfig
    >>> cosine = TrainingConfig(lr=1.0, epochs=2)
    >>> [round(learning_rate(cosine, epoch), 3) for epoch in (1, 2)]
    [1.0, 0.5]
    >>> step = TrainingConfig(lr=1.0, epochs=4, schedule="step")
    >>> [round(learning_rate(step, epoch), 3) for epoch in (1, 2, 3, 4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    # W + 1: the first epoch after the warm-up is the first at the whole rate.
    lr = (config.lr or 0.0) * min(1.0, epoch / (config.warmup + 1))
    # In [0, 1): the last epoch still has a rate, where a cosine that ends in it would have none.
    done = (epoch - 1) / config.epochs
    if config.schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "step":
        # 0.3 * 10 epochs is 3 in arithmetic but not in binary: compare epochs, with slack
        passed = sum(epoch - 1 >= m * config.epochs - 1e-9 for m in config.milestones or ())
        return lr * (config.decay or 0.0) ** passed
    return lr


def build_rho_schedule(
    config: "TrainingConfig", optimizer: "optim.Optimizer"
) -> "RhoSchedule | None":
    """Return the schedule of the radii, one step of it an epoch; None where they stay.

    >>> from torch import nn
    >>> from flatkit.training.config import TrainingConfig
    >>> from flatkit.training.optimizers import build_optimizer
    >>> config = TrainingConfig(optimizer="sam", rho=0.2, rho_schedule="cosine", epochs=2)
    >>> optimizer = build_optimizer(config, nn.Linear(2, 1))
    >>> schedule = build_rho_schedule(config, optimizer)
    >>> schedule.load_state_dict({"steps": 1})  # the second epoch
    >>> round(optimizer.param_groups[0]["rho"], 3)
    0.1
    """
    from flatkit.optim.schedules import CosineRho, ProportionalRho

    final = config.rho_final or 0.0
    if config.rho_schedule == "cosine":
        return CosineRho(optimizer, total_steps=config.epochs, final=final)
    if config.rho_schedule == "proportional":
        return ProportionalRho(optimizer, lr=config.lr, final=final)
    return None


def _rho_schedule(given: Mapping[str, Any]) -> str:
    kind = "constant" if given.get("rho_schedule") is None else given["rho_schedule"]
    check_choice("rho_schedule", kind, RHO_SCHEDULES)
    if kind == "proportional" and given["schedule"] == "none":
        raise InvalidArgumentError(
            "rho_schedule proportional follows the learning rate, which `schedule` none keeps as "
            "it is; choose `rho_schedule` cosine or constant, or `schedule` cosine or step"
        )
    return kind
