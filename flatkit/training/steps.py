"""Steps over batches: in parts, under autocast, with scaled losses and clipped gradients."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn, optim

from flatkit.errors import NonFiniteError
from flatkit.objective.losses import LossFunction
from flatkit.objective.passes import outputs_of
from flatkit.optim import PerturbedOptimizer
from flatkit.training.config import TrainingConfig
from flatkit.training.precision import autocast, loss_scaler
from flatkit.training.rows import Rows

Parts: TypeAlias = list[Rows]
"""The samples of each part of a batch."""

_SMALLEST_SCALE = 2.0**-16
"""Gradients that overflow float16 although scaled by less are beyond 4e9: no use to go on."""


class BatchSteps:
    """Steps of an optimizer, each with the mean loss over a batch.

    Args:
        model: in training mode.
        optimizer: over its parameters; SAM and GAM go through the batch several times a step.
        loss: values of the samples, or their mean, taken in float32 of what the model computes
            under autocast.
        config: accumulate, precision and max_norm.
        device: of the batches.

    Attributes:
        gradients: gradients of batches so far.
        skipped: steps that were not made so far, because scaled gradients overflowed float16.

    >>> model = nn.Linear(1, 2)
    >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
    >>> from flatkit.objective.losses import CrossEntropy
    >>> settings = {"config": TrainingConfig(accumulate=3), "device": torch.device("cpu")}
    >>> steps = BatchSteps(model, optimizer, loss=CrossEntropy(), **settings)
    >>> _ = steps(Rows(torch.ones(8, 1), torch.ones(8, dtype=torch.long)))  # in parts of 3, 3, 2
    >>> steps.gradients, steps.skipped
    (1, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        loss: LossFunction,
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        self.gradients = self.skipped = 0
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._config, self._device = config, device
        self._scaler = loss_scaler(config.precision, device)

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler.is_enabled()

    def __call__(self, batch: Rows) -> Tensor:
        """Make one step, or where a scaled gradient overflows skip it; return the loss, detached.

        Raises:
            NonFiniteError: a gradient of SAM or GAM is NaN or infinite without scaling, or those
                of any optimizer overflow at every scale.
        """
        parts = batch.parts(self._count(batch.samples))
        scale = self._scaler.get_scale()
        loss = self._step(parts)
        if self.scales:
            # Whether a step was skipped is known by the scale alone, which an overflow halves.
            self._scaler.update()
            self._look_at_scale(scale)
        return loss

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes."""
        state: dict[str, Any] = {"gradients": self.gradients}
        if self.scales:
            state |= {"scaler": self._scaler.state_dict(), "skipped": self.skipped}
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the counts and the scale."""
        self.gradients = state["gradients"]
        if self.scales:
            self._scaler.load_state_dict(dict(state["scaler"]))
            self.skipped = state["skipped"]

    def _count(self, samples: int) -> int:
        """Return the number of parts: of a small last batch so few that each has two samples.

        BatchNorm needs two. Where whole batches have parts of one sample, the last one may too.
        """
        accumulate = self._config.accumulate
        least = 1 if 2 * accumulate > self._config.batch_size else 2
        return max(1, min(accumulate, samples // least))

    def _step(self, parts: Parts) -> Tensor:
        if isinstance(self._optimizer, PerturbedOptimizer):
            # `build_optimizer` gave it `max_norm`: it clips what the
            # base steps with, and not each pass.
            return self._optimizer.step(lambda: self._pass(parts), scaler=self._scaler).detach()
        self._optimizer.zero_grad()
        loss = self._pass(parts)
        if len(parts) == 1:
            self._scaler.scale(loss).backward()
        if self._config.max_norm is not None:
            # The limit is of the gradient itself, not of the scaled one.
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_norm)
        self._scaler.step(self._optimizer)
        return loss.detach()

    def _pass(self, parts: Parts) -> Tensor:
        """Return the mean loss; of several parts the gradients are taken already.

        One part is left to the optimizer, which may differentiate twice.
        """
        self.gradients += 1
        if len(parts) == 1:
            return self._mean(parts[0])
        weight = sum(part.weight for part in parts)
        total = torch.zeros((), device=self._device)
        for part in parts:
            # By weight, as parts may differ in size: the sum is the mean over the whole batch.
            loss = self._mean(part) * (part.weight / weight)
            self._scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _mean(self, part: Rows) -> Tensor:
        if self._config.precision == "float32":
            return part.mean(self._loss(outputs_of(self._model, part.inputs), part.targets))
        with autocast(self._config.precision, self._device):
            outputs = outputs_of(self._model, part.inputs)
        if isinstance(outputs, Tensor):
            # bfloat16 keeps 8 bits, too few for the exponentials of a cross-entropy and their sum.
            outputs = outputs.float()
        return part.mean(self._loss(outputs, part.targets))

    def _look_at_scale(self, before: float) -> None:
        scale = self._scaler.get_scale()
        if scale >= before:
            return
        self.skipped += 1
        if scale < _SMALLEST_SCALE:
            raise NonFiniteError(
                f"gradients overflow float16 although the loss is scaled by {scale:g}"
            )
