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
    names = ("auto", *offered)
    if name == "gpu":  # whose nearest spelling is cpu
        allowed = ", ".join(sorted(names))
        raise InvalidArgumentError(
            f"device must be one of {allowed}, got 'gpu'; did you mean 'cuda'?"
        )
    check_choice("device", name, names)
    if name == "auto":
        name = next(device for device, present in offered.items() if present)
    if not offered[name]:
        present = ", ".join(device for device, here in offered.items() if here)
        raise InvalidArgumentError(f"device {name} is not available here; choose auto or {present}")
    return torch.device(name)
