"""Files of `torch.save`, zip archives and the older plain streams, without torch and without code.

`torch.load` reads a whole file at once and does not verify the checksums that its archive holds.
Here the tensors stay in the file until they are asked for, and every claim is checked before it is
believed: checksums are right, extents lie inside the file, nothing is compressed or overlaps.
"""

import struct
import zipfile
from collections.abc import Iterable, Mapping
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO, cast

from flatkit.checkpoints.readers.archives import opened
from flatkit.checkpoints.readers.others import OF_JOBLIB, archive_in_words, joblib_in_words
from flatkit.checkpoints.readers.stored import StoredTensor
from flatkit.checkpoints.readers.torch_words import (
    Storage,
    is_storage,
    resolve,
    storage_of,
    vocabulary,
)
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import MAX_BYTES, MalformedPickleError, Record, read_pickle

ZIP = b"PK\x03\x04"
# Of protocols 2 to 5, and how older ones begin dictionaries.
PICKLES = (b"\x80", b"(dp", b"ccollections\n", b"ccopy_reg\n", b"}q\x00")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch/serialization.py
_HEAD = 2**20  # bytes among which the first array of a file of joblib is
_LOCAL_HEADER = 30  # bytes before the name of a record (the zip format, APPNOTE 4.3.7)


def read_torch_file(file: BinaryIO, path: str) -> tuple[Any, str]:
    """Return what a file of `torch.save` or a pickle holds, and which of them it is.

    It holds containers, numbers, `StoredTensor`s, and inert `Record`s of everything else.

    Args:
        file: open at any position; the tensors refer to it.
        path: for the messages.

    Raises:
        CheckpointError: truncated, damaged, compressed, of another byte order or program.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    try:
        start = file.read(len(ZIP))
        if start == ZIP:
            return _read_archive(file, path, size), "torch.save"
        return _read_stream(file, path, size)
    except MalformedPickleError as error:
        file.seek(0)
        if OF_JOBLIB in file.read(_HEAD):
            raise CheckpointError(f"{path} is {joblib_in_words(path)}") from error
        raise CheckpointError(
            f"{path} is damaged, or a pickle that torch did not write: {error}"
        ) from error


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

    def persistent(identity: Any) -> Any:
        if not is_storage(identity):
            return _of_another_program(identity)
        storage, key = storage_of(identity)
        start, nbytes = extents.get(f"{folder}/data/{key}", (0, -1))
        if storage.kind:  # of codes, of which several may share a byte; it is never read
            return storage
        if nbytes != storage.nbytes:  # else a small file could claim a huge tensor
            raise MalformedPickleError(
                f"storage {key} is said to have {storage.nbytes} bytes and has {max(nbytes, 0)}"
            )
        storage.start = start
        return storage

    content = read_pickle(record("data.pkl"), vocabulary(persistent))
    return resolve(content, file, size)


def _extents(file: BinaryIO, path: str, size: int) -> Mapping[str, tuple[int, int]]:
    """Return name -> (first byte, bytes) of the records of an archive, all of them checked."""
    found: dict[str, tuple[int, int]] = {}
    with opened(file, path) as archive:
        records = archive.infolist()
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise CheckpointError(
                f"{path} is refused: a TorchScript archive holds code; save a state_dict. "
                "Where you trust the file, convert it once: import torch; "
                f"torch.save(torch.jit.load({path!r}).state_dict(), 'weights.pt')"
            )
        if what := archive_in_words([record.filename for record in records]):
            raise CheckpointError(f"{path} is {what}")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise CheckpointError(
                    f"{path} is refused: {record.filename[:80]} is compressed or encrypted, "
                    "which torch.save never does; it may unpack into something huge"
                )
            # The local header has an extra field of its own: torch aligns the data with it.
            file.seek(record.header_offset)
            # Of the local header, not of the directory, whose extra field may be of another length.
            names, extra = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))
            start = record.header_offset + _LOCAL_HEADER + names + extra
            found[record.filename] = (start, record.file_size)
        _check_extents(found.values(), size)
        damaged = archive.testzip()  # torch.load does not look at the checksums
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


def _read_stream(file: BinaryIO, path: str, size: int) -> tuple[Any, str]:
    """Read a pickle, or the format before torch 1.6: several of them, then the storages."""
    file.seek(0)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        if not is_storage(identity):
            return _of_another_program(identity)
        storage, key = storage_of(identity)
        if not storage.dtype:  # then the storages after it cannot be found
            raise MalformedPickleError(f"a storage of the unknown kind {storage.kind}")
        return storages.setdefault(key, storage)

    # Five pickles: magic, protocol, machine, content and keys of the storages, whose bytes follow.
    words = vocabulary(persistent, _storage_in_bytes)
    first = read_pickle(cast(BinaryIO, _Limited(file, size)), words)
    if first != _MAGIC:  # arrays of NumPy lie inside the pickle, which takes no more than its size
        return resolve(first, file, size), "pickle"
    limited = cast(BinaryIO, _Limited(file, MAX_BYTES))
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
        # Before torch 1.6 each storage began with the number of its entries, int64.
        head = file.read(8)
        if len(head) < 8 or struct.unpack("<q", head)[0] != storage.numel:
            raise CheckpointError(f"{path} is truncated or damaged: storage {key} is not whole")
        storage.start = at + 8
        at = storage.start + storage.nbytes
        if at > size:
            raise CheckpointError(f"{path} is truncated: it ends within storage {key}")
    return resolve(content, file, size), "torch.save"


def _storage_in_bytes(data: bytes) -> Any:
    """Return the storage in a file of torch.save before 1.6, as plain pickles hold tensors."""
    content, _ = _read_stream(BytesIO(data), "a storage in a pickle", len(data))
    if not isinstance(content, StoredTensor):
        raise MalformedPickleError("a storage that is none")
    return Storage(content.dtype, content.numel, start=content.start, file=content.file)


class _Limited:
    """A stream that pretends to end after so many bytes, so that a pickle cannot be endless."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self._file, self._left = file, nbytes

    def read(self, count: int) -> bytes:
        return self._spent(self._file.read(max(0, min(count, self._left))))

    def readline(self) -> bytes:
        return self._spent(self._file.readline(self._left))

    def tell(self) -> int:
        return self._file.tell()

    def _spent(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def _of_another_program(identity: Any) -> Any:
    """Return what a persistent id of no storage stands for, not made."""
    if isinstance(identity, tuple) and identity[:1] == ("module",) and len(identity) > 1:
        return identity[1]  # a class, with the text of its source, as torch before 1.6 wrote it
    return Record("a persistent id", ())
