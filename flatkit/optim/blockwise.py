"""Vectors in parameter space as blocks of tensors, and the operations that SAM and GAM need.

A vector is a list of blocks. A block is a list of tensors of one device and dtype, so that each
operation is one `torch._foreach_*` call a block. Weights are lists with one number a block,
because blocks of different param groups may have different ones. A trailing underscore means that
the first argument is changed in place.
"""

# The _foreach operations lack the public mark, but torch.optim itself and its docs rely on them.
# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

Blocks: TypeAlias = list[list[Tensor]]
"""A vector in parameter space."""
Weights: TypeAlias = Sequence[float]
"""One number a block."""


def copy(x: Blocks) -> Blocks:
    """Return a copy that shares no memory; to be called under `torch.no_grad`.

    >>> x = [[torch.ones(2)]]
    >>> copy(x)[0][0] is x[0][0]
    False
    """
    return [[tensor.clone() for tensor in block] for block in x]


@final
@dataclass(frozen=True)
class Blockwise:
    """Operations on vectors, block by block.

    Args:
        foreach: one call for a block of tensors. Otherwise tensor by tensor: slower on a GPU, but
            plain enough to be the reference, and open to tensors that have no foreach kernels.

    >>> blockwise = Blockwise()
    >>> x, y = [[torch.tensor([2.0, 3.0])]], [[torch.tensor([4.0, 0.0])]]
    >>> blockwise.add_(x, y, [0.5])
    >>> x
    [[tensor([4., 3.])]]
    """

    foreach: bool = True

    def assign_(self, x: Blocks, y: Blocks) -> None:
        """Set x to y, bit for bit."""
        for left, right in zip(x, y, strict=True):
            if self.foreach:
                torch._foreach_copy_(left, right)
            else:
                for a, b in zip(left, right, strict=True):
                    a.copy_(b)

    def scale_(self, x: Blocks, weights: Weights) -> None:
        """Multiply each block by its weight.

        >>> x = [[torch.ones(2)], [torch.ones(1)]]
        >>> Blockwise().scale_(x, [2.0, 3.0])
        >>> x
        [[tensor([2., 2.])], [tensor([3.])]]
        """
        for block, weight in zip(x, weights, strict=True):
            if self.foreach:
                torch._foreach_mul_(block, weight)
            else:
                for tensor in block:
                    tensor.mul_(weight)

    def add_(self, x: Blocks, y: Blocks, weights: Weights) -> None:
        """Add weight·y to x, block by block."""
        for left, right, weight in zip(x, y, weights, strict=True):
            if self.foreach:
                torch._foreach_add_(left, right, alpha=weight)
            else:
                for a, b in zip(left, right, strict=True):
                    a.add_(b, alpha=weight)

    def mix_(self, x: Blocks, y: Blocks, weights: Weights) -> None:
        """Set x to w·x + (1−w)·y.

        >>> x = [[torch.tensor([1.0, 0.0])]]
        >>> Blockwise().mix_(x, [[torch.tensor([0.0, 1.0])]], [0.25])
        >>> x
        [[tensor([0.2500, 0.7500])]]
        """
        self.scale_(x, weights)
        self.add_(x, y, [1 - weight for weight in weights])

    def stretch_(self, x: Blocks, theta: Blocks, eta: float) -> None:
        """Multiply x by T = |θ| + η, entry by entry.

        >>> x = [[torch.ones(2)]]
        >>> Blockwise().stretch_(x, [[torch.tensor([-3.0, 0.0])]], eta=0.5)
        >>> x
        [[tensor([3.5000, 0.5000])]]
        """
        for block, point in zip(x, theta, strict=True):
            if self.foreach:
                widths = torch._foreach_abs(point)
                torch._foreach_add_(widths, eta)
                torch._foreach_mul_(block, widths)
            else:
                for a, b in zip(block, point, strict=True):
                    a.mul_(b.abs().add_(eta))

    def project_out_(self, x: Blocks, y: Blocks) -> None:
        """Leave of x the part that is orthogonal to y: x − (⟨x, y⟩/‖y‖²)·y; all of x where y = 0.

        >>> x = [[torch.tensor([2.0, 3.0])]]
        >>> Blockwise().project_out_(x, [[torch.tensor([4.0, 0.0])]])
        >>> x
        [[tensor([0., 3.])]]
        """
        length = self.norm(y)
        if length == 0:
            return
        share = inner(x, y) / length / length  # ‖y‖² may underflow where ‖y‖ does not
        self.add_(x, y, [-share] * len(x))

    def difference(self, x: Blocks, y: Blocks) -> Blocks:
        """Return x − y in new memory.

        >>> Blockwise().difference([[torch.tensor([3.0])]], [[torch.tensor([1.0])]])
        [[tensor([2.])]]
        """
        if self.foreach:
            return [list(torch._foreach_sub(left, right)) for left, right in zip(x, y, strict=True)]
        return [[a - b for a, b in _pairs(left, right)] for left, right in zip(x, y, strict=True)]

    def norm(self, x: Blocks) -> float:
        """Return ‖x‖ over all blocks together, in float32 or wider on the device, then in float64.

        Waits for the device.

        >>> x = [[torch.tensor([3.0])], [torch.tensor([4.0], dtype=torch.float64)]]
        >>> Blockwise().norm(x)
        5.0
        """
        parts: list[float] = []
        for block in x:
            wide = _wide(block)
            if self.foreach:
                norms = list(torch._foreach_norm(block, 2, dtype=wide))
            else:
                norms = [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in block]
            parts += torch.stack(norms).tolist()
        return math.hypot(*parts)


def inner(x: Blocks, y: Blocks) -> float:
    """Return ⟨x, y⟩ over all blocks together, in the precision of `Blockwise.norm`.

    >>> inner([[torch.tensor([1.0, 2.0])]], [[torch.tensor([3.0, 4.0])]])
    11.0
    """
    parts: list[float] = []
    for left, right in zip(x, y, strict=True):
        wide = _wide(left)
        # One tensor at a time: a product of whole blocks would need memory for all of them.
        products = [(a.to(wide) * b.to(wide)).sum() for a, b in _pairs(left, right)]
        parts += torch.stack(products).tolist()
    return sum(parts)


def _pairs(left: list[Tensor], right: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(left, right, strict=True)


def _wide(block: list[Tensor]) -> torch.dtype:
    """At least float32: squares of small float16 gradients are zero in float16."""
    return torch.promote_types(block[0].dtype, torch.float32)
