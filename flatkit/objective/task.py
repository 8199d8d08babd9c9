"""A task: what is measured. A model, a loss and the data over which the loss is the mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError
from flatkit.objective.names import LOSSES
from flatkit.objective.samples import check_data

Data: TypeAlias = Any
"""Tensors, a data set or a DataLoader: see `flatkit.objective.samples`."""

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> loss of every sample [B], or their mean."""


@dataclass(frozen=True, eq=False)
class Task:
    """A model, its loss and its data; nothing here is copied or changed.

    Attributes:
        model: maps inputs [B, ...] to outputs; it may take several, by name or position.
        loss: a callable, or a name in `flatkit.objective.LOSSES`, e.g. `"cross_entropy"`;
            `"model"` is the loss that the model itself returns.
        data: the samples whose mean loss is the objective.
        test_data: samples on which loss and accuracy are reported beside it.
        name: for tables.
        origin: what a report says of where the weights come from.

    Raises:
        InvalidArgumentError: the model is no module, the loss has no such name, or the data are
            no kind of data.

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
    origin: Mapping[str, Any] = field(default_factory=dict)

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
        check_data("data", self.data)
        if self.test_data is not None:
            check_data("test_data", self.test_data)
