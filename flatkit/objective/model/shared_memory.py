"""Parameters that are several by name and one in memory, which an optimizer moves together."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError


def refuse_shared_memory(model: nn.Module) -> None:
    """Refuse free parameters that lie in the memory of another one.

    Such are weights tied by `.data`: each has a gradient of its own, but what moves one moves the
    other, so that neither is a coordinate of θ.

    Raises:
        InvalidArgumentError: two do; it names them, and how to tie or to part them.

    >>> refuse_shared_memory(nn.Linear(1, 1))
    """
    free = [
        (name, p)
        for name, p in model.named_parameters()
        if p.requires_grad and p.numel() and type(p.data) is Tensor and p.layout is torch.strided
    ]
    # Sorted by where they begin: the pairs of a thousand parameters would be half a million.
    spans = sorted((*_span(p), place) for place, (_, p) in enumerate(free))
    for one, other in _overlapping(spans):
        (first, p), (second, q) = sorted((free[one], free[other]), key=lambda x: x[0])
        if _meet(p, q):
            raise InvalidArgumentError(
                f"{first} and {second} are two parameters in one memory (tied by `.data`?): to "
                "change one changes the other, so that they are no two parts of θ. Let them be one "
                "parameter, module.weight = other.weight, or two, weight.data = "
                "weight.data.clone()"
            )


def _overlapping(spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the places of any two of some spans (begin, end, place), sorted, that overlap."""
    for number, (_, end, one) in enumerate(spans):
        # Not the next one alone: that may lie in a gap of this one, and the one after it not.
        after = number + 1
        while after < len(spans) and spans[after][0] < end:
            yield one, spans[after][2]
            after += 1


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where the bytes of a tensor begin and end."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (steps + 1) * tensor.element_size()


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap have an entry in common."""
    # Without gaps spans that overlap share an entry, and the addresses need not be listed.
    if all(end - start == t.nbytes for t in (one, other) for start, end in [_span(t)]):
        return True  # both without gaps
    return bool(torch.isin(_places(one), _places(other)).any())


def _places(tensor: Tensor) -> Tensor:
    """Return the address of every entry, int64."""
    found = torch.full((), tensor.data_ptr(), dtype=torch.int64)
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        found = found[..., None] + torch.arange(length) * (step * tensor.element_size())
    return found.reshape(-1)
