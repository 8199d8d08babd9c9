"""Weights of a length of their own, computed so that they can be differentiated twice.

The kernel by which torch (2.13 on a CPU) normalises weights has a wrong second derivative.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm  # pyright: ignore[reportPrivateUsage]

_Hook = import_module("torch.nn.utils.weight_norm").WeightNorm
"""Of the older form; the name of its module is that of a function as well."""


def settle_weight_norms(model: nn.Module) -> None:
    """Let normalised weights be computed by operations that autograd knows whole.

    The values are those of torch, but for rounding.

    Args:
        model: a private copy, changed in place.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
    >>> settle_weight_norms(layer)
    >>> type(layer.parametrizations.weight[0]).forward is normalised
    True
    """
    for module in model.modules():
        # The exact class: one derived from it may compute something else.
        if type(module) is _WeightNorm:
            own: dict[str, Any] = {"__module__": _WeightNorm.__module__, "forward": normalised}
            module.__class__ = type(_WeightNorm.__name__, (_WeightNorm,), own)
        hooks = vars(module)["_forward_pre_hooks"]
        for key, hook in hooks.items():
            if type(hook) is _Hook:  # a copy of its own: hooks may be shared with the user's model
                hooks[key] = _Settled(hook.name, hook.dim)


def normalised(self: Any, weight_g: Tensor, weight_v: Tensor) -> Tensor:
    """Return g·v/‖v‖, with a length for each index of a dimension."""
    return weight_v * (weight_g / torch.norm_except_dim(weight_v, 2, self.dim))


class _Settled(_Hook):
    """Computes a weight before each pass."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        """Return the weight of a module, from its length and direction."""
        name = self.name
        return normalised(self, getattr(module, f"{name}_g"), getattr(module, f"{name}_v"))
