"""Samples that are spread over all of them."""

import torch
from torch import Tensor


def spread_rows(available: int, size: int, draw: int = 0) -> Tensor:
    """Return up to `size` rows, one out of each of as many equal parts, int64 in order.

    Within its part a row is drawn (the same each time), so that no pattern of the data repeats in
    step with them; another draw gives others.

    >>> spread_rows(3, 8).tolist(), len(spread_rows(100, 8))
    ([0, 1, 2], 8)
    """
    size = min(size, available)
    generator = torch.Generator().manual_seed(draw)
    places = torch.rand(size, generator=generator, dtype=torch.float64)
    # In float64: of a hundred million rows 32 bits would name the same one twice.
    return ((torch.arange(size) + places) * (available / size)).long()


def spread_by_weight(weights: Tensor, size: int, draw: int = 0) -> Tensor:
    """Return rows spread over what they weigh, each as often as its part of it, the lightest first.

    Of equal weights they are those of `spread_rows`; else so many, in which heavy ones repeat.

    Args:
        weights: of the rows [N], float64.
        size: how many.
        draw: which of several draws.

    >>> spread_by_weight(torch.tensor([1.0, 6.0, 1.0]).double(), 4).tolist()
    [2, 1, 1, 1]
    >>> spread_by_weight(torch.ones(3).double(), 4).tolist()
    [0, 1, 2]
    """
    if bool((weights == weights[0]).all()):
        return spread_rows(len(weights), size, draw)
    ends, generator = weights.cumsum(0), torch.Generator().manual_seed(draw)
    places = (
        torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)
    ) / size
    rows = torch.searchsorted(ends, places * ends[-1], right=True).clamp(max=len(weights) - 1)
    return rows[weights[rows].argsort(stable=True)]
