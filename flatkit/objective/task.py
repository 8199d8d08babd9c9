"""A task: what is measured. A model, a loss and the data over which the loss is the mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

from flatkit.devices import resolve_device
from flatkit.errors import InvalidArgumentError
from flatkit.objective.digest import check_function
from flatkit.objective.function import Objective
from flatkit.objective.losses import LossFunction
from flatkit.objective.model.sharded import kind_of
from flatkit.objective.names import LOSSES
from flatkit.objective.reading.samples import Data, TooFewSamplesError, check_data
from flatkit.objective.settings import ObjectiveSettings

Split: TypeAlias = Literal["train", "test"]


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
        loss_parameters: parameters of the loss that require gradients are part of θ (an ArcFace
            head, learned task weights, a temperature); without, such a loss is refused.

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
    loss_parameters: bool = False

    def __post_init__(self) -> None:
        """Check the parts and look up the loss."""
        if not isinstance(self.model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError(f"model must be a torch.nn.Module, got {self.model!r}")
        if isinstance(self.loss, str):
            # The class is frozen; a name that there is not
            # is to fail here, not hours later in a worker.
            object.__setattr__(self, "loss", LOSSES.build(self.loss))
        if not callable(self.loss):
            raise InvalidArgumentError(
                "loss must be a callable (outputs, targets) -> tensor "
                f"or one of {', '.join(LOSSES.names)}, got {self.loss!r}"
            )
        check_data("data", self.data)
        if self.test_data is not None:
            check_data("test_data", self.test_data)

    def objective(
        self, settings: ObjectiveSettings, *, split: Split = "train", **changes: Any
    ) -> Objective:
        """Return the mean loss over a split as a function of θ, as settings ask.

        Args:
            settings: samples, seed, BatchNorm mode, chunk size, dtype and device.
            split: of the test data as many are used as `test_samples` says, or else `samples`; all
                where the latter asks for more than there are.
            **changes: arguments of `Objective` to be used in place of those of the settings; `data`
                in place of the split.

        Raises:
            InvalidArgumentError: there are no test data, or fewer than `test_samples`.
            RankError: another rank has another model, loss or data.
        """
        data = changes.pop("data", self.data if split == "train" else self.test_data)
        if data is None:
            raise InvalidArgumentError("there are no test data; leave out the split test")
        given: dict[str, Any] = {
            "samples": settings.samples,
            "seed": settings.seed,
            "chunk_size": settings.chunk_size,
            "batchnorm": settings.batchnorm,
            "examine": settings.examine,
            "loss_parameters": self.loss_parameters or settings.loss_parameters,
            "dtype": settings.dtype,
        }
        given |= changes
        # A model in parts stays where its ranks hold it; `auto` would ask for another device.
        in_place = settings.device == "auto" and kind_of(self.model) is not None
        given.setdefault("device", None if in_place else resolve_device(settings.device))
        if split == "train":
            return check_function(Objective(self.model, self.loss, data, **given))
        return check_function(self._over_test_data(data, settings.test_samples, given))

    def _over_test_data(self, data: Data, wanted: int | None, given: dict[str, Any]) -> Objective:
        """Return the objective over as many test samples as wanted, or at most as `given` says."""
        # `samples` is of the training data: a smaller test set is then taken whole.
        everything: dict[str, Any] = {**given, "samples": None}
        if wanted is not None:
            given = {**given, "samples": wanted}
        try:
            return Objective(self.model, self.loss, data, **given)
        except TooFewSamplesError as error:
            if wanted is not None:
                raise InvalidArgumentError(
                    f"test_samples must be at most {error.available}, the size of the test data, "
                    f"got {wanted}"
                ) from error
            return Objective(self.model, self.loss, data, **everything)
