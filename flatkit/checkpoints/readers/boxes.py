"""Boxes of stored tensors: what one rank of several holds, read without the rest."""

from collections.abc import Sequence
from math import prod

import numpy as np

from flatkit.checkpoints.readers.stored import DTYPES, AnyTensor, Piece, StoredTensor, contiguous
from flatkit.errors import CheckpointError

_BYTES = 2**24
"""Of rows that are read at once, where a box takes a part of each; one row at least."""


def read_box(tensor: AnyTensor, offsets: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return the bytes of a box of a stored tensor in row-major order, uint8, shape [nbytes].

    Of each piece only the rows that meet the box are read, some megabytes at a time.

    Args:
        tensor: in its files.
        offsets: where the box begins, in entries.
        shape: of the box.

    Raises:
        CheckpointError: the pieces leave something of the box out, or a file ends within them.

    >>> from io import BytesIO
    >>> numbers = StoredTensor(BytesIO(bytes(range(6))), 0, "uint8", (3, 2))
    >>> read_box(numbers, (1, 0), (2, 1)).tolist()
    [2, 4]
    """
    size = DTYPES[tensor.dtype].itemsize
    # Counting entries would not do: pieces that overlap may leave a hole of as many.
    found, covered = np.empty((*shape, size), np.uint8), np.zeros(shape, bool)
    whole = (0,) * len(tensor.shape)
    pieces = [Piece(whole, tensor)] if isinstance(tensor, StoredTensor) else tensor.pieces
    for begin, piece in pieces:
        low = [max(a, b) for a, b in zip(begin, offsets, strict=True)]
        ends = zip(begin, piece.shape, offsets, shape, strict=True)
        high = [min(a + n, b + m) for a, n, b, m in ends]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        # What piece and box share, in the coordinates of each.
        own = [slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True)]
        there = [slice(a - o, b - o) for a, b, o in zip(low, high, offsets, strict=True)]
        _copy_rows(piece, own, found, there)
        covered[tuple(there)] = True
    if not covered.all():
        raise CheckpointError("the pieces of a tensor do not cover it; a file is missing")
    return found.reshape(-1)


def _copy_rows(
    piece: StoredTensor, own: Sequence[slice], found: np.ndarray, there: Sequence[slice]
) -> None:
    """Copy a box of a piece into a box of an array, rows of the piece at a time."""
    size = DTYPES[piece.dtype].itemsize
    plain = piece.stride is None or piece.stride == contiguous(piece.shape)
    if not piece.shape or not plain:
        entries = piece.array().reshape(*piece.shape, size)
        found[tuple(there)] = entries[tuple(own)]
        return
    row = prod(piece.shape[1:]) * size
    rows, target = own[0], there[0]
    step = max(1, _BYTES // max(1, row))
    for first in range(rows.start, rows.stop, step):
        last = min(first + step, rows.stop)
        start, shape = piece.start + first * row, (last - first, *piece.shape[1:])
        part = StoredTensor(piece.file, start, piece.dtype, shape)
        entries = part.array().reshape(*shape, size)
        at = target.start + first - rows.start
        found[(slice(at, at + last - first), *there[1:])] = entries[(slice(None), *own[1:])]
