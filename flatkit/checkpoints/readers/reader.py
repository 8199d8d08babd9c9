"""Open any checkpoint, by what is in it: its content with the tensors still in their files."""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from flatkit.checkpoints.readers.arrays import NPY, is_npz, read_npy, read_npz
from flatkit.checkpoints.readers.deepspeed import weights_file
from flatkit.checkpoints.readers.distributed import TABLE, read_distributed
from flatkit.checkpoints.readers.folders import (
    ADAPTERS,
    INDICES,
    SINGLES,
    adapter_config,
    config_of,
    member,
    no_checkpoint,
    read_json,
    weight_map,
)
from flatkit.checkpoints.readers.others import other_format
from flatkit.checkpoints.readers.safetensors_file import looks_like_safetensors, read_safetensors
from flatkit.checkpoints.readers.torch_file import PICKLES, ZIP, read_torch_file
from flatkit.errors import CheckpointError

_CHUNK = 1 << 20
_KNOWN = (ZIP, NPY, *PICKLES)


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is open.

    Attributes:
        path: as the caller gave it.
        format: in words.
        content: containers, numbers, and tensors that are read when asked.
        nbytes: of all its files.
        sha256: of the file; of a folder, of the lines `<sha256>  <name>` of the files in use.
        metadata: what the format says beside the tensors.
        adapter: the `adapter_config.json` of an adapter of PEFT.
    """

    path: str
    format: str
    content: Any
    nbytes: int
    sha256: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)

    def format_of(self, entry: str) -> str:
        """Return the format with what its content tells, e.g. `Lightning 2.4 (torch.save)`.

        Args:
            entry: the part that holds the weights.

        >>> Opened("a.pt", "torch.save", {}, 0, "").format_of("")
        'state dict (torch.save)'
        """
        content = self.content if isinstance(self.content, Mapping) else {}
        if "flatkit_checkpoint" in content:
            return f"flatkit {content['flatkit_checkpoint']}"
        if self.format != "torch.save":
            return self.format
        version = content.get("pytorch-lightning_version")
        if version is not None:
            return f"Lightning {str(version)[:20]} (torch.save)"
        return f"{'training checkpoint' if entry else 'state dict'} (torch.save)"


@contextmanager
def opened(path: str | Path) -> Generator[Opened, None, None]:
    """Open a file or folder; its tensors can be read until the block ends.

    Cost: one pass over the bytes for the digest, one more for the checksums of a zip archive.

    Raises:
        CheckpointError: one line that says why it cannot be read.
    """
    path = Path(path)
    _check_path(path)
    with ExitStack() as stack:
        try:
            if path.is_dir():
                yield _open_folder(path, _Files(path, stack))
            elif _is_json(path):
                yield _open_index(path, _Files(path.parent, stack))
            else:
                yield _open_file(path, _Files(path, stack))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def check_kind(path: str | Path) -> None:
    """Look whether a file or folder may be a checkpoint, by its first bytes; a folder is let pass.

    Raises:
        CheckpointError: it is none, or missing.

    >>> check_kind(__file__)
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: ... is not a file of torch.save, nor safetensors; ...
    """
    path = Path(path)
    _check_path(path)
    try:
        if not path.is_dir() and not _is_json(path):
            with path.open("rb") as file:
                start = file.read(32)
                if not looks_like_safetensors(start) and not start.startswith(_KNOWN):
                    _refuse(file, start, str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


class _Files:
    """The files of a checkpoint, each opened and hashed once."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._open: dict[str | None, BinaryIO] = {}
        self._digests: dict[str | None, str] = {}
        self.nbytes = 0

    def inside(self, folder: str) -> "_Files":
        """Return the files of a folder in this one."""
        return _Files(self._path / folder, self._stack)

    def open(self, name: str | None = None) -> BinaryIO:
        """Return a file of the folder by name, or the one file itself, at its start."""
        if name not in self._open:
            path = self._path if name is None else member(self._path, name)
            file = self._stack.enter_context(path.open("rb"))
            digest = hashlib.sha256()
            while block := file.read(_CHUNK):
                digest.update(block)
                self.nbytes += len(block)
            self._open[name], self._digests[name] = file, digest.hexdigest()
        self._open[name].seek(0)
        return self._open[name]

    @property
    def sha256(self) -> str:
        """The digest of all that was opened."""
        if None in self._digests:
            return self._digests[None]
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def _check_path(path: Path) -> None:
    try:
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise CheckpointError(f"cannot read {str(path)[:200]!r}: {error}") from error
    if not exists:
        raise CheckpointError(f"cannot read {path}: there is no such file")
    if path.is_dir():
        return
    if not is_file:
        raise CheckpointError(f"cannot read {path}: it is not a regular file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; was the writing of it interrupted?")


def _open_file(path: Path, files: _Files) -> Opened:
    file = files.open()
    # The first 32 bytes tell the formats apart.
    content, kind, metadata = _read(file, file.read(32), str(path))
    if path.name in ADAPTERS and (config := adapter_config(path.parent)):
        return _adapter(path, files, content, kind, config)
    return Opened(str(path), kind, content, files.nbytes, files.sha256, metadata)


def _adapter(
    path: Path, files: _Files, content: Any, kind: str, config: Mapping[str, Any]
) -> Opened:
    """Return an adapter of PEFT, with the few lines of its configuration that a reader wants."""
    known = ("peft_type", "base_model_name_or_path", "r", "lora_alpha")
    metadata = {key: config[key] for key in known if config.get(key) is not None}
    kind = f"PEFT adapter ({kind})"
    return Opened(str(path), kind, content, files.nbytes, files.sha256, metadata, config)


def _read(file: BinaryIO, start: bytes, path: str) -> tuple[Any, str, Mapping[str, Any]]:
    """Return content, format and metadata of one file."""
    # First of all: its length may begin with the bytes of any other format.
    if looks_like_safetensors(start):
        tensors, metadata = read_safetensors(file, path)
        return tensors, "safetensors", metadata
    if start.startswith(ZIP) and is_npz(file):
        return read_npz(file, path), "NumPy archive", {}
    if start.startswith(NPY):
        return read_npy(file, path), "NumPy array", {}
    if start.startswith((ZIP, *PICKLES)):
        return *read_torch_file(file, path), {}
    return _refuse(file, start, path)


def _refuse(file: BinaryIO, start: bytes, path: str) -> NoReturn:
    """Say what a file is that begins as no checkpoint does."""
    if start[8:9] == b"{":  # safetensors all the same, but of an impossible length
        read_safetensors(file, path)
    file.seek(257)  # where the header of a tar file names its format
    if file.read(5) == b"ustar":
        raise CheckpointError(
            f"{path} is a tar file, as torch wrote before 0.2, or an archive of files; unpack it, "
            "or load and save it once with torch"
        )
    if what := other_format(start, path):
        raise CheckpointError(f"{path} is {what}")
    raise CheckpointError(
        f"{path} is not a file of torch.save, nor safetensors; it starts with {start[:8]!r}"
    )


def _open_folder(path: Path, files: _Files) -> Opened:
    if (path / TABLE).exists():
        nbytes = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        content = read_distributed(str(path), files.open, nbytes)
        kind = "torch.distributed.checkpoint"
        return Opened(str(path), kind, content, files.nbytes, files.sha256)
    # Before single files: a shard alone looks like one.
    for index in [*INDICES, *_other_indices(path)]:
        if (path / index).exists():
            return _open_index(path / index, files, str(path))
    for single in _singles(path):
        file = files.open(single)
        content, kind, metadata = _read(file, file.read(32), str(path / single))
        if single in ADAPTERS and (adapter := adapter_config(path)):
            return _adapter(path, files, content, kind, adapter)
        config = config_of(path)
        return Opened(
            str(path),
            _folder_format(kind, config),
            content,
            files.nbytes,
            files.sha256,
            {**metadata, **config},
        )
    if (weights := weights_file(path)) is not None:
        file = files.open(weights)
        content, _, _ = _read(file, file.read(32), str(path / weights))
        return Opened(str(path), "DeepSpeed", content, files.nbytes, files.sha256)
    inside = [table.parent for table in sorted(path.glob(f"*/{TABLE}"))]
    if len(inside) == 1:  # as accelerate saves FSDP: the optimizer has a folder of its own
        return replace(_open_folder(inside[0], files.inside(inside[0].name)), path=str(path))
    raise no_checkpoint(path)


def _singles(path: Path) -> list[str]:
    """Return the file of weights of a folder of one model."""
    found = [name for name in (*SINGLES, *ADAPTERS) if (path / name).exists()]
    others = sorted(item.name for item in path.glob("*.safetensors"))
    return found or (others if len(others) == 1 else [])


def _other_indices(path: Path) -> list[str]:
    """Return the index of shards of another name, as `diffusion_pytorch_model...`, if it is one."""
    found = [item.name for item in path.glob("*.index.json")]
    return found if len(found) == 1 else []


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(32)
    return start.lstrip().startswith(b"{") and not looks_like_safetensors(start)


def _open_index(index: Path, files: _Files, path: str = "") -> Opened:
    """Open the shards that an index beside them names."""
    folder, path = index.parent, path or str(index)
    names = weight_map(read_json(files.open(index.name), index), index)
    tensors: dict[str, Any] = {}
    shards: dict[str, Mapping[str, Any]] = {}
    kind = ""
    for name, shard in names.items():
        if shard not in shards:
            file = files.open(shard)
            content, kind, _ = _read(file, file.read(32), str(folder / shard))
            if not isinstance(content, Mapping):
                raise CheckpointError(f"{folder / shard} holds no tensors by name")
            shards[shard] = content
        if name not in shards[shard]:
            raise CheckpointError(
                f"{path} is not whole: its index says that {shard} holds {name}, which it does not"
            )
        tensors[name] = shards[shard][name]
    config = config_of(folder)
    kind = _folder_format(f"{kind}, {len(shards)} shards", config)
    return Opened(path, kind, tensors, files.nbytes, files.sha256, config)


def _folder_format(kind: str, config: Mapping[str, Any]) -> str:
    return f"Hugging Face folder ({kind})" if config else kind
