"""Training with SGD, AdamW, SAM and GAM, resumable bit for bit.

Settings and history load without torch; `train` brings it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.training.config import TrainingConfig
    from flatkit.training.history import EpochRow, read_history
    from flatkit.training.run import TrainingOutcome, stored_config, train
    from flatkit.training.tracking import CurvatureTracker, RunTracker, TrackedCurvature

_HOMES = {
    "CurvatureTracker": "tracking",
    "RunTracker": "tracking",
    "TrackedCurvature": "tracking",
    "EpochRow": "history",
    "TrainingConfig": "config",
    "TrainingOutcome": "run",
    "read_history": "history",
    "stored_config": "run",
    "train": "run",
}

__all__ = [
    "CurvatureTracker",
    "EpochRow",
    "RunTracker",
    "TrackedCurvature",
    "TrainingConfig",
    "TrainingOutcome",
    "read_history",
    "stored_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"flatkit.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flatkit.training' has no attribute {name!r}")
