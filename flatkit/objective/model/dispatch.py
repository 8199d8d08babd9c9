"""Operations that run under a `TorchDispatchMode`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):
    """Is told of the operations inside, and of no compiler.

    torch keeps its compiler away from modes by importing it at the first operation, which takes
    two seconds, and by a wrapper, which takes as long as a small operation. Here nothing compiles:
    `ordinary_torch` runs compiled functions as they were written.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


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
    # By hand, as torch's own trees take longer than a small operation.
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for part in tree for tensor in tensors_in(part)]  # pyright: ignore
