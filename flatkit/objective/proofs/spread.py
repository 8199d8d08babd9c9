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
    return ((torch.arange(size) + places) * (available / size)).long()
