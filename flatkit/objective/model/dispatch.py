"""Operations that run under a `TorchDispatchMode`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):
    """Is told of the operations inside, and of no compiler.

    torch keeps its compiler away from modes by importing it at the first operation, which takes
    more than a second, and by a wrapper. Here nothing compiles: `ordinary_torch` runs compiled
    functions as they were written.
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


def leaves_in(tree: Any) -> list[Any]:
    """Return what the arguments or results of an operation are made of.

    Of lists, tuples and dictionaries alone, as operations take no others: torch's own trees take
    longer to go through than a small operation.

    >>> leaves_in(([1, 2], {"out": None}))
    [1, 2, None]
    """
    if isinstance(tree, dict):
        tree = tree.values()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    elif not isinstance(tree, (tuple, list)):
        return [tree]
    return [leaf for part in tree for leaf in leaves_in(part)]  # pyright: ignore


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return arguments or results of an operation with a function of each leaf.

    >>> map_leaves(str, ([1, 2], {"out": None}))
    (['1', '2'], {'out': 'None'})
    """
    if isinstance(tree, dict):
        items: Any = tree.items()  # pyright: ignore[reportUnknownMemberType]
        return {key: map_leaves(function, part) for key, part in items}
    if isinstance(tree, (tuple, list)):
        parts: Any = tree
        found = [map_leaves(function, part) for part in parts]
        return found if isinstance(tree, list) else tuple(found)
    return function(tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of an operation.

    >>> len(tensors_in(([torch.zeros(1), 2], {"out": torch.zeros(1)})))
    2
    """
    return [leaf for leaf in leaves_in(tree) if isinstance(leaf, Tensor)]
