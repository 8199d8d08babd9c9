"""What a computation costs, by counting its multiplications: the same in every run."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flatkit.objective.model.dispatch import execute
from flatkit.objective.model.sizing import made_by


@final
class Work(TorchDispatchMode):
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
        counted = flop_registry.get(_without_place(getattr(func, "overloadpacket", func)))
        # torch counts a multiplication and its addition as two operations.
        if counted is not None:
            self.count += counted(*args, **options, out_val=result)
        else:
            self.count += sum(tensor.numel() for tensor in made_by(func, result))
        return result


def _without_place(packet: Any) -> Any:
    """Return the operation that does the same, and does not write into its first argument."""
    name = str(packet).partition(".")[2]
    return getattr(torch.ops.aten, name[:-1], packet) if name.endswith("_") else packet
