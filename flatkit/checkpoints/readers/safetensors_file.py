"""The safetensors format: eight bytes of length, a JSON table of the tensors, their bytes.

The table is read here and not by the package `safetensors` because that maps the whole file into
memory; its checks are made here as well, and the tests hold the two against each other.
"""

import json
import struct
from io import SEEK_END
from math import prod
from typing import Any, BinaryIO

from flatkit.checkpoints.readers.foreign import CODES
from flatkit.checkpoints.readers.stored import DTYPES, StoredTensor
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import Record

_MAX_TABLE = 100_000_000
"""Bytes of the table, the limit of the format."""
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "BOOL": "bool",
    **{
        f"{sign}{bits}": f"{name}{bits}"
        for sign, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of dtypes whose entries share bytes. They are codes, and are not read."""


def looks_like_safetensors(start: bytes) -> bool:
    """Whether the first bytes of a file are a length and the opening of a table.

    To be asked before anything else: the length may begin with any byte, also with those that
    begin a pickle, a zip archive or JSON. As a length, these are larger than any table.

    >>> looks_like_safetensors(bytes([128, 0, 0, 0, 0, 0, 0, 0]) + b'{}')
    True
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_TABLE


def read_safetensors(file: BinaryIO, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata.

    A tensor whose entries share bytes is a `Record`.

    Args:
        file: open at any position; the tensors refer to it.
        path: for the messages.

    Raises:
        CheckpointError: truncated, damaged, or of a dtype that flatkit does not know.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > min(_MAX_TABLE, size - 8):
        swapped = struct.unpack(">Q", head)[0] if len(head) == 8 else size
        why = "is truncated: its table should be longer than the file"
        if swapped <= size - 8:
            why = "has its length in big-endian order, which the format does not allow"
        raise CheckpointError(f"{path} {why}; copy or export it again")
    table = _table(file.read(length), path)
    # The one name that is no tensor.
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _malformed(path, "its metadata are not texts")
    tensors, ends = {}, []
    for name, entry in table.items():
        start, end, dtype, shape = _entry(name, entry, path)
        ends.append((start, end))
        codes = Record(f"{CODES}{dtype}", ())
        known = dtype in DTYPES
        tensors[name] = StoredTensor(file, 8 + length + start, dtype, shape) if known else codes
    at = 0  # the format wants the tensors to fill the rest of the file, without a hole
    # Sorted, each begins where the last one ended: no overlap and no hole.
    for start, end in sorted(ends):
        if start != at:
            raise _malformed(path, "its tensors overlap or leave a hole")
        at = end
    if at > size - 8 - length:
        raise CheckpointError(f"{path} is truncated: it ends within its tensors; copy it again")
    if at < size - 8 - length:
        raise _malformed(path, "it is longer than its table says")
    return tensors, metadata


def _table(text: bytes, path: str) -> dict[str, Any]:
    # JSON allows a name twice, of which Python keeps the last; the format forbids it.
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"its table is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise _malformed(path, "its table is no JSON object")
    return table


def _entry(name: str, entry: Any, path: str) -> tuple[int, int, str, tuple[int, ...]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"the entry of {name} is not that of a tensor")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in {**_NAMES, **_BITS}:
        raise CheckpointError(
            f"{path} holds {name} in the dtype {str(entry['dtype'])[:20]}, which flatkit does not "
            f"read; it reads {', '.join(_NAMES)}; convert it with the program that wrote it"
        )
    dtype = _NAMES.get(entry["dtype"], entry["dtype"])
    shape, ends = entry["shape"], entry["data_offsets"]
    for numbers in (shape, ends):
        if not isinstance(numbers, list) or not all(
            type(number) is int and 0 <= number < 2**63 for number in numbers
        ):
            raise _malformed(path, f"shape or offsets of {name} are no whole numbers")
    bits = _BITS[dtype] if dtype in _BITS else 8 * DTYPES[dtype].itemsize
    # Of 64 sizes: the product of a damaged list of thousands would take minutes.
    nbytes = -(-prod(shape[:64]) * bits // 8)
    if len(ends) != 2 or len(shape) > 64 or ends[1] - ends[0] != nbytes:
        raise _malformed(path, f"the bytes of {name} do not fit its shape")
    return ends[0], ends[1], dtype, tuple(shape)


def _malformed(path: str, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged safetensors file: {why}")
