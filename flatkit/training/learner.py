"""The inner loop: a model, its optimizer, and epochs of steps that stop at the first NaN."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim

from flatkit.data.dataset import Split
from flatkit.errors import NonFiniteError, TrainingDivergedError
from flatkit.losses import Loss
from flatkit.training.batches import epoch_batches
from flatkit.training.batchnorm import frozen_statistics
from flatkit.training.config import TrainingConfig
from flatkit.training.schedules import learning_rate

_CHECK_EVERY = 32
"""Steps between looks at the losses: on a GPU each look waits for the device."""


class Learner:
    """A model in training.

    Args:
        model: on the device of the training data; changed in place.
        optimizer: over its parameters; SAM and GAM run the closure several times a step.
        loss: values of the samples.
        train: the training samples, on the device.
        config: seed, batch size, learning rate and schedule.

    Attributes:
        gradients: mini-batch gradients so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        loss: Loss,
        train: Split,
        config: TrainingConfig,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.gradients = 0
        self.on_step: Callable[[nn.Module, int], object] | None = None
        self._loss = loss
        self._train = train
        self._config = config

    def run_epoch(self, epoch: int) -> None:
        """Make one pass over the training samples, in the order of this epoch.

        Raises:
            TrainingDivergedError: a loss or weight is NaN or infinite; names the step.
        """
        lr = learning_rate(self._config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = epoch_batches(
            samples=self._train.samples,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            epoch=epoch,
            device=self._train.targets.device,
        )
        losses = torch.zeros(len(batches), device=self._train.targets.device)
        self.model.train()
        for step, batch in enumerate(batches):
            losses[step] = self._step(batch, epoch=epoch, number=step + 1)
            if self.on_step is not None:
                self._report((epoch - 1) * len(batches) + step + 1, epoch)
            if step % _CHECK_EVERY == 0:
                self._check_losses(losses[: step + 1], epoch)
        self._check_losses(losses, epoch)
        self._check_weights(epoch)
        self.gradients += len(batches) * getattr(self.optimizer, "passes", 1)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs to go on bit for bit, beside the weights."""
        device = self._train.targets.device
        random = {"torch": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return {
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "gradients": self.gradients,
            "device": device.type,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the optimizer state, the random states and the count of gradients."""
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["torch"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self._train.targets.device)
        self.gradients = state["gradients"]

    def diverged(self, what: str, epoch: int) -> TrainingDivergedError:
        """Return the error that names the epoch, the learning rate and the likely fix."""
        config = self._config
        fix = "lower lr" + (" or rho" if config.rho is not None else "")
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
        inputs = self._train.inputs.index_select(0, batch)
        targets = self._train.targets.index_select(0, batch)

        def mean_loss() -> Tensor:
            perturbed = getattr(self.optimizer, "gradient_pass", 0) > 0
            with frozen_statistics(self.model) if perturbed else nullcontext():
                return self._loss(self.model(inputs), targets).mean()

        if self._config.optimizer in ("sam", "gam"):
            step: Any = self.optimizer.step  # torch annotates a closure that returns a float
            try:
                return step(mean_loss).detach()
            except NonFiniteError as error:
                raise self.diverged(f"{error} at step {number}", epoch) from error
        self.optimizer.zero_grad()
        loss = mean_loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _check_losses(self, losses: Tensor, epoch: int) -> None:
        finite = losses.isfinite()
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0])
            raise self.diverged(f"the loss is {losses[step]:g} at step {step + 1}", epoch)

    def _check_weights(self, epoch: int) -> None:
        for name, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise self.diverged(f"{name} is NaN or infinite at the last step", epoch)
