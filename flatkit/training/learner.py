"""The inner loop: a model, its optimizer, and epochs of steps that stop at the first NaN."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flatkit.data.dataset import Split
from flatkit.errors import NonFiniteError, TrainingDivergedError
from flatkit.objective.losses import LossFunction
from flatkit.optim import PerturbedOptimizer
from flatkit.training.augmentation import Augmentation, epoch_augmentation
from flatkit.training.batches import epoch_batches
from flatkit.training.config import TrainingConfig
from flatkit.training.rows import Rows
from flatkit.training.schedules import build_rho_schedule, learning_rate
from flatkit.training.steps import BatchSteps

_CHECK_EVERY = 32
"""Steps between looks at the losses: on a GPU each look waits for the device."""


class Learner:
    """A model in training.

    Args:
        model: on the device of the training data; changed in place.
        optimizer: over its parameters; SAM and GAM run the closure several times a step.
        loss: values of the samples.
        train: the training samples, on the device.
        config: seed, batches, precision, learning rate and schedules.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        loss: LossFunction,
        train: Split | Rows,
        config: TrainingConfig,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.on_step: Callable[[nn.Module, int], object] | None = None
        self._train = Rows.of(train)
        device = self._train.device
        self._steps = BatchSteps(model, optimizer, loss=loss, config=config, device=device)
        self._config = config
        self._augmentation: Augmentation | None = None
        self._rho_schedule = build_rho_schedule(config, optimizer)
        # Masks of attention are minus infinity from the start, and adjacencies of graphs sparse.
        self._constants = {name for name, buffer in model.named_buffers() if not _is_finite(buffer)}
        self._averaged: AveragedModel | None = None
        if config.ema:
            # Statistics of BatchNorm are averaged too: those of the last weights fit no average.
            average = _average_of(config.ema)
            self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def average(self) -> nn.Module | None:
        """The model with the moving average of weights and buffers."""
        return None if self._averaged is None else self._averaged.module

    @property
    def rho(self) -> float | None:
        """The radius ρ of the present epoch; None with an optimizer that has none."""
        if not isinstance(self.optimizer, PerturbedOptimizer):
            return None
        return self.optimizer.param_groups[0][self.optimizer.radius_keys[0]]

    @property
    def gradients(self) -> int:
        """Gradients of batches so far."""
        return self._steps.gradients

    @property
    def skipped(self) -> int | None:
        """Steps so far that overflowed and were not made; None where no loss is scaled."""
        return self._steps.skipped if self._steps.scales else None

    def run_epoch(self, epoch: int) -> None:
        """Make one pass over the training samples, in the order of this epoch.

        Raises:
            TrainingDivergedError: a loss or weight is NaN or infinite; names the step.
        """
        lr = learning_rate(self._config, epoch)
        # SAM and GAM share the groups of their base, so that its rate is set here as well.
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._rho_schedule is not None:  # a function of epoch and rate, whatever was before
            self._rho_schedule.load_state_dict({"steps": epoch - 1})
        batches = epoch_batches(
            samples=self._train.samples,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            epoch=epoch,
            device=self._train.device,
        )
        self._augmentation = epoch_augmentation(
            self._config.augment,
            samples=self._train.samples,
            in_shape=self._train.in_shape,
            seed=self._config.seed,
            epoch=epoch,
            device=self._train.device,
        )
        losses = torch.zeros(len(batches), device=self._train.device)
        self.model.train()
        for step, batch in enumerate(batches):
            losses[step] = self._step(batch, epoch=epoch, number=step + 1)
            if self._averaged is not None:
                self._average(self._averaged)
            if self.on_step is not None:
                self._report((epoch - 1) * len(batches) + step + 1, epoch)
            if step % _CHECK_EVERY == 0:
                self._check_losses(losses[: step + 1], epoch)
        # Those since the last look.
        self._check_losses(losses, epoch)
        # The last loss was taken before the last step: what that did, the weights alone show.
        self._check_weights(epoch)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs to go on bit for bit, beside the weights."""
        device = self._train.device
        random = {"torch": torch.get_rng_state()}
        # Dropout on a GPU draws from a generator of its own.
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "device": device.type,
            **self._steps.state(),
        }
        if self._averaged is not None:
            state["average"] = self._averaged.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the optimizer state, the average, the random states and the counts."""
        if self._averaged is not None:
            self._averaged.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        # After the model was built, which drew its initial weights.
        torch.set_rng_state(state["random"]["torch"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self._train.device)
        self._steps.load_state(state)

    def diverged(self, what: str, epoch: int) -> TrainingDivergedError:
        """Return the error that names the epoch, the learning rate and the likely fix."""
        config = self._config
        fix = "lower lr" + (" or rho" if config.rho is not None else "")
        if config.precision == "float16":
            fix += ", or choose precision bfloat16 or float32"
        return TrainingDivergedError(
            f"training diverged: {what} in epoch {epoch} "
            f"(lr {learning_rate(config, epoch):g}); {fix}"
        )

    def _report(self, step: int, epoch: int) -> None:
        assert self.on_step is not None
        try:
            self.on_step(self.model, step)
        except NonFiniteError as error:
            raise self.diverged(f"{error} (after step {step} of the run)", epoch) from error

    def _step(self, batch: Tensor, *, epoch: int, number: int) -> Tensor:
        rows = self._train.take(batch)
        if self._augmentation is not None:
            start = (number - 1) * self._config.batch_size
            rows = replace(rows, inputs=self._augmentation(rows.inputs, start))
        try:
            return self._steps(rows)
        except NonFiniteError as error:
            raise self.diverged(f"{error} at step {number}", epoch) from error

    def _average(self, averaged: AveragedModel) -> None:
        averaged.update_parameters(self.model)
        own = dict(self.model.named_buffers())
        for name, buffer in averaged.module.named_buffers():
            if name in self._constants:  # between two infinite entries there is no number
                buffer.copy_(own[name])

    def _check_losses(self, losses: Tensor, epoch: int) -> None:
        finite = losses.isfinite()
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0])
            raise self.diverged(f"the loss is {losses[step]:g} at step {step + 1}", epoch)

    def _check_weights(self, epoch: int) -> None:
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if name not in self._constants and not _is_finite(tensor):
                raise self.diverged(f"{name} is NaN or infinite at the last step", epoch)


def _is_finite(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and bool(tensor.isfinite().all())


def _average_of(decay: float) -> Callable[..., None]:
    """Return what moves an average towards a model; sparse buffers, which torch moves not, stay."""
    plain = get_ema_multi_avg_fn(decay)

    def move(averages: Sequence[Tensor], tensors: Sequence[Tensor], count: Any) -> None:
        pairs = [p for p in zip(averages, tensors, strict=True) if p[1].layout is torch.strided]
        plain([mine for mine, _ in pairs], [own for _, own in pairs], count)

    return move
