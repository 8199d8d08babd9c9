"""Operations that run under a `TorchDispatchMode`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def execute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Run an operation that a `TorchDispatchMode` is told of.

    Zeros that torch keeps as a mark alone, as derivatives of derivatives make them, become numbers:
    torch 2.13 multiplies such a mark under a mode without end, until the process dies.

    Args:
        func: what the mode is told of.
        args: its arguments.
        kwargs: those by name.
    """
    marks = func is torch.ops.aten._efficientzerotensor.default
    return (torch.ops.aten.zeros.default if marks else func)(*args, **(kwargs or {}))
