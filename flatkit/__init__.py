"""Curvature and flatness analysis of PyTorch checkpoints.

Public names load lazily, so that drawing a saved result or asking for help does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatkit.version import __version__

if TYPE_CHECKING:
    from flatkit.analysis import analyze, compare
    from flatkit.checkpoints import Checkpoint, load
    from flatkit.hessian import HessianOperator
    from flatkit.objective import Objective
    from flatkit.results import Report, Result
    from flatkit.task import Task

_HOMES = {
    "Checkpoint": "flatkit.checkpoints",
    "HessianOperator": "flatkit.hessian",
    "Objective": "flatkit.objective",
    "Report": "flatkit.results",
    "Result": "flatkit.results",
    "Task": "flatkit.task",
    "analyze": "flatkit.analysis",
    "compare": "flatkit.analysis",
    "load": "flatkit.checkpoints",
}
_SUBPACKAGES = ("flatness", "landscape", "optim", "render", "spectrum", "surfaces", "training")

__all__ = [
    "Checkpoint",
    "HessianOperator",
    "Objective",
    "Report",
    "Result",
    "Task",
    "__version__",
    "analyze",
    "compare",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"flatkit.{name}")
    raise AttributeError(f"module 'flatkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
