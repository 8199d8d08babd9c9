"""Ranks that make every pass together, as each holds a part of the model."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, distributed

from flatkit.devices.ranks import POLL, Ranks
from flatkit.errors import LostRankError, RankError

_ALL_FAIL = 10.0
"""Seconds in which the others fail too, where it is the fault of all: they are in one pass."""


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
        self._depth = vars(ranks).get("_depth", 0)
        self._failures = vars(ranks).get("_failures", 0)

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

    @contextmanager
    def in_model(self) -> Generator[None]:
        """Let no rank wait for one that fails in the block, in which the model itself sends.

        Where all fail, each raises its own error, and they can go on. Where one fails alone, the
        others hang in what the model sends: they end as `Words.watching` says, unless whoever
        started them ends them before.

        Raises:
            RankError: this rank failed alone, or another one did.
            LostRankError: a rank is gone.
        """
        self._depth += 1
        try:
            yield
        except RankError:  # all know of it
            raise
        except Exception as error:
            if self.count > 1:
                self._vote(error)
            raise
        finally:
            self._depth -= 1

    def _vote(self, error: Exception) -> None:
        """Return where all ranks fail, else raise what says which does not go on."""
        if _of_connection(error):
            raise LostRankError(self.words.missing()) from error
        self._failures += 1
        names = [f"failed/{self._failures}/{rank}" for rank in range(self.count)]
        self._store.set(names[self.rank], b"")
        end = time.monotonic() + _ALL_FAIL
        while not self._store.check(names):  # `wait` would warn on stderr of the time it took
            if time.monotonic() > end:
                self.words.leave(error)
                rank, kind, text = self.words.of(error)
                raise RankError.of(rank, self.count, kind, text) from error
            time.sleep(POLL)


def _of_connection(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that other ranks do not answer."""
    kinds: Any = getattr(distributed, "DistError", ())
    while error is not None:
        if isinstance(error, kinds) or "gloo/" in str(error):  # which has no type of its own
            return True
        error = error.__cause__
    return False
