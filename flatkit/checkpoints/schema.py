"""What a flatkit checkpoint must hold, and what a file that is none looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flatkit.errors import CheckpointError
from flatkit.version import __version__

_ENTRIES: dict[str, type] = {
    "flatkit": str,
    "model": dict,
    "data": dict,
    "loss": dict,
    "state_dict": dict,
    "epoch": int,
    "config": dict,
    "history": list,
    "training_state": dict,
}
_SPEC: dict[str, type] = {"name": str, "kwargs": dict}


def check_content(content: Any, *, path: str | Path, newest: int) -> None:
    """Refuse what is not the content of a checkpoint, in one line.

    Args:
        content: what the file holds.
        path: for the message.
        newest: the highest number of the format that can be read.

    Raises:
        CheckpointError: another kind of file, a newer format, or an entry that is missing or
            malformed.

    >>> check_content({"weight": Tensor([1.0])}, path="net.pt", newest=1)
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: net.pt is not a flatkit checkpoint: it looks like a plain
    state dict (weight); flatkit ... reads the files of ...
    """
    if not isinstance(content, Mapping) or "flatkit_checkpoint" not in content:
        raise CheckpointError(
            f"{path} is not a flatkit checkpoint: it looks like {_looks_like(content)}; "
            f"flatkit {__version__} reads the files of `flatkit train` and flatkit.checkpoints.save"
        )
    _check_format(content, path, newest)
    _check_entries(content, _ENTRIES, str(path))
    for key in ("model", "data", "loss"):
        _check_entries(content[key], _SPEC, f"{path}, {key}")
    _check_entries(content["data"], {"sha256": str}, f"{path}, data")
    for key, value in content["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is malformed: state_dict[{key!r}] is not a tensor")
    if not all(isinstance(row, Mapping) for row in content["history"]):
        raise CheckpointError(f"{path} is malformed: a row of its history is not a dictionary")


def _check_format(content: Mapping[str, Any], path: str | Path, newest: int) -> None:
    number = content["flatkit_checkpoint"]
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"{path} is malformed: its format number is {number!r}")
    if number > newest:
        raise CheckpointError(
            f"{path} has format {number}, written by flatkit {content.get('flatkit', 'unknown')}; "
            f"flatkit {__version__} reads formats up to {newest}: upgrade flatkit"
        )


def _check_entries(content: Mapping[str, Any], entries: Mapping[str, type], where: str) -> None:
    missing = [key for key in entries if key not in content]
    if missing:
        raise CheckpointError(f"{where} is malformed: {', '.join(missing)} missing")
    for key, kind in entries.items():
        if not isinstance(content[key], kind):
            raise CheckpointError(
                f"{where} is malformed: {key} must be a {kind.__name__}, "
                f"got {type(content[key]).__name__}"
            )


def _looks_like(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a lone {type(content).__name__}"
    keys = ", ".join(str(key) for key in list(content)[:4]) + (", ..." if len(content) > 4 else "")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"a plain state dict ({keys})"
    if "pytorch-lightning_version" in content:
        return "a checkpoint of PyTorch Lightning"
    if any(key in content for key in ("state_dict", "model_state_dict", "model")):
        return f"a checkpoint of another program ({keys})"
    return f"a dictionary of {keys}" if content else "an empty dictionary"
