"""Losses by name; a checkpoint stores the name and the keyword arguments, never code."""

from flatkit.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "flatkit.objective.losses:CrossEntropy",
        "token_cross_entropy": "flatkit.objective.losses:TokenCrossEntropy",
        "mse": "flatkit.objective.losses:MeanSquared",
        "model": "flatkit.objective.losses:ModelLoss",
    },
)
