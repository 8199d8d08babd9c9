"""What a forward pass leaves in a model, for a loss that reads it in the user's own.

A penalty that layers compute and keep (`self.penalty = ...`) lands in the private copy, and a loss
that holds the user's model would find there what an earlier call has left: a constant.
"""

from collections import deque
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn

from flatkit.objective.model.captured import reached_by

if TYPE_CHECKING:
    from flatkit.objective.model.copier import Copier

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, hooks and modes are placed otherwise."""
_NOTHING: Any = object()


@final
class Left:
    """What objects of the user take from their private copies while a loss runs.

    Args:
        pairs: modules, collections and other objects of the user, each with its copy.

    Attributes:
        found: whether anything was left in a copy.

    >>> mine, copied = {}, {}
    >>> left = Left([(mine, copied)])
    >>> copied["penalty"] = 5
    >>> with left.taken():
    ...     mine
    {'penalty': 5}
    >>> mine
    {}
    """

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.found = False
        self._pairs = pairs
        # As they were before any call, since only what was changed in one is taken.
        self._before = [
            (mine, copied, _marks(copied))
            for pair in pairs
            for mine, copied in zip(*map(_holders, pair), strict=True)
        ]

    @classmethod
    def of(cls, loss: Any, copier: "Copier") -> "Left | None":
        """Return what a loss may read; None where it reaches nothing that was copied.

        Args:
            loss: of the user, or its copy.
            copier: made the private copies.
        """
        reached = reached_by([loss])
        modules = [vars(thing) for thing in reached if isinstance(thing, nn.Module)]
        of_torch = {id(held.get(key)) for held in modules for key in _OF_TORCH}
        pairs = [(thing, copier.known(thing)) for thing in reached if id(thing) not in of_torch]
        pairs = [
            (thing, copied)
            for thing, copied in pairs
            if copied is not None and copied is not thing and not isinstance(thing, Tensor)
            if isinstance(thing, (dict, list, deque)) or hasattr(thing, "__dict__")
        ]
        return cls(pairs) if pairs else None

    def moved(self, known: Callable[[Any], Any]) -> "Left":
        """Return the same for copies of the private copies.

        Args:
            known: gives the copy of a thing, or None.
        """
        pairs = [(thing, known(copied)) for thing, copied in self._pairs]
        return Left([(thing, copied) for thing, copied in pairs if copied is not None])

    @contextmanager
    def taken(self) -> Generator[None]:
        """Let the user's objects hold what the last call left in their copies.

        What the loss does to it, such as to empty a list, is done to the copies.
        """
        undone: list[tuple[Any, Any, Any, Any]] = []
        for mine, copied, marks in self._before:
            if not _unchanged(_marks(copied), marks):
                undone.append((mine, copied, _content(mine), _content(copied)))
                self.found = True
        try:
            for mine, _, _, put in undone:
                _fill(mine, put)
            yield
        finally:
            for mine, copied, old, put in undone:
                now = _content(mine)
                if not _same(now, put):
                    _fill(copied, now)
                _fill(mine, old)


def _holders(thing: Any) -> list[Any]:
    """Return the collections in which an object keeps things."""
    if isinstance(thing, nn.Module):
        return [vars(thing), vars(thing)["_buffers"]]
    return [thing if isinstance(thing, (dict, list, deque)) else vars(thing)]


def _content(holder: Any) -> Any:
    """Return what a collection holds, but for what torch itself keeps of a module."""
    if isinstance(holder, MutableMapping):
        skipped = _OF_TORCH if "_parameters" in holder else ()
        return {key: value for key, value in holder.items() if key not in skipped}  # pyright: ignore
    return list(holder)


def _marks(holder: Any) -> list[tuple[Any, Any, int]]:
    """Return what tells whether a collection, or a tensor in it, was changed."""
    content = _content(holder)
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    # The values themselves are held, so that no id is used again.
    return [(key, value, _version(value)) for key, value in entries]


def _unchanged(marks: list[tuple[Any, Any, int]], before: list[tuple[Any, Any, int]]) -> bool:
    """Whether all entries are the same objects, whatever is equal by their own idea of it."""
    pairs = zip(marks, before, strict=False)
    return len(marks) == len(before) and all(
        a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in pairs
    )


def _version(value: Any) -> int:
    # Tensors of the inference mode count no changes.
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _fill(holder: Any, content: Any) -> None:
    """Let a collection hold something, and no more."""
    if isinstance(content, dict):
        for key in _content(holder).keys() - content.keys():
            del holder[key]
        holder.update(content)
        return
    holder.clear()
    holder.extend(content)
