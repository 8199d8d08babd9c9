"""Folders of `torch.distributed.checkpoint`: a table of boxes, and files that hold them.

The table `.metadata` is a pickle, which torch itself loads by running it. Here it is only read.
"""

from collections.abc import Callable, Mapping
from io import SEEK_CUR, SEEK_END, RawIOBase
from math import prod
from typing import Any, BinaryIO, cast

from flatkit.checkpoints.readers.stored import AssembledTensor, Piece, StoredTensor
from flatkit.checkpoints.readers.torch_file import read_torch_file
from flatkit.checkpoints.readers.torch_words import dtype_of, vocabulary
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import (
    MAX_BYTES,
    ForeignObjectError,
    MalformedPickleError,
    Name,
    Record,
    read_pickle,
)

TABLE = ".metadata"
_OWN = "torch.distributed.checkpoint."


class Section(RawIOBase):
    """A part of a file as a file of its own.

    >>> from io import BytesIO
    >>> Section(BytesIO(b"abcdef"), 2, 3).read()
    b'cde'
    """

    def __init__(self, file: BinaryIO, start: int, nbytes: int) -> None:
        self._file, self._start, self._nbytes, self._at = file, start, nbytes, 0

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether it has positions: it has."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, not before the start."""
        base = {SEEK_CUR: self._at, SEEK_END: self._nbytes}.get(whence, 0)
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the section reaches."""
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._nbytes - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_distributed(
    path: str, open_member: Callable[[str], BinaryIO], nbytes: int
) -> dict[str, Any]:
    """Return what a folder of `torch.distributed.checkpoint` holds, nested as it was saved.

    Entries that are no tensors are left out.

    Args:
        path: of the folder, for the messages.
        open_member: opens a file of the folder by its name, or refuses.
        nbytes: of all files of the folder.

    Raises:
        CheckpointError: the table or a file is damaged, or they do not fit together.
    """
    try:
        table = _state(_table(open_member(TABLE)), "Metadata")
        boxes = {
            (state["fqn"], tuple(state.get("offset") or ())): _state(info, "_StorageInfo")
            for index, info in _mapping(table["storage_data"]).items()
            if (state := _state(index, "MetadataIndex"))
        }
        content: dict[str, Any] = {}
        paths = table.get("planner_data") or {}
        files = _Budget(open_member, nbytes)
        for name, entry in _mapping(table["state_dict_metadata"]).items():
            if not isinstance(entry, Record) or not entry.name.endswith(".TensorStorageMetadata"):
                continue
            state = _state(entry, "TensorStorageMetadata")
            tensor = _tensor(name, state, boxes, files, path)
            _put(content, paths.get(name, (name,)), tensor)
    except ForeignObjectError as error:
        raise CheckpointError(
            f"{path} is refused: its table names {error}, and making that would run code"
        ) from None
    # What the table holds is anything: keys may lack, and a number stand where a record should.
    except (MalformedPickleError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged: its table {TABLE} cannot be read ({error})"
        ) from error
    return content


def _table(file: BinaryIO) -> Any:
    return read_pickle(file.read(MAX_BYTES), vocabulary())


def _tensor(
    name: str,
    state: Mapping[str, Any],
    boxes: Mapping[Any, Mapping[str, Any]],
    files: "_Budget",
    path: str,
) -> AssembledTensor:
    shape = _sizes(state["size"])
    properties = state["properties"].state
    dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
    dtype = dtype_of(dtype.text) if isinstance(dtype, Name) else None
    if dtype is None:
        raise MalformedPickleError(f"the dtype of {name}")
    pieces = []
    # The table is not believed: each piece is opened, and must be what the table says of it.
    for chunk in state["chunks"]:
        box = _state(chunk, "ChunkStorageMetadata")
        offsets, sizes = _sizes(box["offsets"]), _sizes(box["sizes"])
        info = boxes[name, offsets]
        if info.get("transform_descriptors"):
            raise CheckpointError(f"{path} is refused: {name} is compressed; save it plainly")
        start, length = _sizes((info["offset"], info["length"]))
        section = files.section(str(info["relative_path"]), start, length)
        tensor, _ = read_torch_file(section, f"{path}, {name}")
        inside = len(offsets) == len(sizes) == len(shape) and all(
            offset + size <= whole
            for offset, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not isinstance(tensor, StoredTensor) or not inside:
            raise MalformedPickleError(f"a piece of {name} is no tensor inside it")
        if tensor.shape != sizes or tensor.dtype != dtype:
            raise MalformedPickleError(f"a piece of {name} is not what the table says")
        pieces.append(Piece(offsets, tensor))
    if sum(piece.tensor.numel for piece in pieces) != prod(shape):
        raise MalformedPickleError(f"the pieces of {name} do not make up the whole")
    return AssembledTensor(dtype, shape, pieces)


class _Budget:
    """Opens sections, of together no more bytes than the files have: none is read twice."""

    def __init__(self, open_member: Callable[[str], BinaryIO], nbytes: int) -> None:
        self._open_member, self._left = open_member, nbytes

    def section(self, name: str, start: int, nbytes: int) -> BinaryIO:
        self._left -= nbytes
        if self._left < 0:
            raise MalformedPickleError("its pieces are larger than its files")
        return cast(BinaryIO, Section(self._open_member(name), start, nbytes))


def _put(content: dict[str, Any], keys: Any, tensor: AssembledTensor) -> None:
    """Put a tensor into nested dictionaries."""
    for key in keys[:-1]:
        content = content.setdefault(key, {})
    content[keys[-1]] = tensor


def _state(record: Any, name: str) -> Mapping[str, Any]:
    """Return the fields of a record of the given class."""
    if isinstance(record, Record) and not record.name.startswith(_OWN):
        raise ForeignObjectError(record.name)
    if not isinstance(record, Record) or record.name.rpartition(".")[2] != name:
        raise MalformedPickleError(f"something else in place of a {name}")
    return _mapping(record.state)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise MalformedPickleError("something else in place of a dictionary")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in value):
        raise MalformedPickleError("sizes that are no whole numbers")
    return value
