"""The batches of a `DataLoader` as it yields them, without disturbing it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader


def goes_its_own_way(loader: DataLoader[Any]) -> bool:
    """Whether a subclass decides itself what it yields."""
    own = type(loader)
    return (
        # By its methods, not its class: one that adds attributes alone yields what torch's does.
        own.__iter__ is not DataLoader.__iter__ or own._get_iterator is not DataLoader._get_iterator  # pyright: ignore[reportPrivateUsage]
    )


def stream_of(loader: DataLoader[Any]) -> Iterator[tuple[int | None, Any]]:
    """Yield the batches of a loader with their sizes; workers that it keeps stay as they are."""
    private = copy.copy(loader)
    # Workers that are kept alive belong to the user's loader, in the middle of its epoch perhaps.
    private._iterator = None  # pyright: ignore[reportPrivateUsage]
    if goes_its_own_way(loader):
        yield from ((None, batch) for batch in private)
    else:
        private.collate_fn = _Counted(loader.collate_fn)
        yield from private


class _Counted:
    """A collate function that also says how many items went into a batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> tuple[int, Any]:
        return len(items), self._collate(items)
