"""Arrays of NumPy, as pickles describe them and as `.npy` and `.npz` files hold them."""

import ast
import re
from io import SEEK_END, BytesIO
from math import prod
from typing import Any, BinaryIO

import numpy as np

from flatkit.checkpoints.readers.archives import opened
from flatkit.checkpoints.readers.stored import DTYPES, StoredTensor, contiguous
from flatkit.checkpoints.readers.torch_words import vocabulary
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import MalformedPickleError, Record, read_pickle

NPY = b"\x93NUMPY"
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
# Weights hardly compress; what unpacks into a hundred times its size is made to fill the memory.
_UNPACKS, _FREE = 100, 2**26
_MAX_HEADER = 10_000  # NumPy's own limit: the parser of Python is not safe for any length


def array_of(item: Any) -> StoredTensor | None:
    """Return an array that a pickle describes, or None for anything else.

    Arrays of objects, texts and dates stay records.

    >>> import pickle
    >>> record = read_pickle(pickle.dumps(np.ones((2, 3), "f4")), vocabulary())
    >>> array_of(record).shape
    (2, 3)
    """
    if not isinstance(item, Record):
        return None
    # What `ndarray.__setstate__` takes: version, shape, dtype, order, bytes.
    if item.name in _RECONSTRUCT and isinstance(item.state, tuple) and len(item.state) == 5:
        _, shape, dtype, fortran, raw = item.state
        return _tensor(raw, dtype, shape, bool(fortran))
    if item.name in _FROM_BUFFER and len(item.args) == 4:
        raw, dtype, shape, order = item.args
        return _tensor(raw, dtype, shape, order == "F")
    return None


def _tensor(raw: Any, record: Any, shape: Any, fortran: bool) -> StoredTensor | None:
    dtype = _dtype(record)
    if isinstance(raw, str):  # as Python 2 wrote bytes
        raw = raw.encode("latin1")
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if dtype is None or not whole or not isinstance(raw, (bytes, bytearray)):
        return None
    count = len(raw) // dtype.itemsize
    if dtype.itemsize * prod(shape) != len(raw):
        raise CheckpointError(f"an array of shape {list(shape)} has {count} entries; damaged?")
    return _stored(np.frombuffer(raw, dtype), shape, fortran)


def _stored(entries: np.ndarray, shape: tuple[int, ...], fortran: bool) -> StoredTensor:
    """Return entries in the order of memory as a tensor, little-endian."""
    native = np.ascontiguousarray(entries, entries.dtype.newbyteorder("<"))
    # Column by column in memory: the strides of the reversed shape, reversed.
    stride = contiguous(shape[::-1])[::-1] if fortran else None
    return StoredTensor(BytesIO(native.tobytes()), 0, native.dtype.name, shape, stride)


def _dtype(record: Any) -> "np.dtype[Any] | None":
    """Return the dtype of numbers that a pickle describes."""
    if not isinstance(record, Record) or record.name != "numpy.dtype":
        return None
    code = record.args[0] if record.args else None
    code = code.decode("latin1") if isinstance(code, bytes) else code
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "<"
    order = order.decode("latin1") if isinstance(order, bytes) else order
    # Of this list only: the constructor of NumPy understands far more than numbers.
    if not isinstance(code, str) or code not in _CODES or order not in ("<", ">", "|", "="):
        return None
    return np.dtype(code).newbyteorder(">" if order == ">" else "<")


_CODES = frozenset(
    np.dtype(name).str[1:] for name in DTYPES if name in np.sctypeDict and "float8" not in name
)


def read_npy(file: BinaryIO, path: str) -> Any:
    """Return what a `.npy` file holds: an array, or what was pickled in its place, unmade.

    Args:
        file: at any position.
        path: for the messages.

    Raises:
        CheckpointError: it is damaged.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    code, fortran, shape = _header(file, path)
    if code in ("|O", "O"):
        try:
            return _pickled(file)
        except MalformedPickleError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(code, str) or code[1:] not in _CODES or code[0] not in "<>|=":
        # A void dtype is what NumPy makes of bfloat16; texts and dates are no weights.
        return Record("numpy.array" if "V" in str(code) else "numpy.text", ())
    dtype = np.dtype(code)
    nbytes = prod(shape) * dtype.itemsize
    if nbytes > size - file.tell():
        raise CheckpointError(f"{path} is truncated: {list(shape)} entries do not lie in it")
    return _stored(np.frombuffer(file.read(nbytes), dtype), shape, fortran)


def _header(file: BinaryIO, path: str) -> tuple[Any, bool, tuple[int, ...]]:
    """Return dtype, order and shape from the header of a `.npy` file.

    NumPy's own reader is not used: of damaged headers it raises whatever its parser does.
    """
    # The magic text, two bytes of version, and up to four of the length.
    start = file.read(12)
    # Version 1 gives the length of the text in two bytes, later ones in four.
    width = 2 if start[6:7] == b"\1" else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    file.seek(8 + width)
    text = file.read(min(length, _MAX_HEADER)).decode("latin1")
    try:
        # Python 2 wrote whole numbers as 3L. What is not a literal, `literal_eval` refuses.
        header = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text).strip())
        code, fortran, shape = (header[key] for key in ("descr", "fortran_order", "shape"))
        # torch counts in int64; NumPy has at most 64 dimensions.
        whole = all(type(n) is int and 0 <= n < 2**62 for n in shape) and len(shape) <= 64
    except Exception as error:  # the parser raises half a dozen types
        raise CheckpointError(f"{path} is damaged: its header cannot be read") from error
    if length > _MAX_HEADER or not whole or not isinstance(shape, tuple):
        raise CheckpointError(f"{path} is damaged: its header cannot be read")
    return code, bool(fortran), shape


def _pickled(file: BinaryIO) -> Any:
    """Return what `numpy.save` pickles for an array of objects: of one alone, that one."""
    content = read_pickle(file.read(), vocabulary())
    state = content.state if isinstance(content, Record) else None
    if isinstance(state, tuple) and isinstance(state[-1], list) and len(state[-1]) == 1:
        return state[-1][0]
    return content


def is_npz(file: BinaryIO) -> bool:
    """Whether an archive is one of `numpy.savez`: its first record is an array."""
    file.seek(0)
    head = file.read(30)  # of the local header, with the length of the name in bytes 26 and 27
    name = file.read(int.from_bytes(head[26:28], "little"))
    return name.endswith(b".npy")


def read_npz(file: BinaryIO, path: str) -> dict[str, Any]:
    """Return the arrays of an archive of `numpy.savez` or `savez_compressed`, by name.

    Raises:
        CheckpointError: damaged, encrypted, or unpacking into something huge.
    """
    size = file.seek(0, SEEK_END)
    with opened(file, path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > _UNPACKS * size + _FREE:
            raise CheckpointError(f"{path} is refused: it would unpack into something huge")
        # The module zipfile gives no more bytes than a record claims, and checks their sum.
        data = {record.filename: archive.read(record) for record in records}
    return {
        name.removesuffix(".npy"): read_npy(BytesIO(raw), f"{path}, {name}")
        for name, raw in data.items()
    }
