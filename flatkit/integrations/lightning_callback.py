"""`CurvatureCallback` of Lightning: curvature along a fit, to the loggers of its trainer.

Only this file of flatkit imports Lightning, and only when the callback is asked for: as
`lightning`, or as `pytorch_lightning` where a program has imported that one.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError, MissingDependencyError
from flatkit.integrations.intervals import Intervals
from flatkit.objective.losses import LossFunction
from flatkit.training.tracking import TRACKED, CurvatureTracker, Tracked

_SAMPLES = 256
"""Samples at most: what a gradient of a common batch takes."""


def _library() -> ModuleType:
    names = ("lightning.pytorch", "pytorch_lightning")
    # What is loaded first: the trainer of one package does not take callbacks of the other.
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise MissingDependencyError(
        "the callback of Lightning needs lightning: pip install 'flatkit[integrations]'"
    )


_Callback: Any = _library().Callback


class CurvatureCallback(_Callback):
    """Logs the top Hessian eigenvalue, the trace and the norm of the gradient during a fit.

        Trainer(callbacks=[CurvatureCallback("cross_entropy", every_n_steps=200)])

    Every logger of the trainer gets `curvature/top_eigenvalue`, `curvature/trace`,
    `curvature/gradient_norm` and `curvature/loss`: CSV, TensorBoard, W&B, MLflow. They are of the
    same samples each time, in eval mode. Weights, gradients, buffers, the state of the optimizer
    and random states stay as they are: the fit ends with the same bits as without. With several
    devices the first process measures. A measurement that fails is left out, which a warning says
    once.

    Args:
        loss: as `flatkit.Objective` takes it: a name, or a function of outputs and targets.
        data: a fixed part of the training data; by default the first batch that the fit meets.
        every_n_steps: optimizer steps between measurements.
        every_n_epochs: instead of steps.
        model: the part of the module whose outputs the loss takes, e.g. `"net"`, or a function of
            the module that returns it; by default what `forward` gives.
        measures: of `top_eigenvalue`, `trace` and `gradient_norm`.
        samples: how many of the data at most.
        max_share: of the time of the fit, that measurements may take; they become rarer to keep it.
            None keeps to the steps.
        **settings: more of `flatkit.CurvatureTracker`.

    Attributes:
        tracker: the `CurvatureTracker`, with its `history`; None before the first measurement.

    Raises:
        InvalidArgumentError: a setting is out of range, or both intervals are given.

    >>> CurvatureCallback("mse", every_n_steps=5, every_n_epochs=1)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: give one of every_n_steps and every_n_epochs, not both
    """

    def __init__(
        self,
        loss: str | LossFunction,
        data: Any = None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        model: str | Callable[[nn.Module], nn.Module] | None = None,
        measures: Sequence[Tracked] = TRACKED,
        samples: int | None = _SAMPLES,
        max_share: float | None = 0.03,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._intervals = Intervals(every_n_steps, every_n_epochs, settings)
        self._loss, self._data, self._model = loss, data, model
        self._settings: dict[str, Any] = {
            "measures": measures,
            "samples": samples,
            "max_share": max_share,
            **settings,
        }
        CurvatureTracker(loss, data, **self._settings)  # refuses wrong settings before the fit
        self.tracker: CurvatureTracker | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count the time, if the data are known."""
        if self._data is not None:
            self._begin(self._data)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch, where no data were given."""
        if self.tracker is None:
            self._begin(_kept(batch))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure and log, if this step is one to measure at."""
        if self._intervals.step(trainer.global_step):
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure and log, if this epoch is one to measure at."""
        # Lightning counts epochs from 0.
        if self._intervals.epoch(trainer.current_epoch + 1):
            self._look(trainer, pl_module)

    def _begin(self, data: Any) -> None:
        if self.tracker is None:
            self.tracker = CurvatureTracker(self._loss, data, **self._settings)
            self.tracker.begin()

    def _look(self, trainer: Any, module: Any) -> None:
        # The weights are alike on all devices; one of them measures.
        if not trainer.is_global_zero or self.tracker is None:
            return
        with _apart(module):
            found = self.tracker.look(lambda: self._part(module), trainer.global_step)
        if found is not None:
            for logger in trainer.loggers:
                logger.log_metrics(found.scalars(), step=trainer.global_step)

    def _part(self, module: Any) -> nn.Module:
        if self._model is None:
            return module
        part = self._model(module) if callable(self._model) else _named(module, self._model)
        if not isinstance(part, nn.Module):
            raise InvalidArgumentError(
                f"model must name a part of the module, got a {type(part).__name__}"
            )
        return part


def _named(module: nn.Module, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        known = ", ".join(name for name, _ in module.named_children())
        raise InvalidArgumentError(
            f"the module has no part {path!r}; its parts are {known}"
        ) from error


@contextmanager
def _apart(module: Any) -> Any:
    """Take the trainer off a module, so that a copy of the module is not one of all the fit."""
    names = [name for name in ("_trainer", "_fabric") if name in vars(module)]
    held = {name: vars(module)[name] for name in names}
    try:
        # Not by the property, whose setter would tell every module inside.
        vars(module).update(dict.fromkeys(names))
        yield
    finally:
        vars(module).update(held)


def _kept(batch: Any) -> Any:
    """Return a copy of a batch that later steps do not change."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, list | tuple):
        parts = [_kept(part) for part in batch]
        return tuple(parts)
    if isinstance(batch, dict):
        return {key: _kept(value) for key, value in batch.items()}
    return batch
