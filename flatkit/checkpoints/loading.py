"""`load`: a checkpoint of any format, with its tensors in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.native import check_content
from flatkit.checkpoints.readers.entries import weights_of
from flatkit.checkpoints.readers.foreign import refusal_of_object
from flatkit.checkpoints.readers.reader import Opened, opened
from flatkit.checkpoints.readers.stored import AnyTensor, AssembledTensor, StoredTensor
from flatkit.errors import CheckpointError
from flatkit.files.plain_pickle import Record


def load(path: str | Path, *, entry: str | None = None) -> Checkpoint:
    """Read a checkpoint without executing anything in it.

    It may be a file of `flatkit train`, a state dict or a training checkpoint saved by
    `torch.save`, one of Lightning, safetensors (also in shards), arrays of NumPy in a pickle or a
    `.npz`, a folder of Hugging Face, of PEFT, of DeepSpeed or of `torch.distributed.checkpoint`.
    Which of them it is, is seen from its content. Objects of other programs in it stay inert.

    Tensors that are NaN or infinite load, so that they can be looked at; `Checkpoint.task` and
    `Checkpoint.load_into` refuse them.

    Args:
        path: of a file or folder.
        entry: the part that holds the weights, where there are several, e.g. `ema`.

    Raises:
        CheckpointError: one line that says why it cannot be read.
        InvalidArgumentError: there is no such entry.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "weights.pth"
    >>> torch.save({"epoch": 3, "model": torch.nn.Linear(2, 1).state_dict()}, file)
    >>> checkpoint = load(file)
    >>> checkpoint.format, checkpoint.entry, sorted(checkpoint.state_dict)
    ('training checkpoint (torch.save)', 'model', ['bias', 'weight'])
    """
    with opened(path) as file:
        content = file.content
        # By what it holds and not by its name, which anybody may change.
        if isinstance(content, Mapping) and "flatkit_checkpoint" in content:
            return _native(file, content)
        weights = weights_of(content, file.path, entry, kind=file.format)
        return Checkpoint(
            path=file.path,
            sha256=file.sha256,
            format=file.format_of(weights.entry),
            state_dict=_in_memory(dict(weights.tensors)),
            entry=weights.entry,
            others=weights.others,
            beside=weights.beside,
            unread=weights.unread,
            versions=weights.versions,
            extra=_in_memory(weights.extra),
            adapter=file.adapter,
        )


def _native(file: Opened, content: Mapping[str, Any]) -> Checkpoint:
    whole = next((pair for pair in content.items() if isinstance(pair[1], Record)), None)
    if whole is not None:  # flatkit itself never writes any
        raise CheckpointError(refusal_of_object(file.path, whole[1], str(whole[0]), file.format))
    content = _in_memory(content)
    check_content(content, path=file.path)
    return Checkpoint(
        path=file.path,
        sha256=file.sha256,
        format=f"flatkit {content['flatkit_checkpoint']}",
        state_dict=content["state_dict"],
        entry="state_dict",
        version=content["flatkit"],
        model=content["model"],
        data=content["data"],
        loss=content["loss"],
        task_file=content.get("task_file", {}),
        epoch=content["epoch"],
        config=content["config"],
        history=content["history"],
        training_state=content["training_state"],
    )


def _in_memory(content: Any) -> Any:
    """Return the content with torch tensors in place of stored ones."""
    if isinstance(content, (StoredTensor, AssembledTensor)):
        return _tensor(content)
    if isinstance(content, Mapping):
        return {key: _in_memory(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_in_memory(value) for value in content)
    return content


def _tensor(stored: AnyTensor) -> Tensor:
    dtype = getattr(torch, stored.dtype, None)
    if dtype is None:
        raise CheckpointError(f"this version of torch has no {stored.dtype}")
    if not stored.numel:
        return torch.empty(stored.shape, dtype=dtype)
    # By way of bytes: NumPy has no bfloat16 and no float8.
    return torch.from_numpy(stored.array()).view(dtype).view(stored.shape)
