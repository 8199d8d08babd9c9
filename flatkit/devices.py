"""Devices by name."""

import torch

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError


def resolve_device(name: str) -> torch.device:
    """Return the device that a setting names; `auto` takes cuda, then mps, then cpu.

    Raises:
        InvalidArgumentError: no such name, or this machine does not offer it.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    offered = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    check_choice("device", name, ("auto", *offered))
    if name == "auto":
        name = next(device for device, present in offered.items() if present)
    if not offered[name]:
        present = ", ".join(device for device, here in offered.items() if here)
        raise InvalidArgumentError(f"device {name} is not available here; choose auto or {present}")
    return torch.device(name)
