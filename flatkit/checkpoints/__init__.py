"""Checkpoints of any origin: read without running anything in them; flatkit's own are written.

Names load lazily: what a file holds can be listed without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.checkpoints.checkpoint import Checkpoint
    from flatkit.checkpoints.loading import load
    from flatkit.checkpoints.native import FORMAT, save

_HOMES = {"Checkpoint": "checkpoint", "load": "loading", "FORMAT": "native", "save": "native"}

__all__ = ["FORMAT", "Checkpoint", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"flatkit.checkpoints.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flatkit.checkpoints' has no attribute {name!r}")
