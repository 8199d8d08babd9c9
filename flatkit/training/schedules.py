"""The learning rate as a function of the epoch alone, so that a resumed run finds it again."""

import math

from flatkit.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """Return the learning rate during an epoch.

    With t = (epoch - 1) / epochs in [0, 1): cosine (Loshchilov & Hutter 2017, one cycle) is
    lr * (1 + cos(pi t)) / 2; step is lr * decay^k with k milestones at or below t.

    Args:
        config: whose lr, schedule and epochs count.
        epoch: from 1.

    >>> cosine = TrainingConfig(lr=1.0, epochs=2)
    >>> [round(learning_rate(cosine, epoch), 3) for epoch in (1, 2)]
    [1.0, 0.5]
    >>> step = TrainingConfig(lr=1.0, epochs=4, schedule="step")
    >>> [round(learning_rate(step, epoch), 3) for epoch in (1, 2, 3, 4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    lr = config.lr or 0.0
    done = (epoch - 1) / config.epochs
    if config.schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "step":
        # 0.3 * 10 epochs is 3 in arithmetic but not in binary: compare epochs, with slack
        passed = sum(epoch - 1 >= m * config.epochs - 1e-9 for m in config.milestones or ())
        return lr * (config.decay or 0.0) ** passed
    return lr
