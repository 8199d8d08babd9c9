"""Losses by name; a checkpoint stores the name and the keyword arguments, never code."""

from typing import Any

from flatkit.registry import Registry

LOSSES: Registry[Any] = Registry(
    "loss",
    {
        "cross_entropy": "flatkit.objective.losses:CrossEntropy",
        "token_cross_entropy": "flatkit.objective.losses:TokenCrossEntropy",
        "mse": "flatkit.objective.losses:MeanSquared",
        "model": "flatkit.objective.losses:ModelLoss",
    },
)
