"""Perturbed steps in the `Trainer` of Hugging Face transformers.

The trainer computes gradients in `training_step` and steps without a closure, so all the passes of
a step are taken there: afterwards the weights are back and `.grad` holds the combined gradient,
which the trainer clips (`max_grad_norm`) and hands to the optimizer as any other.

What its interface does not allow, and what is refused for that reason: `fp16` (accelerate unscales
the gradients itself, a second time), DeepSpeed and FSDP (they own the gradients). `mode="exact"`
needs `engine="central_difference"`, because the trainer calls `backward()`.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.optim import PerturbedOptimizer

if TYPE_CHECKING:
    from flatkit.integrations.hugging_face_callback import CurvatureCallback as CurvatureCallback


def __getattr__(name: str) -> Any:
    """Return `CurvatureCallback`, which imports the library; the mixin does without."""
    if name == "CurvatureCallback":
        from flatkit.integrations.hugging_face_callback import CurvatureCallback

        return CurvatureCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class PerturbedTrainerMixin:
    """Stands before `Trainer` in the bases of a trainer that takes SAM, GAM or a relative.

        class GamTrainer(PerturbedTrainerMixin, Trainer): ...

        optimizer = GAM(torch.optim.AdamW(model.parameters(), lr=3e-5), model=model)
        GamTrainer(model, args, train_dataset=data, optimizers=(optimizer, None)).train()

    With `gradient_accumulation_steps` above 1 there is one perturbation over the whole effective
    batch: its parts wait until the last has come, and each pass goes through all of them. The loss
    that the trainer reports is that at the weights as they are.

    Any other optimizer is left to the trainer.
    """

    optimizer: Any
    accelerator: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, without parts of a batch that an interrupted training has left."""
        self._waiting: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        parent: Any = super()
        return parent.train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Take all passes of a step, and return the loss of the first.

        Raises:
            InvalidArgumentError: the trainer scales the loss, or another library steps.
        """
        parent: Any = super()
        optimizer = _inner(self.optimizer)
        if not isinstance(optimizer, PerturbedOptimizer):
            return parent.training_step(model, inputs, *args, **kwargs)
        _check(self)
        # The parts of a batch must stay until each pass has gone through all of them.
        self._waiting.append((inputs, args, kwargs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.accelerator.device)  # the last part reports the loss
        # Emptied first: an error in a pass must leave nothing for the next step.
        waiting, self._waiting = self._waiting, []
        first: Tensor | None = None
        for _ in optimizer.gradient_passes():
            losses = [parent.training_step(model, part, *a, **k) for part, a, k in waiting]
            # The trainer has divided each by the number of parts.
            first = torch.stack(losses).sum() if first is None else first
        assert first is not None  # there is always a first pass
        return first


def _inner(optimizer: Any) -> Any:
    """Return the optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _check(trainer: Any) -> None:
    # accelerate makes one for fp16 alone.
    if trainer.accelerator.scaler is not None:
        raise InvalidArgumentError(
            "fp16 scales the loss, and accelerate would unscale the gradients twice; use bf16"
        )
    kind = str(getattr(trainer.accelerator, "distributed_type", "")).upper()
    if any(name in kind for name in ("DEEPSPEED", "FSDP", "MEGATRON")):
        raise InvalidArgumentError(
            f"{kind.rpartition('.')[2]} owns the gradients, so no other optimizer can combine "
            "them; use one process or DistributedDataParallel"
        )
