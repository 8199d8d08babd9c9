"""Losses by name. Each returns one value per sample: whoever wants a mean takes it exactly.

A mean of means over batches of unequal size is not the mean over the samples, so no loss here
averages over the batch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from flatkit.checks import check_fraction
from flatkit.errors import InvalidArgumentError
from flatkit.registry import Registry, call_text

LOSSES = Registry(
    "loss", {"cross_entropy": "flatkit.losses:CrossEntropy", "mse": "flatkit.losses:MeanSquared"}
)


class Loss(Protocol):
    """What the registered losses are: values of the samples, and how to name the loss in a file."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample, shape [B]."""
        ...

    def spec(self) -> dict[str, Any]:
        """Return the registry name and the keyword arguments."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the softmax of the outputs, in nats.

    With label smoothing s the target is (1 - s) * one_hot + s / C over the C classes
    (Szegedy et al. 2016).

    Args:
        label_smoothing: s in [0, 1].

    >>> import torch
    >>> CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))    # log 4 each
    tensor([1.3863, 1.3863])
    >>> str(CrossEntropy(label_smoothing=0.1))
    'cross_entropy(label_smoothing=0.1)'
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        check_fraction("label_smoothing", self.label_smoothing)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample.

        Args:
            outputs: logits, shape [B, C].
            targets: class indices, shape [B].

        Raises:
            InvalidArgumentError: other shapes.
        """
        if outputs.ndim != 2 or targets.ndim != 1:
            raise InvalidArgumentError(
                "cross_entropy needs outputs [B, C] and targets [B], "
                f"got {list(outputs.shape)} and {list(targets.shape)}"
            )
        return F.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def spec(self) -> dict[str, Any]:
        """Return the registry name and the keyword arguments."""
        return {"name": "cross_entropy", "kwargs": asdict(self)}

    def __str__(self) -> str:
        return call_text("cross_entropy", asdict(self))


@dataclass(frozen=True)
class MeanSquared:
    """Squared error, averaged over the outputs of a sample; class indices become one-hot vectors.

    >>> import torch
    >>> MeanSquared()(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))  # (1 + 9) / 2
    tensor([5.])
    >>> MeanSquared()(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))           # (1 + 4) / 2
    tensor([2.5000])
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample.

        Args:
            outputs: shape [B, ...].
            targets: the same shape, or class indices of shape [B] with outputs [B, C].

        Raises:
            InvalidArgumentError: other shapes.
        """
        if targets.ndim == 1 and outputs.ndim == 2 and not targets.is_floating_point():
            targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)  # [B] -> [B, C]
        if outputs.shape != targets.shape:
            raise InvalidArgumentError(
                "mse needs targets of the shape of the outputs, or class indices [B], "
                f"got {list(targets.shape)} for {list(outputs.shape)}"
            )
        return (outputs - targets).square().reshape(len(outputs), -1).mean(1)  # [B, ...] -> [B]

    def spec(self) -> dict[str, Any]:
        """Return the registry name and the keyword arguments."""
        return {"name": "mse", "kwargs": {}}

    def __str__(self) -> str:
        return "mse()"


def build_loss(spec: Mapping[str, Any]) -> Loss:
    """Return the loss that a `spec()` names.

    Raises:
        InvalidArgumentError: unknown name or arguments.

    >>> build_loss(CrossEntropy(label_smoothing=0.1).spec())
    CrossEntropy(label_smoothing=0.1)
    """
    return LOSSES.build(spec["name"], **spec["kwargs"])
