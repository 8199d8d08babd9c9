"""Perturbed steps in Lightning: its automatic optimization hands the optimizer a closure already.

What its interface does not allow, and what is therefore refused at the start of a fit: loss
scaling (`16-mixed`: Lightning calls the closure itself, once, and steps without it),
`accumulate_grad_batches` above 1 (the batches before the last are over when the step begins), and
`gradient_clip_val` (each pass would be clipped; `max_norm` of the optimizer clips what the base
uses). `mode="exact"` needs `engine="central_difference"`, as the closure calls `backward()`.
In manual optimization none of this applies: loop over `optimizer.gradient_passes()`.
"""

from typing import TYPE_CHECKING, Any

from flatkit.errors import InvalidArgumentError
from flatkit.optim import PerturbedOptimizer

if TYPE_CHECKING:
    from flatkit.integrations.lightning_callback import CurvatureCallback as CurvatureCallback


def __getattr__(name: str) -> Any:
    """Return `CurvatureCallback`, which imports the library; the mixin does without."""
    if name == "CurvatureCallback":
        from flatkit.integrations.lightning_callback import CurvatureCallback

        return CurvatureCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class PerturbedModuleMixin:
    """Stands before `LightningModule` in the bases of a module that trains with SAM or GAM.

    `training_step` runs once a pass. What it logs with `self.log` and `self.log_dict` is kept of
    the first pass, at the weights as they are; in the passes at perturbed weights it is dropped.
    The `outputs` of `on_train_batch_end` are those of the last pass: Lightning keeps no others.

    Give the optimizer `model=self`, so that BatchNorm counts each batch once:

        class Net(PerturbedModuleMixin, LightningModule):
            def configure_optimizers(self):
                return GAM(torch.optim.SGD(self.parameters(), lr=0.1), model=self)
    """

    trainer: Any

    def on_fit_start(self) -> None:
        """Refuse settings of the trainer under which a perturbed step would be wrong.

        Raises:
            InvalidArgumentError: they scale the loss, accumulate gradients or clip each pass.
        """
        # In manual optimization the user makes the passes, and clips and scales as they like.
        if self._perturbed() and getattr(self, "automatic_optimization", True):
            _check(self.trainer)
        parent: Any = super()
        parent.on_fit_start()

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log, unless the weights are perturbed."""
        # The passes are counted from 0, which is the one at the weights as they are.
        if not any(optimizer.gradient_pass for optimizer in self._perturbed()):
            parent: Any = super()
            parent.log(*args, **kwargs)

    def _perturbed(self) -> list[PerturbedOptimizer]:
        try:
            optimizers = self.trainer.optimizers
        except RuntimeError:  # Lightning's answer of a module that no trainer has
            return []
        return [o for o in optimizers if isinstance(o, PerturbedOptimizer)]


def _check(trainer: Any) -> None:
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise InvalidArgumentError(
            f"precision {trainer.precision} scales the loss, and Lightning then steps without a "
            "closure; use bf16-mixed, or manual optimization with optimizer.gradient_passes(scaler)"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InvalidArgumentError(
            f"accumulate_grad_batches must be 1, got {trainer.accumulate_grad_batches}: the "
            "perturbation would see the last batch alone; use larger batches, or manual "
            "optimization with optimizer.gradient_passes()"
        )
    if trainer.gradient_clip_val:
        raise InvalidArgumentError(
            f"gradient_clip_val must be None, got {trainer.gradient_clip_val}: each pass would be "
            "clipped; give max_norm to the optimizer"
        )
