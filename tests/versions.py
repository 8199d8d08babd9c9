"""How old the other libraries are: `make test-oldest` has versions that lack some things."""

import re
from types import ModuleType

import torch


def before(library: ModuleType, *version: int) -> bool:
    """Whether a library is older than a version, e.g. `before(torch, 2, 5)`."""
    found = re.findall(r"\d+", library.__version__)[: len(version)]
    return tuple(map(int, found)) < version


# dtypes that torch 2.4 can compute with and cannot save
UNSAVED = {"uint16", "uint32", "uint64"} if before(torch, 2, 5) else set()
