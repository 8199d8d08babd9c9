"""Vectors of which each rank holds a part: where it lies, and how numbers become those of all.

A Krylov basis is by far the most that a search of eigenvalues holds. Of several ranks each keeps
its part of every vector. Inside of `among` the functions of `spectrum.dot` take their arguments for
such parts, and give the products of the whole vectors, the same bits on every rank.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, final

from torch import Tensor

from flatkit.devices.ranks import Ranks

F = TypeVar("F", bound=Callable[..., Any])


@final
class Shards:
    """P numbers cut into parts of one length, one a rank; zeros fill up the last.

    Args:
        ranks: that hold them.
        size: P.

    Attributes:
        length: of a part, P/N rounded up.

    >>> import torch
    >>> Shards(Ranks(1, 2), 5).part(torch.arange(5.0))
    tensor([3., 4., 0.])
    """

    def __init__(self, ranks: Ranks, size: int) -> None:
        self.ranks, self.size, self.length = ranks, size, -(-size // ranks.count)

    def part(self, whole: Tensor) -> Tensor:
        """Return the part of this rank [..., P/N] of vectors [..., P], a copy."""
        start = self.ranks.rank * self.length
        own = whole[..., start : start + self.length]
        part = whole.new_zeros(*whole.shape[:-1], self.length)
        part[..., : own.shape[-1]] = own
        return part

    def whole(self, part: Tensor) -> Tensor:
        """Return the vectors [..., P] of which all ranks hold parts [..., P/N].

        Row by row, so that little is held beside what is returned. Every rank must ask.
        """
        if part.ndim == 1:
            return self.ranks.joined_parts(part)[: self.size]
        found = part.new_empty(*part.shape[:-1], self.size)
        for row, own in zip(found, part, strict=True):
            row.copy_(self.whole(own))
        return found

    @contextmanager
    def adding(self, part: Tensor) -> Generator[Tensor]:
        """Add up what the blocks of all ranks put into a vector [P]; each gets its part alone.

        Args:
            part: [P/N], takes what this rank gets.

        Raises:
            FlatkitError: what the block of any rank raised.
        """
        total = part.new_zeros(self.ranks.count * self.length)
        with self.ranks.adding_parts(total, part):
            yield total[: self.size]

    @contextmanager
    def among(self) -> Generator[None]:
        """Let vectors inside be parts: products and norms are those of the whole vectors."""
        token = _NOW.set(self)
        try:
            yield
        finally:
            _NOW.reset(token)


_NOW: ContextVar[Shards | None] = ContextVar("shards", default=None)


def current() -> Shards | None:
    """Return how vectors are cut here; None where they are whole.

    >>> current() is None
    True
    """
    return _NOW.get()


@contextmanager
def whole_vectors() -> Generator[None]:
    """Let vectors inside be whole, also where those around are parts."""
    token = _NOW.set(None)
    try:
        yield
    finally:
        _NOW.reset(token)


def among(shards: Shards | None) -> Any:
    """Return the context in which vectors are cut so; of None they are whole.

    >>> with among(None):
    ...     current() is None
    True
    """
    return nullcontext() if shards is None else shards.among()


def in_parts(method: F) -> F:
    """Let the vectors of a method be parts where those of `self.operator` are."""

    @wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        shards = self.operator.shards
        if shards is None or _NOW.get() is shards:
            return method(self, *args, **kwargs)
        with shards.among():
            return method(self, *args, **kwargs)

    return inside  # pyright: ignore[reportReturnType]
