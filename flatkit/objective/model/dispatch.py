"""Operations that run under a `TorchDispatchMode`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def execute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Run an operation that a `TorchDispatchMode` is told of.

    Zeros that torch keeps as a mark alone, as derivatives of derivatives make them, become numbers:
    torch 2.13 multiplies such a mark under a mode without end, until the process dies.

    Args:
        func: what the mode is told of.
        args: its arguments.
        kwargs: those by name.
    """
    # Here for all modes at once: each of them alone would run into it.
    marks = func is torch.ops.aten._efficientzerotensor.default
    return (torch.ops.aten.zeros.default if marks else func)(*args, **(kwargs or {}))


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of an operation.

    >>> len(tensors_in(([torch.zeros(1), 2], {"out": torch.zeros(1)})))
    2
    """
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
