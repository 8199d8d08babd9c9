"""Batches as trees: one tensor, or dictionaries and tuples of trees, row by row the samples.

What cannot be cut into rows, as graphs or ragged boxes, is a `Bundle` of batches, each as it came.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from flatkit.errors import InvalidArgumentError

Tree: TypeAlias = Any
"""A tensor [N, ...], or a dict, list or tuple of trees whose tensors have the same N."""


@dataclass(frozen=True, eq=False)
class Whole:
    """Inputs that a model takes as one argument, whatever they hold."""

    tree: Tree


@dataclass(frozen=True, eq=False)
class Bundle:
    """Batches that can be neither cut nor joined; a row is a batch.

    >>> len(take(Bundle([torch.ones(3), torch.ones(5)]), slice(1, 2)).units[0])
    5
    """

    units: Sequence[Any]

    def map(self, function: Callable[[Any], Any]) -> "Bundle":
        """Return a function of every batch."""
        return Bundle([function(unit) for unit in self.units])


class _Tensors(TorchFunctionMode):
    """Lets `copy.deepcopy` put a function of each tensor in its place."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer `Tensor.__deepcopy__` alone."""
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        # The memo of `deepcopy`: a tensor that stands in two places is one afterwards, too.
        memo[id(tensor)] = self._function(tensor)
        return memo[id(tensor)]


def map_object(function: Callable[[Tensor], Tensor], thing: Any) -> Any:
    """Return a deep copy of any object with a function of every tensor in it.

    Raises:
        InvalidArgumentError: something in it cannot be copied.

    >>> from types import SimpleNamespace
    >>> map_object(torch.neg, SimpleNamespace(x=torch.ones(1), names=["a"]))
    namespace(x=tensor([-1.]), names=['a'])
    """
    try:
        # By the protocol of `deepcopy`, which knows every
        # kind of object; a walk of our own would not.
        with _Tensors(function):
            return copy.deepcopy(thing)
    except TypeError as error:  # what `copy` answers of locks, open files and the like
        raise InvalidArgumentError(
            f"a batch holds a {type(thing).__name__} that cannot be copied: {error}; give batches "
            "of data alone"
        ) from error


def tensors_in(thing: Any) -> list[Tensor]:
    """Return the tensors of any object.

    >>> tensors_in([{"a": torch.ones(1)}, "text"])
    [tensor([1.])]
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_object(note, thing)
    return found


def first_unit(tree: Tree) -> Tree:
    """Return the first of several batches that cannot be cut, or a tree as it is.

    >>> first_unit(Bundle([1, 2])), first_unit(3)
    (1, 3)
    """
    return tree.units[0] if isinstance(tree, Bundle) else tree


def take(tree: Tree, rows: slice | Tensor) -> Tree:
    """Return some rows of a tree; batches as copies, since a model may write into them.

    >>> take({"a": torch.tensor([1, 2, 3])}, slice(2))
    {'a': tensor([1, 2])}
    """
    if not isinstance(tree, Bundle):
        return map_tree(lambda leaf: leaf[rows], tree)
    chosen = range(len(tree.units))[rows] if isinstance(rows, slice) else rows.tolist()
    return Bundle([map_object(torch.clone, tree.units[row]) for row in chosen])


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
    elif isinstance(tree, Whole):
        yield from leaves(tree.tree)
    elif isinstance(tree, Bundle):
        yield from tensors_in(tree.units)


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
    if isinstance(tree, Whole):
        return Whole(map_tree(function, tree.tree))
    if isinstance(tree, Bundle):
        return Bundle(map_object(function, tree.units))
    if isinstance(tree, Mapping):
        return like(tree, {key: map_tree(function, part) for key, part in tree.items()})
    if isinstance(tree, (list, tuple)):
        return like(tree, [map_tree(function, part) for part in tree])
    return tree


def like(tree: Tree, parts: Any) -> Tree:
    """Return parts as the kind of dictionary, list or tuple that they come from.

    >>> like((1, 2), [3, 4]), like([1], [2]), like({"a": 1}, {"a": 2})
    ((3, 4), [2], {'a': 2})
    """
    # Named tuples take their parts one by one, plain ones as one sequence.
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*parts)
    if isinstance(tree, (list, tuple)):
        return tuple(parts) if isinstance(tree, tuple) else list(parts)
    # Mappings that nobody can write into, as those of some libraries, come back as dictionaries.
    if type(tree) is dict or not isinstance(tree, MutableMapping):
        return parts
    clone = copy.copy(tree)  # of a subclass with a manner of its own, e.g. entries as attributes
    for key in set(clone) - set(parts):
        del clone[key]
    for key, part in parts.items():
        clone[key] = part
    return clone


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
        return like(first, {key: join([part[key] for part in parts], what) for key in first})
    if isinstance(first, (list, tuple)):
        columns = zip(*parts, strict=True)
        return like(first, [join(list(column), what) for column in columns])
    return first


def same(first: Tree, second: Tree) -> bool:
    """Whether two trees hold the same numbers; NaN, as of what is missing, is the same as NaN.

    >>> same((torch.tensor([1.0, float("nan")]),), (torch.tensor([1.0, float("nan")]),))
    True
    """
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(a.shape == b.shape and _equal(a, b) for a, b in pairs)


def _equal(a: Tensor, b: Tensor) -> bool:
    # What is unequal to itself is NaN, and all else is compared bit for bit.
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


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
        # A number before other tensors is a loss, as Hugging Face returns (loss, logits).
        with_loss = len(outputs) > 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == 0
        found = outputs[int(with_loss)] if with_loss or len(outputs) == 1 else None
    return found if isinstance(found, Tensor) else None


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
