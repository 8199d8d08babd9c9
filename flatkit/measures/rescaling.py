"""Layers before which weights can be rescaled without changing the network (Dinh et al., 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flatkit.objective.function import Objective

_NORMALISING = {
    "BatchNorm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    "a normalisation": (nn.LayerNorm, nn.GroupNorm),
}
_HOMOGENEOUS = {nn.functional.relu, nn.functional.relu_, nn.functional.leaky_relu, torch.relu}
_METHODS = {"relu", "relu_", "leaky_relu"}


def rescalable(objective: Objective) -> list[str]:
    """Return the kinds of layers of an objective before which weights can be rescaled.

    Seen on two samples, or a chunk where a batch is not to be cut, also where the model calls a
    function in place of a layer. BatchNorm in evaluation counts, as the running statistics are
    rescaled with the weights.

    >>> data = (torch.ones(2, 1), torch.zeros(2, 1))
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> rescalable(Objective(model, "mse", data))
    ['ReLU']
    """
    modules = list(objective.model.modules())
    kinds = [
        name
        for name, types in _NORMALISING.items()
        if any(isinstance(module, types) for module in modules)
    ]
    whole = slice(objective.chunk_size)
    few = objective.spread(2) if objective.divisible else objective.rows(whole)
    with torch.no_grad(), objective.placed(objective.theta) as point, _Watch() as seen:
        objective.outputs(point, few)
    return kinds + ["ReLU"] * seen.found


class _Watch(TorchFunctionMode):
    """Notes whether a function is called that scales as its input does."""

    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note which it is."""
        name = getattr(func, "__name__", "")
        # By function as well as by name: `x.relu()` and `F.relu(x)` arrive as different things.
        self.found = self.found or func in _HOMOGENEOUS or name in _METHODS
        return func(*args, **(kwargs or {}))
