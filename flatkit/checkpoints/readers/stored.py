"""Tensors as extents of files: their shape and dtype are known, their bytes are read when asked.

No torch here: what a file holds can be listed and scanned in a few megabytes of memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from flatkit.errors import CheckpointError

_BLOCK = 2**22  # so that scanning a file of any size takes a few megabytes
"""Bytes that are read at once when a tensor is scanned."""


class DType(NamedTuple):
    """Bytes of an entry, and which bits of a part mean NaN or infinite.

    Attributes:
        itemsize: bytes of an entry.
        part: bytes of a real number in it; the same, or half of it for a complex one.
        mask: bits to look at.
        pattern: the masked value of what is not finite; None for whole numbers.
    """

    itemsize: int
    part: int
    mask: int = 0
    pattern: int | None = None


# Masks are the bits of the exponent: all ones mean NaN or infinite, by IEEE 754. Of the 8-bit
# floats e4m3fn has one pattern of NaN, the fnuz kinds that of −0, and e8m0 all ones.
DTYPES: dict[str, DType] = {
    "float64": DType(8, 8, 0x7FF << 52, 0x7FF << 52),
    "float32": DType(4, 4, 0xFF << 23, 0xFF << 23),
    "float16": DType(2, 2, 0x1F << 10, 0x1F << 10),
    "bfloat16": DType(2, 2, 0xFF << 7, 0xFF << 7),
    "float8_e5m2": DType(1, 1, 0x7C, 0x7C),
    "float8_e4m3fn": DType(1, 1, 0x7F, 0x7F),
    "float8_e5m2fnuz": DType(1, 1, 0xFF, 0x80),
    "float8_e4m3fnuz": DType(1, 1, 0xFF, 0x80),
    "float8_e8m0fnu": DType(1, 1, 0xFF, 0xFF),
    "complex64": DType(8, 4, 0xFF << 23, 0xFF << 23),
    "complex128": DType(16, 8, 0x7FF << 52, 0x7FF << 52),
    **{f"int{bits}": DType(bits // 8, bits // 8) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": DType(bits // 8, bits // 8) for bits in (8, 16, 32, 64)},
    "bool": DType(1, 1),
}
"""By the name that torch gives them."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in one extent of a file.

    Attributes:
        file: open, seekable.
        start: byte of its first entry.
        dtype: a name of `DTYPES`.
        shape: of the tensor.
        stride: in entries, as of a torch tensor; contiguous by default.

    >>> from io import BytesIO
    >>> ones = StoredTensor(BytesIO(np.ones(6, "f4").tobytes()), 0, "float32", (2, 3))
    >>> ones.nbytes, ones.array().view("f4").tolist()
    (24, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """

    file: BinaryIO
    start: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return self.numel * DTYPES[self.dtype].itemsize

    def array(self) -> np.ndarray:
        """Return the bytes of all entries in row-major order, uint8, shape [nbytes].

        Raises:
            CheckpointError: the file ends within them.
        """
        if self._is_contiguous:
            return self._read(self.start, self.nbytes)
        assert self.stride is not None
        size = DTYPES[self.dtype].itemsize
        raw = self._read(self.start, span(self.shape, self.stride) * size)
        # Within `raw`, which holds the whole span: as_strided itself checks nothing.
        entries = np.lib.stride_tricks.as_strided(
            raw, (*self.shape, size), (*(step * size for step in self.stride), 1)
        )
        return np.ascontiguousarray(entries).reshape(-1)

    def count_non_finite(self) -> int:
        """Return how many entries are NaN or infinite; contiguous ones are read in small blocks."""
        blocks = self._blocks() if self._is_contiguous else iter([self.array()])
        return sum(_non_finite(block, self.dtype) for block in blocks)

    @property
    def _is_contiguous(self) -> bool:
        return self.stride is None or self.numel == 0 or self.stride == contiguous(self.shape)

    def _blocks(self) -> Iterator[np.ndarray]:
        for at in range(0, self.nbytes, _BLOCK):
            yield self._read(self.start + at, min(_BLOCK, self.nbytes - at))

    def _read(self, start: int, nbytes: int) -> np.ndarray:
        buffer = bytearray(nbytes)
        self.file.seek(start)
        view, done = memoryview(buffer), 0
        while done < nbytes:
            # May give fewer bytes than were asked for.
            count = self.file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError("the file ended while a tensor was read; is it changing?")
            done += count
        return np.frombuffer(buffer, np.uint8)


class Piece(NamedTuple):
    """A box of an assembled tensor: where it begins, and its entries."""

    offsets: tuple[int, ...]
    tensor: StoredTensor


@dataclass(frozen=True, eq=False)
class AssembledTensor:
    """A tensor in pieces that tile it, each in an extent of its own.

    Attributes:
        dtype: a name of `DTYPES`.
        shape: of the whole.
        pieces: boxes inside it, of as many entries together.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Sequence[Piece]

    @property
    def numel(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return self.numel * DTYPES[self.dtype].itemsize

    def array(self) -> np.ndarray:
        """Return the bytes of all entries in row-major order, uint8, shape [nbytes].

        Raises:
            CheckpointError: the pieces leave something out, or a file ends within them.
        """
        size = DTYPES[self.dtype].itemsize
        whole = np.empty((*self.shape, size), np.uint8)
        covered = np.zeros(self.shape, bool)
        for offsets, tensor in self.pieces:
            box = tuple(
                slice(start, start + length)
                for start, length in zip(offsets, tensor.shape, strict=True)
            )
            # `size` bytes an entry, as NumPy has no bfloat16.
            whole[box] = tensor.array().reshape(*tensor.shape, size)
            covered[box] = True
        if not covered.all():
            raise CheckpointError("the pieces of a tensor do not cover it; a file is missing")
        return whole.reshape(-1)

    def count_non_finite(self) -> int:
        """Return how many entries are NaN or infinite."""
        return sum(piece.tensor.count_non_finite() for piece in self.pieces)


AnyTensor: TypeAlias = StoredTensor | AssembledTensor


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in entries, of a row-major tensor.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many entries of a storage lie between the first and the last of a tensor.

    >>> span((2, 3), (3, 1)), span((2, 3), (1, 2)), span((0, 3), (3, 1))
    (6, 6, 0)
    """
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))


def _non_finite(raw: np.ndarray, dtype: str) -> int:
    kind = DTYPES[dtype]
    if kind.pattern is None:
        return 0
    parts = raw.view(f"<u{kind.part}")
    wrong = (parts & parts.dtype.type(kind.mask)) == parts.dtype.type(kind.pattern)
    return int(wrong.reshape(-1, kind.itemsize // kind.part).any(1).sum())
