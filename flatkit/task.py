"""A task: what is measured. A model, a loss and the data over which the loss is the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError
from flatkit.losses import LOSSES

Data: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [N, ...] and targets [N, ...], row by row."""

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> loss of every sample [B], or their mean."""


@dataclass(frozen=True, eq=False)
class Task:
    """A model, its loss and its data; nothing here is copied or changed.

    Attributes:
        model: maps inputs [B, ...] to outputs.
        loss: a callable, or a name in `flatkit.losses.LOSSES`, e.g. `"cross_entropy"`.
        data: inputs and targets whose mean loss is the objective.
        test_data: inputs and targets on which loss and accuracy are reported beside it.
        name: for tables.

    Raises:
        InvalidArgumentError: the model is no module, the loss has no such name, or the data are
            not two tensors of one length.

    >>> import torch
    >>> task = Task(nn.Linear(2, 3), "cross_entropy", (torch.zeros(5, 2), torch.zeros(5).long()))
    >>> task.loss
    CrossEntropy(label_smoothing=0.0)
    """

    model: nn.Module
    loss: LossFunction | str
    data: Data
    test_data: Data | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Check the parts and look up the loss."""
        if not isinstance(self.model, nn.Module):
            raise InvalidArgumentError(f"model must be a torch.nn.Module, got {self.model!r}")
        if isinstance(self.loss, str):
            object.__setattr__(self, "loss", LOSSES.build(self.loss))
        if not callable(self.loss):
            raise InvalidArgumentError(
                "loss must be a callable (outputs, targets) -> tensor "
                f"or one of {', '.join(LOSSES.names)}, got {self.loss!r}"
            )
        _check_data("data", self.data)
        if self.test_data is not None:
            _check_data("test_data", self.test_data)


def _check_data(name: str, data: object) -> None:
    parts = tuple(data) if isinstance(data, (tuple, list)) else ()
    if len(parts) != 2 or not all(isinstance(part, Tensor) and part.ndim > 0 for part in parts):
        raise InvalidArgumentError(
            f"{name} must be two tensors (inputs, targets), got {type(data).__name__}; "
            "stack a Dataset or DataLoader into two tensors first"
        )
    inputs, targets = parts
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InvalidArgumentError(
            f"{name} must hold as many inputs as targets, at least one, "
            f"got {len(inputs)} and {len(targets)}"
        )
