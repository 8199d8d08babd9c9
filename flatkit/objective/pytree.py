"""Batches as trees: one tensor, or dictionaries and tuples of trees, row by row the samples."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError

Tree: TypeAlias = Any
"""A tensor [N, ...], or a dict, list or tuple of trees whose tensors have the same N."""


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a tree, in order.

    >>> [leaf.shape[0] for leaf in leaves({"a": torch.ones(2), "b": (torch.ones(3),)})]
    [2, 3]
    """
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from leaves(part)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from leaves(part)


def named_leaves(tree: Tree, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a tree with what they are called: a key, or `name` and a number.

    >>> [found for found, _ in named_leaves((torch.ones(2), {"mask": torch.ones(2)}), "labels")]
    ['labels 0', 'mask']
    """
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from named_leaves(part, str(key))
    elif isinstance(tree, (list, tuple)):
        for number, part in enumerate(tree):
            yield from named_leaves(part, f"{name} {number}")


def map_tree(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return a tree of the same form with a function of every tensor; what is none stays.

    >>> map_tree(torch.neg, {"a": torch.ones(1), "b": None})
    {'a': tensor([-1.]), 'b': None}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tree(function, part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return tuple(map_tree(function, part) for part in tree)
    return tree


def join(parts: list[Tree], what: str = "batches") -> Tree:
    """Return trees of one form, one after the other.

    Raises:
        InvalidArgumentError: the tensors differ in more than their first dimension.

    >>> join([{"a": torch.ones(1)}, {"a": torch.zeros(1)}])
    {'a': tensor([1., 0.])}
    """
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            some = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise InvalidArgumentError(
                f"the {what} cannot be joined: their samples have the shapes {some}; pad them "
                "to one length"
            )
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts], what) for key in first}
    if isinstance(first, (list, tuple)):
        return tuple(join(list(column), what) for column in zip(*parts, strict=True))
    return first


def same(first: Tree, second: Tree) -> bool:
    """Whether two trees hold the same numbers.

    >>> same((torch.ones(2),), (torch.ones(2),))
    True
    """
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def dtype_like(dtype: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    """Return a real dtype, for complex numbers the complex one of its width; integers keep theirs.

    >>> dtype_like(torch.complex64, torch.float64), dtype_like(torch.int64, torch.float64)
    (torch.complex128, torch.int64)
    """
    if dtype.is_complex:
        return wanted.to_complex()
    return wanted if dtype.is_floating_point else dtype


def main_tensor(outputs: Any) -> Tensor | None:
    """Return the tensor that a model's outputs are about.

    That is themselves; their `logits`, or `out` as of torchvision's segmentation; what follows a
    loss in a tuple; or what is alone in a dictionary or tuple. Of several None is known to be.

    >>> main_tensor({"loss": 0.5, "logits": torch.ones(1)})
    tensor([1.])
    >>> main_tensor((torch.tensor(0.5), torch.ones(1)))
    tensor([1.])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "logits", None)
    if isinstance(outputs, Mapping):
        alone = next(iter(outputs.values())) if len(outputs) == 1 else None
        found = outputs.get("logits", outputs.get("out", alone))
    elif found is None and isinstance(outputs, (tuple, list)) and outputs:
        with_loss = len(outputs) > 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == 0
        found = outputs[int(with_loss)] if with_loss or len(outputs) == 1 else None
    return found if isinstance(found, Tensor) else None
