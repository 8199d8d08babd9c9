"""The order of the samples in an epoch, a function of seed and epoch alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def epoch_batches(
    *, samples: int, batch_size: int, seed: int, epoch: int, device: torch.device | None = None
) -> Sequence[Tensor]:
    """Return the batches of one epoch: indices of the samples, each sample once.

    The order depends on no state, so a resumed run meets the batches that it would have met.

    Args:
        samples: in the training data.
        batch_size: samples a batch; the last batch holds what remains.
        seed: of the run.
        epoch: from 1.
        device: where the indices are wanted; one copy an epoch.

    Returns:
        int64 tensors of shape [B].

    >>> batches = epoch_batches(samples=5, batch_size=2, seed=0, epoch=1)
    >>> [len(batch) for batch in batches], sorted(torch.cat(batches).tolist())
    ([2, 2, 1], [0, 1, 2, 3, 4])
    """
    # Not seed + epoch: the second epoch of one seed would be the first of the next.
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(samples)).to(device)
    return order.split(batch_size)
