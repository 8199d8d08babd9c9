"""Batches as they come from a data set, made plain trees of samples, or kept as they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import default_collate

from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit.objective.pytree import Tree, leaves, like, tensors_in
from flatkit.objective.users_code import users_error

LABELS = ("labels", "label", "targets", "target", "y")
"""Entries of a batch that are its targets."""
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights")
"""Entries of a batch that say how much each of its samples counts."""


def collated(items: list[Any], collate: Callable[[list[Any]], Any]) -> Any:
    """Return samples as one batch, as it comes.

    Raises:
        InvalidArgumentError: torch's own function does not stack them.
        UserCodeError: a function of the user raises.

    >>> collated([(torch.ones(2), 1), (torch.ones(2), 0)], default_collate)[1]
    tensor([1, 0])
    """
    try:
        # torch stacks lists of numbers column by column; as tensors they are rows of a sample.
        own = collate is not default_collate
        return collate(items if own else [_as_tensors(item) for item in items])
    except FlatkitError:
        raise
    except Exception as error:  # whatever a collate function says to samples it cannot stack
        if collate is not default_collate:
            raise users_error("the collate_fn of the DataLoader", error) from error
        raise InvalidArgumentError(
            f"the samples cannot be stacked: {type(error).__name__}: {error}; give them one shape, "
            "or a DataLoader whose collate_fn pads them or takes them as lists; batches of "
            "tensors in a list are ConcatDataset([TensorDataset(*batch) for batch in batches])"
        ) from error


def plain(batch: Any, size: int | None) -> Tree | None:
    """Return a batch as a tree of tensors [size, ...]; None where it is no such tree.

    Parts without any tensor, as texts, are left out.

    Args:
        batch: anything.
        size: how many samples it holds; None if that is not known, but the same everywhere.

    >>> plain({"x": torch.ones(2, 3), "text": "a"}, 2), plain([torch.ones(3)], 2)
    ({'x': tensor([[1., 1., 1.],
            [1., 1., 1.]])}, None)
    """
    tree = _tree(batch)
    sizes = set() if tree is None else {len(x) if x.ndim else 0 for x in leaves(tree)}
    # One first dimension for all tensors, and that of the batch: else no row is a sample.
    if len(sizes) != 1 or 0 in sizes or (size is not None and sizes != {size}):
        return None
    return tree


def counted(batch: Any, size: int | None) -> int:
    """Return how many samples a batch holds, as far as it says so.

    Args:
        batch: one that cannot be cut.
        size: how many items it was made of, if known.

    Raises:
        InvalidArgumentError: there is no tensor in it, or nothing says how many samples.

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


def _tree(batch: Any) -> Tree | None:
    if isinstance(batch, Tensor):
        return None if batch.is_nested or batch.layout != torch.strided else batch
    if isinstance(batch, PackedSequence):
        return None
    if isinstance(batch, Mapping):
        some = {key: part for key, part in batch.items() if _holds_tensors(part)}
        parts = {str(key): _tree(part) for key, part in some.items()}
        return None if _lacks(parts.values()) else like(batch, parts)
    if isinstance(batch, (list, tuple)):
        # None keeps its place: arguments by position after it would move up.
        some = [part for part in batch if part is None or _holds_tensors(part)]
        found = [part if part is None else _tree(part) for part in some]
        given = [part for part, was in zip(found, some, strict=True) if was is not None]
        fits = not _lacks(given) and (len(some) == len(batch) or not hasattr(batch, "_fields"))
        return like(batch, found) if fits else None
    return None


def _holds_tensors(part: Any) -> bool:
    """Whether there is a tensor in a part of a batch, also in an object of any kind."""
    if part is None or isinstance(part, (str, bytes, int, float)):
        return False
    if isinstance(part, (list, tuple)):
        return any(map(_holds_tensors, part))
    return isinstance(part, Tensor) or bool(tensors_in(part))


def _lacks(parts: Any) -> bool:
    return any(part is None for part in parts)


def _as_tensors(item: Any) -> Any:
    """Return a sample with the lists of numbers of a dictionary as tensors."""
    if not isinstance(item, Mapping):
        return item
    return {
        key: torch.as_tensor(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float, list))
        else value
        for key, value in item.items()
    }
