"""Modules of 0.1.0 under their old names: they hand on to where they are, with a warning."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any
from warnings import warn

HOMES = {
    "flatkit.analysis": "flatkit.measures",
    "flatkit.losses": "flatkit.objective.losses",
    "flatkit.operators": "flatkit.spectrum.operators",
    "flatkit.samples": "flatkit.objective.reading.samples",
    "flatkit.task": "flatkit.objective.task",
}
"""Old name -> new name. They go with version 0.3."""


class _Moved(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        home = HOMES[self.__name__]
        found = getattr(import_module(home), name)
        warn(f"{self.__name__} is {home} now", DeprecationWarning, stacklevel=2)
        return found


def register() -> None:
    """Let the old names be imported; nothing is loaded before a name is asked for.

    >>> "flatkit.operators" in sys.modules
    True
    """
    for name in HOMES:
        sys.modules.setdefault(name, _Moved(name))
