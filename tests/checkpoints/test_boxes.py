"""Boxes of tensors in pieces, as ranks of a sharded model read them, against slices of NumPy."""

from io import BytesIO
from itertools import product

import numpy as np
import pytest

from flatkit.checkpoints.readers.boxes import read_box
from flatkit.checkpoints.readers.stored import AssembledTensor, Piece, StoredTensor
from flatkit.errors import CheckpointError

WHOLE = np.arange(30, dtype=np.int16).reshape(5, 6)


def piece(rows: slice, columns: slice) -> Piece:
    part = np.ascontiguousarray(WHOLE[rows, columns])
    stored = StoredTensor(BytesIO(part.tobytes()), 0, "int16", part.shape)
    return Piece((rows.start, columns.start), stored)


def test_every_box_of_a_tensor_in_pieces_is_that_slice():
    pieces = [
        piece(slice(0, 2), slice(0, 6)),
        piece(slice(2, 5), slice(0, 4)),
        piece(slice(2, 5), slice(4, 6)),
    ]
    tensor = AssembledTensor("int16", (5, 6), pieces)
    for row, column in product(range(5), range(6)):
        for height, width in product(range(5 - row + 1), range(6 - column + 1)):
            found = read_box(tensor, (row, column), (height, width)).view("<i2")
            expected = WHOLE[row : row + height, column : column + width]
            assert found.reshape(height, width).tolist() == expected.tolist()


def test_pieces_that_overlap_and_leave_a_hole_of_as_many_entries_are_refused():
    twice = [piece(slice(0, 3), slice(0, 6)), piece(slice(1, 3), slice(0, 6))]
    tensor = AssembledTensor("int16", (5, 6), twice)
    assert read_box(tensor, (0, 0), (3, 6)).view("<i2").tolist() == WHOLE[:3].ravel().tolist()
    with pytest.raises(CheckpointError, match="do not cover it"):
        read_box(tensor, (0, 0), (5, 6))
