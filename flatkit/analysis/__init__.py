"""Run the chosen measures on a task or a checkpoint.

Names load lazily: the settings can be checked without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.analysis.run import analyze, compare
    from flatkit.analysis.settings import MEASURES, AnalysisSettings

_HOMES = {
    "MEASURES": "flatkit.analysis.settings",
    "AnalysisSettings": "flatkit.analysis.settings",
    "analyze": "flatkit.analysis.run",
    "compare": "flatkit.analysis.run",
}

__all__ = ["MEASURES", "AnalysisSettings", "analyze", "compare"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flatkit.analysis' has no attribute {name!r}")
