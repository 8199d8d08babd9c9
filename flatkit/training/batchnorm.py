"""Batch normalisation under several passes a step: only the first may move running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running means and variances while batch statistics go on normalising.

    SAM and GAM visit perturbed weights, whose activations are not those of the model. Tracking is
    switched off rather than the momentum set to zero, and put back also after an exception, so
    nothing can stick.

    >>> import torch
    >>> layer = nn.BatchNorm1d(2)
    >>> with frozen_statistics(layer):
    ...     _ = layer(torch.ones(3, 2))
    >>> layer.running_mean, layer.track_running_stats
    (tensor([0., 0.]), True)
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
