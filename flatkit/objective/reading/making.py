"""How samples of a map-style data set become batches, and what that makes of them.

A data set may draw random numbers; a function that makes batches may fill samples up to the longest
of their batch, or let them depend on each other. Each is looked at here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import default_collate

from flatkit.errors import FlatkitError, InvalidArgumentError, NonDeterministicError
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.pytree import Tree, leaves, plain, same, take, tensors_in
from flatkit.objective.reading.randomness import random_states
from flatkit.objective.users_code import users_error

Collate: TypeAlias = Callable[[list[Any]], Any]

_LOOKED_AT = 8
"""Samples that are asked for twice, and made a batch alone: one of ten that are augmented at random
with probability 1/2 passes 8 such looks in 4 runs of a thousand."""
_AGAIN = 8
"""How often each of them is asked for where random numbers are drawn: a change that is made of one
sample in ten shows in all but one run of 10⁵."""


class Making(NamedTuple):
    """How positions in a data set become a batch.

    Attributes:
        source: the data set.
        collate: items -> a batch.
        by_loader: a DataLoader asks for the items, all of a batch at once where the data set can
            (`__getitems__`).
    """

    source: Any
    collate: Collate
    by_loader: bool

    @property
    def at_once(self) -> Callable[[list[int]], Any] | None:
        """What gives all items of a batch at once, if anything does."""
        # As torch's loader does: what that method gives may be another sample than by position.
        return getattr(self.source, "__getitems__", None) if self.by_loader else None

    def items(self, rows: Sequence[int]) -> list[Any]:
        """Return the samples at some positions."""
        at_once = self.at_once
        return list(at_once(list(rows))) if at_once else [self.source[row] for row in rows]

    def batch(self, rows: Sequence[int]) -> Any:
        """Return the batch of some positions, as it comes."""
        return collated(self.items(rows), self.collate)

    def unit(self, row: int) -> Any:
        """Return one sample as a batch; what torch has no way to stack as it is."""
        (item,) = self.items([row])
        return item if unknown_to_torch(item, self.collate) else collated([item], self.collate)


class Alone(NamedTuple):
    """What becomes of samples in a batch.

    Attributes:
        coupled: numbers of one are others than alone.
        filled: of each that has another shape than alone two batches of one: alone, and as it is in
            the batch.
    """

    coupled: bool
    filled: list[Tree]


def unknown_to_torch(item: Any, collate: Collate) -> bool:
    """Whether torch's own function has no way to stack such items.

    >>> unknown_to_torch(object(), default_collate), unknown_to_torch((1, 2), default_collate)
    (True, False)
    """
    known = isinstance(item, (Mapping, Sequence, Tensor))
    return collate is default_collate and not known


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


def can_be_cut(making: Making, rows: Sequence[int]) -> bool:
    """Whether batches of one and of two samples are trees of as many rows.

    Two sizes, because a batch [T, B, C] or a list of images of three channels may look like one of
    another size by chance.
    """
    if unknown_to_torch(making.items(rows[:1])[0], making.collate):
        return False
    sizes = range(1, len(rows) + 1)
    return all(plain(making.batch(rows[:size]), size) is not None for size in sizes)


def held_alone(making: Making, chosen: Tensor, tree: Tree) -> Alone:
    """Return what becomes of samples in one batch, held against each of some as a batch of its own.

    Args:
        making: of batches.
        chosen: the positions of the samples [N].
        tree: the batch of all of them.

    >>> def centred(items):
    ...     return torch.stack(items) - torch.stack(items).mean()
    >>> making = Making([torch.tensor([1.0]), torch.tensor([3.0])], centred, True)
    >>> held_alone(making, torch.arange(2), making.batch([0, 1])).coupled
    True
    """
    if making.collate is default_collate and making.at_once is None:
        return Alone(False, [])  # which stacks, and nothing else
    filled: list[Tree] = []
    for row in spread_rows(len(chosen), _LOOKED_AT).tolist():
        alone, inside = plain(making.batch([int(chosen[row])]), 1), take(tree, slice(row, row + 1))
        pairs = list(zip(leaves(alone), leaves(inside), strict=True))
        if any(one.shape != other.shape for one, other in pairs):
            filled += [alone, inside]
        elif not all(_alike(one, other) for one, other in pairs):
            return Alone(True, [])
    return Alone(False, filled)


def check_repeats(making: Making, chosen: Tensor) -> None:
    """Refuse samples, and batches of them, that are others when they are asked for again.

    Args:
        making: of batches.
        chosen: the positions of the samples [N].

    Raises:
        NonDeterministicError: some are.
    """
    rows = chosen[spread_rows(len(chosen), _LOOKED_AT)].tolist()
    stacked = making.collate is default_collate  # else that function is looked at by itself

    def samples() -> list[Tensor]:
        parts = (making.unit(row) if stacked else making.items([row]) for row in rows)
        return [tensor for part in parts for tensor in tensors_in(part)]

    if _differs(samples):
        raise NonDeterministicError(
            "the data set gives a different sample each time it is asked (random augmentation?); "
            "give the data without augmentation"
        )
    if not stacked and _differs(lambda: tensors_in(making.batch(rows))):
        raise NonDeterministicError(
            "the collate_fn of the DataLoader makes another batch of the same samples each time "
            "(mixup, random masks or crops?); give one that draws nothing at random"
        )


def _differs(make: Callable[[], list[Tensor]]) -> bool:
    """Whether tensors are others when they are made again."""
    before, first = random_states(), make()
    # Who draws random numbers may use them now and then: that shows in several looks.
    draws = random_states() != before
    for _ in range(_AGAIN if draws else 1):
        again = make()
        if len(again) != len(first) or not same(first, again):
            return True
    return False


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are the same numbers, to rounding."""
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    # The same function of more numbers at once may round otherwise.
    most = other.abs().nan_to_num(0.0, 0.0).max() if other.numel() else 0.0
    slack = 1e3 * torch.finfo(other.dtype).eps * float(most)
    return torch.allclose(one, other, rtol=0.0, atol=slack, equal_nan=True)


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
