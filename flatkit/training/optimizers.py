"""The optimizer that the settings name."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from flatkit.training.config import TrainingConfig


def build_optimizer(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Return SGD or AdamW, wrapped in SAM or GAM where the settings say so.

    >>> layer = nn.Linear(2, 1)
    >>> build_optimizer(TrainingConfig(optimizer="adamw"), layer.parameters()).defaults["lr"]
    0.001
    """
    base = _build_base(config, parameters)
    if config.optimizer == "sam":
        from flatkit.optim import SAM

        return SAM(base, **_given(config, "rho"))
    if config.optimizer == "gam":
        from flatkit.optim import GAM

        weights = _given(config, "rho", "rho_prime", "alpha", "beta", "gamma")
        return GAM(base, mode=config.gam_mode or "accelerated", **weights)
    return base


def _build_base(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    if config.base_optimizer == "sgd":
        return optim.SGD(parameters, **_given(config, "lr", "momentum", "weight_decay"))
    return optim.AdamW(parameters, **_given(config, "lr", "weight_decay"))


def _given(config: TrainingConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}
