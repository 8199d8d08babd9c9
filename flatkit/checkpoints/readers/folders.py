"""Folders of checkpoints: Hugging Face's, sharded ones, those of torch.distributed.checkpoint."""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from flatkit.errors import CheckpointError

_MAX_JSON = 2**26  # bytes; an index of half a million tensors fits
_MOST_LISTED = 10_000  # a folder of images is not searched to its end
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin")


def member(folder: Path, name: str) -> Path:
    """Return a file of a folder, if it lies in it, also after all links are followed.

    The one exception is the cache of the Hugging Face hub, whose `snapshots/<revision>` holds
    links into `blobs` beside it.

    Raises:
        CheckpointError: the name or a link leads out, or there is no such regular file.

    >>> member(Path("/tmp"), "../etc/passwd")
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: /tmp is refused: it names '../etc/passwd', outside of it
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{folder} is refused: it names {name[:200]!r}, outside of it")
    path, home = folder / name, folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is refused: {name} is a link to itself") from error
    if not target.exists() and not path.is_symlink():
        raise CheckpointError(f"{folder} is not whole: {name} is missing; copy or load it again")
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{folder} is refused: {name} is a link to {target}, outside of it")
    if not target.is_file():
        raise CheckpointError(f"{folder} is damaged: {name} is not a regular file")
    return target


def stem(path: Path) -> str:
    """Return the name of a file without its suffix, and that of `lr0.1` or `opt-1.3b` whole.

    >>> stem(Path("gam/epoch-0.5.pt")), stem(Path("runs/lr0.1")), stem(Path("opt-1.3b"))
    ('epoch-0.5', 'lr0.1', 'opt-1.3b')
    """
    # What follows a dot and begins with a digit is the rest of a number.
    return path.name if path.suffix[1:2].isdigit() else path.stem


def read_json(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        CheckpointError: it is none, or too large to be one of a checkpoint.
    """
    text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise CheckpointError(f"{path} is too large for what it should be")
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is no JSON object")
    return content


def weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return tensor name -> file name of an index of shards.

    Raises:
        CheckpointError: it is no such index.
    """
    if "schema" in index and ("results" in index or "comparison" in index):
        raise CheckpointError(
            f"{path} is a report of flatkit, not a checkpoint; "
            "flatkit.results.load_results reads it"
        )
    found = index.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(
            f"{path} is JSON, but no index of shards: it has no weight_map; name the folder "
            "or the file of weights"
        )
    if not found:
        raise CheckpointError(f"{path} names no tensors")
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """Return `model_type` and `architectures` of a folder's `config.json`, if it has one."""
    if not (folder / "config.json").exists():
        return {}
    with member(folder, "config.json").open("rb") as file:
        config = read_json(file, folder / "config.json")
    return {key: config[key] for key in ("model_type", "architectures") if key in config}


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return the `adapter_config.json` of a folder of PEFT, if it has one."""
    name = "adapter_config.json"
    if not (folder / name).exists():
        return {}
    with member(folder, name).open("rb") as file:
        return read_json(file, folder / name)


def no_checkpoint(folder: Path) -> CheckpointError:
    """Return the refusal of a folder that holds none, with the files that may be meant."""
    # In the folder itself, else one below, as of `runs` with a folder a run.
    files = _weights(folder, "*") or _weights(folder, "*/*")
    if files:
        more = f" or one of {len(files) - 1} more" if len(files) > 1 else ""
        first = next((path for path in files if path.name == "ckpt.pt"), files[0])
        hint = f"did you mean {first}{more}?"
    else:
        hint = "name a file in it"
    return CheckpointError(f"{folder} is a folder, not a checkpoint; {hint}")


def _weights(folder: Path, pattern: str) -> list[Path]:
    """Return files that may be checkpoints, of the first that the folder lists."""
    some = islice(folder.glob(pattern), _MOST_LISTED)
    return sorted(path for path in some if path.suffix in _SUFFIXES)
