"""Weights of samples, as a batch gives them by an entry of its own."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.objective.model.habits import Around
from flatkit.objective.users_code import own_weights


class WeightedTargets(NamedTuple):
    """What the loss takes, and the weight of each sample [B]."""

    targets: Any
    weights: Tensor


class Weighted(Around):
    """A loss of every sample times its weight; the mean divides by the sum of the weights.

    Args:
        loss: of (outputs, targets), one value per sample [B].

    >>> loss = Weighted(lambda outputs, targets: outputs - targets)
    >>> targets = WeightedTargets(torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> loss(torch.ones(2), targets), loss.weights(targets)
    (tensor([1., 3.]), tensor([1., 3.], dtype=torch.float64))
    """

    mean_over = "samples, by the weights of the batch"

    def __call__(self, outputs: Any, targets: WeightedTargets) -> Tensor:
        """Return the weighted losses [B].

        Raises:
            InvalidArgumentError: the loss returns one number.
        """
        values = self.loss(outputs, targets.targets)
        if not isinstance(values, Tensor) or values.shape != targets.weights.shape:
            raise InvalidArgumentError(
                "the batch weights its samples by an entry, so that the loss must return one value "
                f"per sample (reduction='none'), got {_told(values)}; or give a loss that takes "
                "the weights itself: loss(outputs, targets, weight)"
            )
        return values * targets.weights

    def weights(self, targets: WeightedTargets) -> Tensor:
        """Return what the mean divides by, of each sample, [B] in float64."""
        own, of_loss = targets.weights.double().cpu(), own_weights(self.loss)
        return own if of_loss is None else own * of_loss(targets.targets).double().cpu()


def weighted(loss: Any) -> Any:
    """Return a loss that takes `WeightedTargets`.

    >>> isinstance(weighted(weighted(print)).loss, Weighted)
    False
    """
    return loss if isinstance(loss, Weighted) else Weighted(loss)


def check_weights(weights: Tensor) -> Tensor:
    """Return weights [B], from [B] or [B, 1], if they are weights.

    Raises:
        InvalidArgumentError: negative ones, others than one a sample, or all zero.

    >>> check_weights(torch.tensor([[1], [2]]))
    tensor([1., 2.])
    """
    # [B, 1] is one a sample as well, as columns of a table come.
    flat = weights.reshape(-1)
    if len(flat) != len(weights):
        raise InvalidArgumentError(
            f"the weights of a batch must be one a sample, got the shape {list(weights.shape)}"
        )
    flat = flat if flat.is_floating_point() else flat.to(torch.get_default_dtype())
    if not bool((flat >= 0).all() and flat.isfinite().all() and flat.sum() > 0):
        raise InvalidArgumentError("the weights of samples must be finite, >= 0 and not all 0")
    return flat


def plain_targets(targets: Any) -> Any:
    """Return targets without weights.

    >>> plain_targets(WeightedTargets(1, torch.ones(1))), plain_targets(2)
    (1, 2)
    """
    return targets.targets if isinstance(targets, WeightedTargets) else targets


def _told(values: Any) -> str:
    shape = f"the shape {list(values.shape)}" if isinstance(values, Tensor) else ""
    return shape or f"a {type(values).__name__}"
