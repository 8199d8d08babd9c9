"""What a flatkit checkpoint must hold."""

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


def check_content(content: Mapping[str, Any], *, path: str | Path, newest: int) -> None:
    """Refuse what is not the content of a flatkit checkpoint, in one line.

    Args:
        content: what the file holds, with `flatkit_checkpoint` among its keys.
        path: for the message.
        newest: the highest number of the format that can be read.

    Raises:
        CheckpointError: a newer format, or an entry that is missing or malformed.

    >>> check_content({"flatkit_checkpoint": 2, "flatkit": "9.0"}, path="a.pt", newest=1)
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: a.pt has format 2, written by flatkit 9.0; flatkit ... reads
    formats up to 1: upgrade flatkit
    """
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
