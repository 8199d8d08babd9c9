"""Put a checkpoint into a model in parts on several ranks: each reads what it holds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flatkit.checkpoints.readers.boxes import read_box
from flatkit.checkpoints.readers.entries import weights_of
from flatkit.checkpoints.readers.reader import opened
from flatkit.checkpoints.readers.stored import AnyTensor
from flatkit.devices.joining import current
from flatkit.errors import CheckpointError, NonFiniteWeightsError
from flatkit.objective.model.sharded import own_box

_NAMED = 3


def load_parts(path: str | Path, model: nn.Module, *, entry: str | None = None) -> None:
    """Put the weights of a checkpoint into a model of `fully_shard` or of DTensors, in place.

    Each rank reads the parts that it holds, and no tensor is whole on any of them. The files are
    those of any format that `load` reads, a folder of `torch.distributed.checkpoint` most of all,
    whatever ranks saved it; its names must be those of the model. Nothing in it is executed. All
    ranks call it, inside of `flatkit.devices.joining.joined`; where one fails all raise, and the
    model is as it was. It may be a plain model too.

    Cost: the files are read once for their digest, and the parts a second time.

    Args:
        path: of a file or folder that all ranks see.
        model: changed in place.
        entry: the part that holds the weights, where there are several, e.g. `ema`.

    Raises:
        CheckpointError: it cannot be read, or names, shapes or precisions do not fit.
        NonFiniteWeightsError: a weight is NaN or infinite.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "weights.pt"
    >>> torch.save(nn.Linear(2, 1).state_dict(), file)
    >>> model = nn.Linear(2, 1)
    >>> load_parts(file, model)
    >>> torch.equal(torch.load(file, weights_only=True)["weight"], model.weight)
    True
    """
    with current().adding():  # where one rank raises all do, before anything is changed
        targets = dict(model.state_dict())
        with opened(path) as file:
            stored = weights_of(file.content, file.path, entry, kind=file.format).tensors
            _check_names(file.path, stored, targets)
            parts = {name: _part(name, stored[name], targets[name]) for name in targets}
    # Only now, when all ranks have all of their parts.
    with torch.no_grad():
        for local, found in parts.values():
            local.copy_(found)


def _check_names(path: str, stored: Mapping[str, AnyTensor], targets: Mapping[str, Tensor]) -> None:
    wanting = {
        "the file lacks": sorted(set(targets) - set(stored)),
        "the model lacks": sorted(set(stored) - set(targets)),
    }
    said: list[str] = []
    for words, names in wanting.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        said += [f"{words} {', '.join(names[:_NAMED])}{more}"] if names else []
    if said:
        raise CheckpointError(f"{path} and the model do not fit: {'; '.join(said)}")


def _part(name: str, stored: AnyTensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return what this rank holds of a tensor of the model, and what the file has for it."""
    if tuple(stored.shape) != tuple(target.shape):
        raise CheckpointError(
            f"{name} has the shape {list(stored.shape)} in the file, {list(target.shape)} in the "
            "model"
        )
    local, offsets = own_box(target)
    dtype = getattr(torch, stored.dtype, None)
    if dtype is None or torch.promote_types(dtype, local.dtype) != local.dtype:
        raise CheckpointError(
            f"{name} is {stored.dtype} in the file, which {local.dtype} of the model does not "
            "hold; convert the model before it is sharded"
        )
    found = torch.empty_like(local)
    if found.numel():
        data = torch.from_numpy(read_box(stored, offsets, local.shape))
        found.copy_(data.view(dtype).view(local.shape))
    if not found.isfinite().all():
        raise NonFiniteWeightsError(f"{name} has NaN or infinite entries")
    return local, found
