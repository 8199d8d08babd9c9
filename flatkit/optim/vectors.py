"""Vectors in parameter space as blocks of tensors, and the algebra that SAM and GAM need.

A vector is a list of blocks, a block a list of tensors of one device and dtype, so that each
operation is one `torch._foreach_*` call a block. Weights are lists with one number a block,
because blocks of different param groups may have different ones. A trailing underscore means that
the first argument is changed in place.
"""

# The _foreach operations lack the public mark, but torch.optim itself and its docs rely on them.
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Vector: TypeAlias = list[list[Tensor]]
Weights: TypeAlias = Sequence[float]


def copy(x: Vector) -> Vector:
    """Return a copy that shares no memory.

    >>> x = [[torch.ones(2)]]
    >>> copy(x)[0][0] is x[0][0]
    False
    """
    return [[tensor.detach().clone() for tensor in block] for block in x]


def assign_(x: Vector, y: Vector) -> None:
    """Set x to y, bit for bit.

    >>> x = [[torch.zeros(2)]]
    >>> assign_(x, [[torch.ones(2)]])
    >>> x
    [[tensor([1., 1.])]]
    """
    for left, right in zip(x, y, strict=True):
        torch._foreach_copy_(left, right)


def scale_(x: Vector, weights: Weights) -> None:
    """Multiply each block by its weight.

    >>> x = [[torch.ones(2)], [torch.ones(1)]]
    >>> scale_(x, [2.0, 3.0])
    >>> x
    [[tensor([2., 2.])], [tensor([3.])]]
    """
    for block, weight in zip(x, weights, strict=True):
        torch._foreach_mul_(block, weight)


def add_(x: Vector, y: Vector, weights: Weights) -> None:
    """Add weight·y to x, block by block.

    >>> x = [[torch.ones(2)]]
    >>> add_(x, [[torch.ones(2)]], [0.5])
    >>> x
    [[tensor([1.5000, 1.5000])]]
    """
    for left, right, weight in zip(x, y, weights, strict=True):
        torch._foreach_add_(left, right, alpha=weight)


def mix_(x: Vector, y: Vector, weights: Weights) -> None:
    """Set x to w·x + (1−w)·y.

    >>> x = [[torch.tensor([1.0, 0.0])]]
    >>> mix_(x, [[torch.tensor([0.0, 1.0])]], [0.25])
    >>> x
    [[tensor([0.2500, 0.7500])]]
    """
    scale_(x, weights)
    add_(x, y, [1 - weight for weight in weights])


def project_out_(x: Vector, y: Vector) -> None:
    """Leave of x the part that is orthogonal to y: x − (⟨x, y⟩/‖y‖²)·y; all of x where y = 0.

    >>> x = [[torch.tensor([2.0, 3.0])]]
    >>> project_out_(x, [[torch.tensor([4.0, 0.0])]])
    >>> x
    [[tensor([0., 3.])]]
    """
    length = norm(y)
    if length == 0:
        return
    share = inner(x, y) / length / length
    add_(x, y, [-share] * len(x))


def difference(x: Vector, y: Vector) -> Vector:
    """Return x − y in new memory.

    >>> difference([[torch.tensor([3.0])]], [[torch.tensor([1.0])]])
    [[tensor([2.])]]
    """
    return [list(torch._foreach_sub(left, right)) for left, right in zip(x, y, strict=True)]


def norm(x: Vector) -> float:
    """Return ‖x‖ over all blocks together, in float32 or wider on the device, then in float64.

    Waits for the device.

    >>> norm([[torch.tensor([3.0])], [torch.tensor([4.0], dtype=torch.float64)]])
    5.0
    """
    parts: list[float] = []
    for block in x:
        norms = torch._foreach_norm(block, 2, dtype=_wide(block))
        parts += torch.stack(list(norms)).tolist()
    return math.hypot(*parts)


def inner(x: Vector, y: Vector) -> float:
    """Return ⟨x, y⟩ over all blocks together, in the precision of `norm`.

    >>> inner([[torch.tensor([1.0, 2.0])]], [[torch.tensor([3.0, 4.0])]])
    11.0
    """
    parts: list[float] = []
    for left, right in zip(x, y, strict=True):
        wide = _wide(left)
        # One tensor at a time: a product of whole blocks would need memory for all of them.
        products = [(a.to(wide) * b.to(wide)).sum() for a, b in zip(left, right, strict=True)]
        parts += torch.stack(products).tolist()
    return sum(parts)


def _wide(block: list[Tensor]) -> torch.dtype:
    """At least float32: squares of small float16 gradients are zero in float16."""
    return torch.promote_types(block[0].dtype, torch.float32)
