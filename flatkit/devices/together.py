"""Ranks that make every pass together, as each holds a part of the model."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor

from flatkit.devices.ranks import Ranks


@final
class Together(Ranks):
    """Ranks each of which holds a part of one model: what one computes, all compute.

    Nothing is shared out: passes, points and batches are those of all, and a sum is the same
    everywhere before it is taken. What a clock or a file decides, the first decides for all, and
    all do the work that leads to it.

    Args:
        ranks: the same processes, which share what is counted.

    >>> Together(Ranks(1, 2)).part(5), list(Together(Ranks(1, 2)).hand_out(2, str))
    (slice(0, 5, None), ['0', '1'])
    """

    def __init__(self, ranks: Ranks) -> None:
        self.__dict__ = vars(ranks)
        self.apart = ranks

    def part(self, length: int) -> slice:
        """Return all of so many things."""
        return slice(0, length)

    def largest_part(self, length: int) -> int:
        """Return how many these are."""
        return length

    @contextmanager
    def adding(self, total: Tensor | None = None, sums: Tensor | None = None) -> Generator[None]:
        """Leave sums as they are: they are those of all ranks already."""
        yield

    @contextmanager
    def adding_parts(self, total: Tensor, part: Tensor) -> Generator[None]:
        """Take the part [L] of this rank of a vector [N L] that all have."""
        yield
        part.copy_(total[self.rank * len(part) :][: len(part)])

    def hand_out(self, count: int, work: Callable[[int], Any]) -> Iterator[Any]:
        """Yield what work gives for each number below a count; all do all of it."""
        yield from map(work, range(count))

    def from_first(self, work: Callable[[], bytes | None]) -> bytes | None:
        """Return what work gives on the first rank; all do it.

        Raises:
            FlatkitError: what it raised there.
        """
        failed: Exception | None = None
        found: bytes | None = None
        try:
            found = work()
        except Exception as error:  # told to the others before it is raised
            failed = error

        def tell() -> bytes | None:
            if failed is not None:
                raise failed
            return found

        told = self.apart.from_first(tell)
        if failed is not None:
            raise failed
        return told
