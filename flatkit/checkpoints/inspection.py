"""What a checkpoint of any format holds, tensor by tensor, in a few megabytes and without torch."""

from pathlib import Path
from typing import Any

from flatkit.checkpoints.readers.entries import weights_of
from flatkit.checkpoints.readers.reader import opened


def inspect(path: str | Path, *, entry: str | None = None) -> dict[str, Any]:
    """Return what a file or folder is and holds, ready for JSON.

    Every tensor is scanned for values that are NaN or infinite, in blocks of 4 MB.

    Args:
        path: of a file or folder.
        entry: the part that holds the weights, where there are several.

    Raises:
        CheckpointError: it cannot be read, or holds no weights.
        InvalidArgumentError: there is no such entry.

    >>> import tempfile
    >>> import torch
    >>> file = Path(tempfile.mkdtemp()) / "net.pth"
    >>> torch.save({"w": torch.tensor([1.0, float("nan")])}, file)
    >>> inspect(file)["tensors"]
    [{'name': 'w', 'shape': [2], 'dtype': 'float32', 'bytes': 8, 'non_finite': 1}]
    """
    with opened(path) as file:
        weights = weights_of(file.content, file.path, entry, kind=file.format)
        tensors: list[dict[str, Any]] = [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "bytes": tensor.nbytes,
                "non_finite": tensor.count_non_finite(),
            }
            for name, tensor in weights.tensors.items()
        ]
        return {
            "path": file.path,
            "sha256": file.sha256,
            "format": file.format_of(weights.entry),
            "bytes": file.nbytes,
            "entry": weights.entry,
            "other_entries": list(weights.others),
            "metadata": dict(file.metadata),
            "beside": dict(weights.beside),
            "numbers": sum(tensor.numel for tensor in weights.tensors.values()),
            "non_finite": sum(tensor["non_finite"] for tensor in tensors),
            "unread": dict(weights.unread),
            "needs": ["model", "loss", "data"],
            "tensors": tensors,
        }
