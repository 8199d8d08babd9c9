"""Signs that a parametrization keeps in its weights, and that training never moves.

torch's orthogonal weights that are not square are products of reflections, times signs that lie on
the diagonal of what is trained and are cast to whole numbers: next to 1 or -1 they are 0.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _Orthogonal  # pyright: ignore[reportPrivateUsage]


def settle_signs(model: nn.Module) -> None:
    """Hold the signs of orthogonal weights constant; values and gradients stay those of torch.

    Args:
        model: a private copy, changed in place.

    >>> layer = nn.utils.parametrizations.orthogonal(nn.Linear(2, 1))
    >>> settle_signs(layer)
    >>> list(signed_weights(layer))
    ['parametrizations.weight.original']
    """
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and _has_signs(module[0]):
            _settle(module[0], module.original.detach())


def signed_weights(model: nn.Module) -> list[str]:
    """Return the names of the weights whose signs are held constant."""
    return [
        f"{name}.original"
        for name, module in model.named_modules()
        if isinstance(module, parametrize.ParametrizationList)
        and getattr(type(module[0]), "has_fixed_signs", False)
    ]


def _has_signs(part: nn.Module) -> bool:
    return type(part) is _Orthogonal and part.orthogonal_map.name == "householder"


def _settle(part: nn.Module, weight: Tensor) -> None:
    """Let a parametrization take its diagonal from what the weight [..., n, k] is now."""
    kind, fixed = type(part), weight.clone()
    diagonal = torch.eye(*weight.shape[-2:], dtype=torch.bool, device=weight.device)

    def forward(self: nn.Module, weight: Tensor) -> Tensor:
        return kind.forward(self, torch.where(diagonal, fixed.to(weight), weight))

    own: dict[str, Any] = {
        "__module__": kind.__module__,
        "forward": forward,
        "has_fixed_signs": True,
    }
    # Another class, and no other method of the instance: a deep copy keeps it.
    part.__class__ = type(kind.__name__, (kind,), {**own, "has_fixed_signs": True})
