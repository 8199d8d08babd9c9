"""Whether the loss of a batch that cannot be cut is the mean of those of its samples."""

from collections.abc import Sequence
from typing import Any

import torch

from flatkit.errors import NonAdditiveLossError


def check_unit_means(losses: Sequence[Any], *, fixed: bool, tolerance: float) -> None:
    """Refuse a loss that is a sum over its batch, or depends on a batch that is mixed anew.

    Args:
        losses: of two samples, of the first and of the second: one number or one a sample.
        fixed: whether the batches are always the same ones, so that they may be part of L.
        tolerance: relative.

    Raises:
        NonAdditiveLossError: it is another function than the mean over the samples.

    >>> check_unit_means([2.0, 1.0, 3.0], fixed=False, tolerance=1e-6)
    """
    both, *apart = (float(torch.as_tensor(loss).detach().double().mean()) for loss in losses)
    scale = tolerance * max(map(abs, (both, *apart)))
    told = f"{both:.6g} for two samples, {apart[0]:.6g} and {apart[1]:.6g} for each"
    # A sum passes too where the two losses are opposite numbers, which they hardly are.
    if not abs(both - sum(apart) / 2) > scale:  # NaN is told by whoever needs the value
        return
    if abs(both - sum(apart)) <= scale:
        raise NonAdditiveLossError(
            f"the loss is not a mean over samples but a sum: {told}; batches that cannot be cut "
            "count by their means, so give reduction='mean', or one value per sample"
        )
    if not fixed:
        raise NonAdditiveLossError(
            f"the loss of a batch is not the mean of those of its samples ({told}), and the "
            "DataLoader mixes its batches anew on every pass; give it shuffle=False, so that they "
            "are part of what is measured, or one value per sample"
        )
