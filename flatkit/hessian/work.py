"""What a computation costs, by counting its multiplications: the same in every run."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from flatkit.objective.model.dispatch import Mode, execute, map_leaves
from flatkit.objective.model.sizing import made_by


@final
class Work(Mode):
    """Counts what is computed inside.

    That is the floating-point operations of convolutions, matrix products and attention, which
    torch counts, and one for each number that another operation makes. How fast a kernel is, and
    what Python takes between two operations, is not seen: of products it tells their time in
    gradients to some 30 % (`benchmarks/products.py`).

    Attributes:
        count: the operations so far.

    >>> with Work() as work:
    ...     found = torch.ones(2, 3) @ torch.ones(3, 4)  # 2·2·3·4, and 6 + 12 ones
    >>> work.count
    66
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        result = execute(func, args, options)
        counted, by_shapes = _formula_of(func)
        # torch counts a multiplication and its addition as two operations.
        if counted is None:
            self.count += sum(tensor.numel() for tensor in made_by(func, result))
        elif by_shapes:
            self.count += counted(*_shapes(args), **_shapes(options), out_shape=_shapes(result))
        else:
            self.count += counted(*args, **options, out_val=result)
        return result


@cache
def _formula_of(func: Any) -> tuple[Any, bool]:
    """Return how torch counts an operation, if it does, and whether by the shapes of its tensors.

    One in place counts as the one that is not.

    Args:
        func: what a `TorchDispatchMode` is told of.
    """
    packet = getattr(func, "overloadpacket", func)
    name = str(packet).partition(".")[2]
    plain = getattr(torch.ops.aten, name[:-1], packet) if name.endswith("_") else packet
    known = flop_registry.get(plain)
    # What torch puts around most formulas makes shapes of trees of tensors, which takes ten times
    # as long as a small product; `_shapes` does the same.
    around = flop_registry[torch.ops.aten.mm].__code__
    if known is not None and getattr(known, "__code__", None) is around:
        return known.__wrapped__, True
    return known, False


def _shapes(tree: Any) -> Any:
    """Return arguments or a result with the shapes of tensors in their place."""
    return map_leaves(lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, tree)
