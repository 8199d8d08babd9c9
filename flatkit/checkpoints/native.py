"""flatkit's own checkpoint: tensors, and names and arguments that rebuild the rest. Never code.

The file is a torch.save of one dictionary:

| key | what |
|---|---|
| `flatkit_checkpoint` | the number of this format, 1 |
| `flatkit` | version of the package that wrote it |
| `model`, `loss` | `{"name", "kwargs"}` in `flatkit.models.MODELS`, `flatkit.objective.LOSSES` |
| `data` | the same in `flatkit.data.DATASETS`, and the `sha256` of the tensors |
| `state_dict` | of the model |
| `epoch`, `config`, `history` | epochs done, settings, one row an epoch |
| `training_state` | optimizer and random states, with which training goes on bit for bit |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatkit.checkpoints.schema import check_content
from flatkit.files import write_atomically
from flatkit.registry import plain
from flatkit.version import __version__

FORMAT = 1


def save(
    path: str | Path,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    loss: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
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
        "flatkit_checkpoint": FORMAT,
        "flatkit": __version__,
        "model": plain(model, "model"),
        "data": plain(data, "data"),
        "loss": plain(loss, "loss"),
        "state_dict": dict(state_dict),
        "epoch": epoch,
        "config": plain(config or {}, "config"),
        "history": plain(history, "history"),
        "training_state": dict(training_state or {}),
    }
    check_content(content, path=path, newest=FORMAT)
    return write_atomically(path, lambda stream: torch.save(content, stream))
