"""flatkit's own checkpoint: tensors, and names and arguments that rebuild the rest. Never code.

The file is a torch.save of one dictionary:

| key | what |
|---|---|
| `flatkit_checkpoint` | the number of this format: 2 if a task file made the rest, else 1 |
| `flatkit` | version of the package that wrote it |
| `model`, `loss` | `{"name", "kwargs"}` in `flatkit.models.MODELS`, `flatkit.objective.LOSSES` |
| `data` | the same in `flatkit.data.DATASETS`, and the `sha256` of the tensors |
| `task_file` | in place of these three, all empty then: `function` (`FILE.py:FUNCTION`, never run \
by reading this), `sha256` of the file, `data_sha256` of the samples, `changes` of these |
| `state_dict` | of the model |
| `epoch`, `config`, `history` | epochs done, settings, one row an epoch |
| `training_state` | optimizer and random states, with which training goes on bit for bit |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatkit.errors import CheckpointError
from flatkit.files.atomic import write_atomically
from flatkit.registry import plain
from flatkit.version import __version__

FORMAT = 2
_WITHOUT_TASK_FILE = 1
"""The format that former versions read too."""

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
_TASK_FILE: dict[str, type] = {
    "function": str,
    "sha256": str,
    "data_sha256": str,
    "changes": dict,
}


def save(
    path: str | Path,
    *,
    state_dict: Mapping[str, Tensor],
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    loss: Mapping[str, Any] | None = None,
    task_file: Mapping[str, Any] | None = None,
    epoch: int = 0,
    config: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    training_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all; the arguments are the attributes of `Checkpoint`.

    Raises:
        OutputError: the file cannot be written.
        InvalidArgumentError: a setting that is not plain data.
        CheckpointError: an entry without which the file could not be loaded is missing.
    """
    content = {
        # The lowest that holds it, so that older versions read what they can.
        "flatkit_checkpoint": FORMAT if task_file else _WITHOUT_TASK_FILE,
        "flatkit": __version__,
        "model": plain(model or {}, "model"),
        "data": plain(data or {}, "data"),
        "loss": plain(loss or {}, "loss"),
        **({"task_file": plain(task_file, "task_file")} if task_file else {}),
        "state_dict": dict(state_dict),
        "epoch": epoch,
        "config": plain(config or {}, "config"),
        "history": plain(history, "history"),
        "training_state": dict(training_state or {}),
    }
    check_content(content, path=path)
    return write_atomically(path, lambda stream: torch.save(content, stream))


def check_content(content: Mapping[str, Any], *, path: str | Path) -> None:
    """Refuse what is not the content of a flatkit checkpoint, in one line.

    Args:
        content: what the file holds, with `flatkit_checkpoint` among its keys.
        path: for the message.

    Raises:
        CheckpointError: a newer format, or an entry that is missing or malformed.

    >>> check_content({"flatkit_checkpoint": 9, "flatkit": "9.0"}, path="a.pt")
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: a.pt has format 9, written by flatkit 9.0; flatkit ... reads
    formats up to 2: upgrade flatkit
    """
    _check_format(content, path)
    _check_entries(content, _ENTRIES, str(path))
    if "task_file" in content:
        _check_entries(content, {"task_file": dict}, str(path))
        _check_entries(content["task_file"], _TASK_FILE, f"{path}, task_file")
    else:
        for key in ("model", "data", "loss"):
            _check_entries(content[key], _SPEC, f"{path}, {key}")
        _check_entries(content["data"], {"sha256": str}, f"{path}, data")
    for key, value in content["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is malformed: state_dict[{key!r}] is not a tensor")
        if value.layout is not torch.strided:
            raise CheckpointError(
                f"{path} cannot hold {key}, a sparse tensor: make it dense, or, of a buffer that "
                "the code of the model makes anew, register_buffer(name, tensor, persistent=False)"
            )
    if not all(isinstance(row, Mapping) for row in content["history"]):
        raise CheckpointError(f"{path} is malformed: a row of its history is not a dictionary")


def _check_format(content: Mapping[str, Any], path: str | Path) -> None:
    number = content["flatkit_checkpoint"]
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"{path} is malformed: its format number is {number!r}")
    if number > FORMAT:
        raise CheckpointError(
            f"{path} has format {number}, written by flatkit {content.get('flatkit', 'unknown')}; "
            f"flatkit {__version__} reads formats up to {FORMAT}: upgrade flatkit"
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
