"""Files of `torch.save`, zip archives and the older plain streams, without torch and without code.

`torch.load` reads a whole file at once and does not verify the checksums that its archive holds.
Here the tensors stay in the file until they are asked for, and every claim is checked before it is
believed: checksums are right, extents lie inside the file, nothing is compressed or overlaps.
"""

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import SEEK_END
from math import prod
from typing import Any, BinaryIO, cast

from flatkit.checkpoints.readers.stored import DTYPES, StoredTensor, span
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import (
    MAX_BYTES,
    ForeignObjectError,
    MalformedPickleError,
    Name,
    Record,
    Vocabulary,
    read_pickle,
)

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch/serialization.py
_LOCAL_HEADER = 30  # bytes before the name of a record (the zip format, APPNOTE 4.3.7)

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}

_INERT = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
    "numpy.ndarray",
    "collections.defaultdict",
    "torch.serialization._get_layout",
)
"""What training loops often put beside the tensors. It becomes a `Record`: not made, not called."""

_MENTIONED = ("builtins.list", "builtins.dict", "builtins.int", "builtins.float")


@dataclass(eq=False)
class _Storage:
    """A run of entries in a file; where it starts is known at once, or after the pickle."""

    dtype: str
    numel: int
    start: int = -1

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize


@dataclass(eq=False)
class _Claim:
    """A tensor as the pickle describes it."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(file: BinaryIO, path: str) -> Any:
    """Return what a file of `torch.save` holds: containers, numbers, and `StoredTensor`s.

    Args:
        file: open at any position; the tensors refer to it.
        path: for the messages.

    Raises:
        CheckpointError: truncated, damaged, compressed, of another byte order, of another
            program, or with objects whose loading would run code.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    try:
        start = file.read(len(ZIP))
        if start == ZIP:
            return _read_archive(file, path, size)
        if start[:1] == PICKLE:
            return _read_stream(file, path, size)
    except ForeignObjectError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except MalformedPickleError as error:
        raise CheckpointError(
            f"{path} is damaged, or a pickle that torch did not write: {error}"
        ) from error
    raise CheckpointError(f"{path} is not a file of torch.save")


def vocabulary(persistent: Callable[[Any], Any] | None = None) -> Vocabulary:
    """Return what a file of `torch.save` may name.

    Args:
        persistent: makes a storage of a persistent id.
    """
    # A memo lets a few bytes name one list many times; each copy of it is paid for here.
    budget = [MAX_BYTES]

    def spend(count: int) -> None:
        budget[0] -= count
        if budget[0] < 0:
            raise MalformedPickleError("it copies its own parts again and again")

    def ordered(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
        if isinstance(pairs, dict):
            return pairs
        pairs = list(pairs)
        spend(len(pairs))
        if not all(isinstance(pair[0], (str, int, float)) for pair in pairs):
            raise MalformedPickleError("a dictionary with keys that are no names")
        return {key: value for key, value in pairs}  # noqa: C416  (each must be a pair)

    def encode(text: str, encoding: str) -> bytes:
        spend(len(text))
        return text.encode("latin1" if encoding == "latin1" else "ascii")

    def as_set(items: Any = ()) -> list[Any]:
        return items if isinstance(items, list) else []

    return Vocabulary(
        calls={
            "collections.OrderedDict": ordered,
            "collections.Counter": ordered,
            "builtins.set": as_set,
            "__builtin__.set": as_set,
            "_codecs.encode": encode,
            "torch.Size": lambda shape: _whole(shape),
            "torch.device": lambda kind, index=None: Record("torch.device", (kind, index)),
            "torch._utils._rebuild_tensor": lambda *a: _claim(*a[:4]),
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch._utils._rebuild_tensor_v3": _rebuild_typed,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        },
        records=lambda name: name in _INERT,
        names=lambda name: dtype_of(name) is not None or name in _MENTIONED,
        persistent=persistent,
    )


def _read_archive(file: BinaryIO, path: str, size: int) -> Any:
    extents = _extents(file, path, size)
    folders = {name.rpartition("/")[0] for name in extents if name.endswith("data.pkl")}
    if len(folders) != 1:
        raise CheckpointError(f"{path} is a zip archive, but not one of torch.save")
    folder = folders.pop()

    def record(name: str) -> bytes:
        start, nbytes = extents[f"{folder}/{name}"]
        if nbytes > MAX_BYTES:
            raise CheckpointError(f"{path} is refused: {name} has {nbytes} bytes")
        file.seek(start)
        return file.read(nbytes)

    order = record("byteorder") if f"{folder}/byteorder" in extents else b"little"
    if order != b"little":
        raise CheckpointError(
            f"{path} is refused: its byte order is {order[:10]!r}, which flatkit does not read; "
            "load and save it once on a little-endian machine"
        )

    def persistent(identity: Any) -> _Storage:
        storage, key = _storage(identity)
        start, nbytes = extents.get(f"{folder}/data/{key}", (0, -1))
        if nbytes != storage.nbytes:  # else a small file could claim a huge tensor
            raise MalformedPickleError(
                f"storage {key} is said to have {storage.nbytes} bytes and has {max(nbytes, 0)}"
            )
        storage.start = start
        return storage

    content = read_pickle(record("data.pkl"), vocabulary(persistent))
    return _resolve(content, file, size)


def _extents(file: BinaryIO, path: str, size: int) -> Mapping[str, tuple[int, int]]:
    """Return name -> (first byte, bytes) of the records of an archive, all of them checked."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise CheckpointError(
                    f"{path} is refused: a TorchScript archive holds code; save a state_dict"
                )
            for record in records:
                if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                    raise CheckpointError(
                        f"{path} is refused: {record.filename[:80]} is compressed or encrypted, "
                        "which torch.save never does; it may unpack into something huge"
                    )
                if record.filename in found:
                    raise CheckpointError(f"{path} is refused: two records of one name")
                # The local header has an extra field of its own: torch aligns the data with it.
                file.seek(record.header_offset)
                names, extra = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))
                start = record.header_offset + _LOCAL_HEADER + names + extra
                found[record.filename] = (start, record.file_size)
            _check_extents(found.values(), size)
            damaged = archive.testzip()  # torch.load does not look at the checksums
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises a dozen types for bytes that are no archive
        raise CheckpointError(
            f"{path} is truncated or damaged ({error or type(error).__name__}); copy it again"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong")
    return found


def _check_extents(extents: Iterable[tuple[int, int]], size: int) -> None:
    """Refuse records that overlap or end outside the file: a few bytes that unpack into many."""
    end = 0
    for start, nbytes in sorted(extents):
        if start < end or start + nbytes > size:
            raise ValueError("its records overlap, or end outside the file")
        end = start + nbytes


def _read_stream(file: BinaryIO, path: str, size: int) -> Any:
    """Read the format before torch 1.6: pickles one after the other, then the storages."""
    file.seek(0)
    storages: dict[str, _Storage] = {}

    def persistent(identity: Any) -> _Storage:
        storage, key = _storage(identity)
        return storages.setdefault(key, storage)

    words = vocabulary(persistent)
    limited = cast(BinaryIO, _Limited(file))
    if read_pickle(limited, words) != _MAGIC:
        raise MalformedPickleError("no number of torch.save at its start")
    if read_pickle(limited, words) != _PROTOCOL:
        raise MalformedPickleError("a protocol that is not known")
    machine = read_pickle(limited, words)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{path} is refused: its byte order is not little-endian")
    content = read_pickle(limited, words)
    keys = read_pickle(limited, words)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise MalformedPickleError("its list of storages is not that of its tensors")
    at = file.tell()
    for key in keys:
        storage = storages[str(key)]
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or struct.unpack("<q", head)[0] != storage.numel:
            raise CheckpointError(f"{path} is truncated or damaged: storage {key} is not whole")
        storage.start = at + 8
        at = storage.start + storage.nbytes
        if at > size:
            raise CheckpointError(f"{path} is truncated: it ends within storage {key}")
    return _resolve(content, file, size)


class _Limited:
    """A stream that pretends to end after `MAX_BYTES`, so that a pickle cannot be endless."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_BYTES

    def read(self, count: int) -> bytes:
        return self._spent(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        return self._spent(self._file.readline(self._left))

    def tell(self) -> int:
        return self._file.tell()

    def _spent(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def _storage(identity: Any) -> tuple[_Storage, str]:
    """Return a storage and its key from a persistent id of torch.save."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        raise MalformedPickleError(f"a persistent id of the kind {str(kind)[:40]!r}")
    _, kind, key, _, numel, *view = identity
    dtype = dtype_of(kind.text) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(key, str) or view not in ([], [None]):
        raise MalformedPickleError("a storage that is not described as torch does")
    (numel,) = _whole((numel,))
    return _Storage(dtype, numel), key


def _rebuild(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, metadata: Any = None
) -> _Claim:
    if metadata:
        raise MalformedPickleError("a conjugated or negated view; save it resolved")
    return _claim(storage, offset, shape, stride)


def _rebuild_typed(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _: Any,
    __: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Claim:
    if metadata or not isinstance(dtype, Name) or dtype_of(dtype.text) is None:
        raise MalformedPickleError("a tensor of a dtype that flatkit does not know")
    return _claim(storage, offset, shape, stride, dtype_of(dtype.text))


def _claim(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> _Claim:
    """Return a tensor, if it lies inside its storage."""
    if not isinstance(storage, _Storage):
        raise MalformedPickleError("a tensor without a storage")
    dtype = dtype or storage.dtype
    (offset,), shape, stride = _whole((offset,)), _whole(shape), _whole(stride)
    if len(shape) != len(stride) or len(shape) > 64:
        raise MalformedPickleError("a tensor whose shape and strides do not fit together")
    needed = (offset + span(shape, stride)) * DTYPES[dtype].itemsize
    if 0 not in shape and needed > storage.nbytes:
        raise MalformedPickleError(f"a tensor of {needed} bytes in a storage of {storage.nbytes}")
    return _Claim(storage, dtype, offset, shape, stride)


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or not all(
        type(number) is int and 0 <= number < 2**62 for number in numbers
    ):
        raise MalformedPickleError(f"sizes that are no whole numbers: {str(numbers)[:80]}")
    return numbers


def _resolve(content: Any, file: BinaryIO, size: int) -> Any:
    """Return the content with tensors in place of their descriptions.

    Raises:
        MalformedPickleError: stride tricks make its tensors much larger than the file.
    """
    made: dict[int, Any] = {}  # by id: what the pickle names twice stays one tensor
    spent = [0]

    def resolve(item: Any) -> Any:
        if id(item) in made:
            return made[id(item)]
        if isinstance(item, _Claim):
            itemsize = DTYPES[item.dtype].itemsize
            spent[0] += prod(item.shape) * itemsize
            # Expanded and tied tensors share bytes, so that some excess is honest.
            if spent[0] > 8 * size + 2**24:
                raise MalformedPickleError("its tensors are much larger than the file")
            start = item.storage.start + item.offset * itemsize
            result: Any = StoredTensor(file, start, item.dtype, item.shape, item.stride)
        elif isinstance(item, _Storage):
            result = StoredTensor(file, item.start, item.dtype, (item.numel,))
        elif isinstance(item, dict):
            result = {key: resolve(value) for key, value in item.items()}
        elif isinstance(item, list):
            result = [resolve(part) for part in item]
        elif isinstance(item, tuple):
            result = tuple(resolve(part) for part in item)
        else:
            return item
        made[id(item)] = result
        return result

    return resolve(content)


def dtype_of(name: str) -> str | None:
    """Return the dtype that `torch.FloatStorage` or `torch.float32` names."""
    module, _, last = name.rpartition(".")
    if module not in ("torch", "torch.storage", "torch.cuda"):
        return None
    return _STORAGES.get(last) or (last if last in DTYPES else None)


def _refusal(path: str, name: str) -> str:
    return (
        f"{path} is refused: it contains whole objects such as {name}, and loading them would run "
        "code from the file; save a state_dict instead. Where you trust the file, convert it "
        f"once: x = torch.load({path!r}, weights_only=False); x = x['model'] if isinstance(x, "
        "dict) else x; torch.save(x.state_dict(), 'weights.pt')"
    )
