"""Batches as they come from a data set: how many samples they hold, what is what in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from flatkit.errors import InvalidArgumentError
from flatkit.objective.pytree import tensors_in

LABELS = ("labels", "label", "targets", "target", "y")
"""Entries of a batch that are its targets."""
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights")
"""Entries of a batch that say how much each of its samples counts."""


def counted(batch: Any, size: int | None) -> int:
    """Return how many samples a batch holds, as far as it says so.

    Args:
        batch: one that cannot be cut.
        size: how many items it was made of, if known.

    Raises:
        InvalidArgumentError: there is no tensor in it, or nothing says how many samples.

    >>> import torch
    >>> counted([torch.ones(3), torch.ones(5)], 2)
    2
    """
    if not tensors_in(batch):
        raise InvalidArgumentError(
            "a batch must be tensors, or dictionaries and tuples of them, got "
            f"{type(batch).__name__} without any tensor"
        )
    said = (getattr(batch, name, None) for name in ("num_graphs", "batch_size"))
    # What the loader counted before what the batch says
    # of itself, as by graphs of PyTorch Geometric.
    found = [n for n in (size, *said) if isinstance(n, int) and n > 0]
    if found:
        return found[0]
    targets = divided(batch)[1]
    if isinstance(targets, (Tensor, Sequence)) and not isinstance(targets, str) and len(targets):
        return len(targets)
    raise InvalidArgumentError(
        f"how many samples a batch {type(batch).__name__} holds is not known; give a DataLoader "
        "over a data set of samples, or batches with an attribute `batch_size`"
    )


def divided(batch: Any) -> tuple[Any, Any]:
    """Return what goes into the model and what the loss holds it against, as is usual.

    >>> divided({"x": 1, "label": 2}), divided((1, 2, 3))
    (({'x': 1, 'label': 2}, 2), ((1, 2), 3))
    """
    # A packed sequence is a named tuple, and one input all the same.
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        if len(batch) == 1:
            return divided(batch[0])
        *first, targets = batch
        return first[0] if len(first) == 1 else tuple(first), targets
    return batch, labels_in(batch)


def inputs_in(batch: Any) -> Any:
    """Return what usually goes into the model."""
    return divided(batch)[0]


def targets_in(batch: Any) -> Any:
    """Return what the loss usually takes."""
    return divided(batch)[1]


def labels_in(batch: Any) -> Any:
    """Return the targets that a batch names, or the batch.

    >>> labels_in({"x": 1, "label": 2}), labels_in({"x": 1})
    (2, {'x': 1})
    """
    if isinstance(batch, (Tensor, list, tuple)):
        return batch
    if isinstance(batch, Mapping):
        found = [batch[key] for key in LABELS if key in batch]
    else:
        found = [getattr(batch, key, None) for key in LABELS]
        found = [part for part in found if isinstance(part, Tensor)]
    # Of several such entries nobody knows which one the loss takes: it gets the whole batch.
    return found[0] if len(found) == 1 else batch


def weights_of(batch: Any) -> str:
    """Return the name of the entry of a batch that weights its samples; empty if there is none.

    >>> import torch
    >>> weights_of({"x": torch.ones(2), "weight": torch.ones(2)}), weights_of({"x": 1})
    ('weight', '')
    """
    if not isinstance(batch, Mapping):
        return ""
    found = [key for key in WEIGHTS if isinstance(batch.get(key), Tensor)]
    return found[0] if len(found) == 1 else ""


def way_out(data: Any) -> str:
    """Return how what is no kind of data becomes one, where that is plain.

    >>> way_out(numpy.ones(2)), way_out(3)
    ('; make tensors of arrays, torch.from_numpy(x)', '')
    """
    if isinstance(data, Tensor):
        return "; for inputs alone give a dictionary by the names that the model takes, {'x': x}"
    parts = data.values() if isinstance(data, Mapping) else [data]
    arrays = any(isinstance(part, numpy.ndarray) for part in parts)
    return "; make tensors of arrays, torch.from_numpy(x)" if arrays else ""
