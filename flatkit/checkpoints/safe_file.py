"""Read a file of torch.save without running anything in it, and say in one line why not.

`torch.load(weights_only=True)` refuses every object but tensors and plain containers. It does not
verify the checksums that its archive holds, so a flipped bit inside a weight would go unnoticed:
they are verified here. Everything is read from one open file, so what is hashed is what is loaded.
"""

import hashlib
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flatkit.checkpoints.pickle_scan import foreign_globals
from flatkit.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_CHUNK = 1 << 20


def read_safely(path: str | Path) -> tuple[Any, str]:
    """Return what a file of torch.save holds, on the CPU, and the sha256 of the file.

    Raises:
        CheckpointError: the file is missing, a folder, empty, truncated, damaged, of another
            kind, or holds objects whose loading would run code.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "ones.pt"
    >>> torch.save({"w": torch.ones(2)}, file)
    >>> read_safely(file)[0]
    {'w': tensor([1., 1.])}
    """
    path = Path(path)
    _check_path(path)
    try:
        with path.open("rb") as stream:
            sha256 = _sha256(stream)
            start = stream.read(16)
            stream.seek(0)
            if start.startswith(_ZIP):
                _check_archive(path, stream)
            elif not start.startswith(_PICKLE):
                raise CheckpointError(f"{path} is not a file of torch.save{_looks_like(start)}")
            return _load(path, stream), sha256
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _check_path(path: Path) -> None:
    if path.is_dir():
        inside = path / "ckpt.pt"
        hint = f"did you mean {inside}?" if inside.is_file() else "name a file in it"
        raise CheckpointError(f"{path} is a folder, not a checkpoint; {hint}")
    if not path.exists():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is not a regular file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; was the writing of it interrupted?")


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    stream.seek(0)
    return digest.hexdigest()


def _check_archive(path: Path, stream: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names:
                raise CheckpointError(
                    f"{path} is refused: a TorchScript archive holds code; save a state_dict"
                )
            if "data.pkl" not in names:
                raise CheckpointError(f"{path} is a zip archive, but not one of torch.save")
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); copy it again") from error
    except (zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong")
    stream.seek(0)


def _load(path: Path, stream: BinaryIO) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: success or failure says it all
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen types here, KeyError among them
        stream.seek(0)
        found = foreign_globals(stream)
        if found:
            raise CheckpointError(
                f"{path} is refused: it contains whole objects such as {found[0]}, and loading "
                "them would run code from the file; save a state_dict instead"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a file of torch.save: it is damaged, or a pickle that "
            f"torch did not write ({type(error).__name__})"
        ) from error


def _looks_like(start: bytes) -> str:
    if len(start) > 8 and start[8:9] == b"{":
        return "; it looks like safetensors, which this version of flatkit does not read"
    return f"; it starts with {start[:8]!r}"
