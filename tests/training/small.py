"""Settings of a training run that takes a moment."""

from typing import Any

SMALL: dict[str, Any] = {
    "data": "gaussians",
    "data_kwargs": {"samples": 50, "features": 4, "classes": 3},
    "model_kwargs": {"hidden": (5,)},
    "batch_size": 16,
    "epochs": 3,
    "device": "cpu",
}
