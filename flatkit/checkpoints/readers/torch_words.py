"""What files of torch.save say: storages, tensors and a few containers; all else stays inert.

`torch.save` writes a pickle that calls a dozen functions of torch by name. Here our own functions
answer them, with descriptions that are checked and that `resolve` turns into `StoredTensor`s.
Whatever else a pickle names, from an `argparse.Namespace` to a call of `os.system`, becomes a
`Record` or `Name` of `flatkit.files.plain_pickle`, which is never made and never called.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from flatkit.checkpoints.readers.stored import DTYPES, StoredTensor, span
from flatkit.files.plain_pickle import (
    MAX_BYTES,
    MalformedPickleError,
    Name,
    Record,
    Table,
    Vocabulary,
    check_key,
)

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
# Their entries mean nothing without the scales of the tensor that they belong to.
_CODES = {
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}


@dataclass(eq=False)
class Storage:
    """A run of entries in a file; where it starts is known at once, or after the pickle.

    Attributes:
        dtype: a name of `DTYPES`.
        numel: its entries.
        kind: the class of torch, where the entries are no numbers, e.g. `torch.QInt8Storage`.
        start: byte of the first entry.
        file: that holds them, where it is not the file of the pickle.
    """

    dtype: str
    numel: int
    kind: str = ""
    start: int = -1
    file: BinaryIO | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return self.numel * DTYPES[self.dtype].itemsize


@dataclass(eq=False)
class Claim:
    """A tensor as the pickle describes it."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def vocabulary(
    persistent: Callable[[Any], Any] | None = None,
    from_bytes: Callable[[bytes], Any] = lambda data: Record("torch.storage._load_from_bytes", ()),
) -> Vocabulary:
    """Return what a file of `torch.save` may name.

    Args:
        persistent: makes a storage of a persistent id.
        from_bytes: makes a storage of the file of torch.save that a plain pickle holds it as.
    """
    # A memo lets a few bytes name one list many times; each copy of it is paid for here.
    budget = [MAX_BYTES]

    def spend(count: int) -> None:
        budget[0] -= count
        if budget[0] < 0:
            raise MalformedPickleError("it copies its own parts again and again")

    def ordered(pairs: Iterable[Any] = ()) -> Table:
        pairs = list(pairs.items() if isinstance(pairs, dict) else pairs)
        spend(len(pairs))
        for key, _ in pairs:
            check_key(key)
        return Table(pairs)

    def encode(text: str, encoding: str) -> bytes:
        spend(len(text))
        return text.encode("latin1" if encoding == "latin1" else "ascii")

    def as_set(items: Any = ()) -> list[Any]:
        return items if isinstance(items, list) else []

    return Vocabulary(
        calls={
            **_REBUILT,
            "torch._tensor._rebuild_from_type": _rebuild_from_type,
            "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
            "torch.storage._load_from_bytes": from_bytes,
            "collections.OrderedDict": ordered,
            "collections.Counter": ordered,
            "collections.defaultdict": lambda _=None, pairs=(): ordered(pairs),
            "builtins.set": as_set,
            "__builtin__.set": as_set,
            "_codecs.encode": encode,
            "torch.Size": lambda shape: _whole(shape),
            "torch.device": lambda kind, index=None: Record("torch.device", (kind, index)),
        },
        records=lambda name: dtype_of(name) is None,
        names=lambda name: True,
        persistent=persistent,
    )


def storage_of(identity: Any) -> tuple[Storage, str]:
    """Return a storage and its key from a persistent id of torch.save.

    Raises:
        MalformedPickleError: it is none.
    """
    # "storage", kind, key, place, entries; in old files also the storage that it is a part of.
    if not is_storage(identity) or len(identity) not in (5, 6):
        raise MalformedPickleError(f"a persistent id of the kind {str(identity)[:40]!r}")
    _, kind, key, _, numel, *view = identity
    if not isinstance(kind, Name) or not isinstance(key, str) or view not in ([], [None]):
        raise MalformedPickleError("a storage that is not described as torch does")
    (numel,) = _whole((numel,))
    dtype = dtype_of(kind.text)
    if dtype is not None:
        return Storage(dtype, numel), key
    return Storage(_CODES.get(kind.text.rpartition(".")[2], ""), numel, kind=kind.text), key


def is_storage(identity: Any) -> bool:
    """Whether a persistent id means a storage; else it is an object of another program."""
    return isinstance(identity, tuple) and len(identity) > 0 and identity[0] == "storage"


def _rebuild(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _: Any = None,
    __: Any = None,
    metadata: Any = None,
) -> Claim | Record:
    if metadata:
        return Record("torch._utils._rebuild_tensor_v2", tuple(metadata))
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
) -> Claim | Record:
    if not isinstance(dtype, Name):
        raise MalformedPickleError("a tensor whose dtype is no name")
    if metadata or dtype_of(dtype.text) is None:
        return Record("torch._utils._rebuild_tensor_v3", (dtype.text, *(metadata or ())))
    return _claim(storage, offset, shape, stride, dtype_of(dtype.text))


def _rebuild_from_type(function: Any, kind: Any, args: Any, _: Any) -> Any:
    """Return a tensor that has attributes, or is of a class of its own: its entries alone."""
    if isinstance(function, Name) and function.text in _REBUILT:
        return _REBUILT[function.text](*args)
    return Record(kind.text, args)


def _claim(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None
) -> Claim | Record:
    """Return a tensor, if it lies inside its storage."""
    if isinstance(storage, Record):
        return Record("torch._utils._rebuild_tensor_v2", (storage,))
    if not isinstance(storage, Storage):
        raise MalformedPickleError("a tensor without a storage")
    if storage.kind:  # of codes; they are not looked at
        return Record("torch._utils._rebuild_tensor_v2", (storage.kind,))
    dtype = dtype or storage.dtype
    (offset,), shape, stride = _whole((offset,)), _whole(shape), _whole(stride)
    # NumPy has at most 64 dimensions.
    if len(shape) != len(stride) or len(shape) > 64:
        raise MalformedPickleError("a tensor whose shape and strides do not fit together")
    needed = (offset + span(shape, stride)) * DTYPES[dtype].itemsize
    # What has no entry may stand anywhere, also beyond the end.
    if 0 not in shape and needed > storage.nbytes:
        raise MalformedPickleError(f"a tensor of {needed} bytes in a storage of {storage.nbytes}")
    return Claim(storage, dtype, offset, shape, stride)


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or not all(
        type(number) is int and 0 <= number < 2**62 for number in numbers
    ):
        raise MalformedPickleError(f"sizes that are no whole numbers: {str(numbers)[:80]}")
    return numbers


def resolve(content: Any, file: BinaryIO, size: int) -> Any:
    """Return the content with tensors in place of their descriptions; records keep theirs.

    Raises:
        MalformedPickleError: stride tricks make its tensors much larger than the file.
    """
    made: dict[int, Any] = {}  # by id: what the pickle names twice stays one tensor
    spent = [0]

    def tensor(item: Claim) -> StoredTensor:
        itemsize = DTYPES[item.dtype].itemsize
        spent[0] += prod(item.shape) * itemsize
        # Expanded and tied tensors share bytes, so that some excess is honest.
        if spent[0] > 8 * size + 2**24:
            raise MalformedPickleError("its tensors are much larger than the file")
        start = item.storage.start + item.offset * itemsize
        return StoredTensor(item.storage.file or file, start, item.dtype, item.shape, item.stride)

    def resolved(item: Any) -> Any:
        if id(item) in made:
            return made[id(item)]
        result: Any = item
        if isinstance(item, Claim):
            result = tensor(item)
        elif isinstance(item, Storage):
            numbers = StoredTensor(item.file or file, item.start, item.dtype, (item.numel,))
            result = Record(item.kind, ()) if item.kind else numbers
        elif isinstance(item, dict):
            result = Table((key, resolved(value)) for key, value in item.items())
            result.state = getattr(item, "state", None)
        elif isinstance(item, (list, tuple)):
            result = type(item)(resolved(part) for part in item)
        elif isinstance(item, Record):
            item.items = resolved(item.items)
        else:
            return item
        made[id(item)] = result
        return result

    return resolved(content)


def dtype_of(name: str) -> str | None:
    """Return the dtype that `torch.FloatStorage` or `torch.float32` names."""
    module, _, last = name.rpartition(".")
    if module not in ("torch", "torch.storage", "torch.cuda"):
        return None
    return _STORAGES.get(last) or (last if last in DTYPES else None)


_REBUILT: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": lambda *a: _rebuild(*a[:4]),
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
"""What makes a tensor of numbers; everything else that does stays a `Record`."""
