"""`CurvatureCallback` of Hugging Face transformers: curvature along a training, by its `log`.

Only this file of flatkit imports transformers, and only when the callback is asked for.
"""

from collections.abc import Sequence
from typing import Any

import torch

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError, MissingDependencyError
from flatkit.integrations.intervals import Intervals
from flatkit.objective.losses import LossFunction
from flatkit.objective.reading.randomness import undisturbed
from flatkit.training.tracking import TRACKED, CurvatureTracker, Tracked

try:
    from transformers import TrainerCallback as _TrainerCallback
except ImportError as error:
    raise MissingDependencyError(
        "the callback of Hugging Face needs transformers: pip install 'flatkit[integrations]'"
    ) from error

_Base: Any = _TrainerCallback
_SAMPLES = 64
"""Samples at most; sequences are long."""


class CurvatureCallback(_Base):
    """Logs the top Hessian eigenvalue, the trace and the norm of the gradient during a training.

        trainer = Trainer(model, arguments, train_dataset=data)
        CurvatureCallback(every_n_steps=200).attach(trainer)
        trainer.train()

    The trainer's own `log` gets `curvature/top_eigenvalue`, `curvature/trace`,
    `curvature/gradient_norm` and `curvature/loss`, and hands them to what `report_to` names:
    TensorBoard, W&B, MLflow. They are of the same samples each time, in eval mode. Weights,
    gradients, buffers, the state of the optimizer and random states stay as they are: the training
    ends with the same bits as without. With several devices the first process measures. A
    measurement that fails is left out, which a warning says once.

    Args:
        loss: as `flatkit.Objective` takes it; by default the loss that the model returns.
        data: a fixed part of the training data: a batch, or a data set of samples that can be
            stacked; by default `samples` of the training data, put together by the collator of the
            trainer.
        every_n_steps: optimizer steps between measurements.
        every_n_epochs: instead of steps.
        measures: of `top_eigenvalue`, `trace` and `gradient_norm`.
        samples: how many of the data at most.
        max_share: of the time of the training, that measurements may take; they become rarer to
            keep it. None keeps to the steps.
        **settings: more of `flatkit.CurvatureTracker`.

    Attributes:
        tracker: the `CurvatureTracker`, with its `history`; None before the training.

    Raises:
        InvalidArgumentError: a setting is out of range, or both intervals are given.
    """

    def __init__(
        self,
        loss: str | LossFunction = "model",
        data: Any = None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        measures: Sequence[Tracked] = TRACKED,
        samples: int = _SAMPLES,
        max_share: float | None = 0.03,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._intervals = Intervals(every_n_steps, every_n_epochs, settings)
        self._samples = check_count("samples", samples)
        self._loss, self._data = loss, data
        self._settings: dict[str, Any] = {"measures": measures, "max_share": max_share, **settings}
        CurvatureTracker(loss, data, **self._settings)  # refuses wrong settings before the training
        self._trainer: Any = None
        self.tracker: CurvatureTracker | None = None

    def attach(self, trainer: Any) -> "CurvatureCallback":
        """Add this callback to a trainer, whose `log` it will use; return the callback."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the samples, and begin to count the time.

        Raises:
            InvalidArgumentError: the callback knows no trainer, or the data have no length.
        """
        if self._trainer is None:
            raise InvalidArgumentError(
                "a callback of transformers is not told its trainer, whose log it needs: leave it "
                "out of `callbacks`, and call CurvatureCallback(...).attach(trainer)"
            )
        # A second call of `train` goes on with the same samples and history.
        if self.tracker is None:
            data = self._data
            if data is None:
                data = _drawn(kwargs["train_dataloader"], self._samples, self._settings)
            given: dict[str, Any] = {"samples": None if self._data is None else self._samples}
            self.tracker = CurvatureTracker(self._loss, data, **{**given, **self._settings})
            self.tracker.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, if this step is one to measure at."""
        if self._intervals.step(state.global_step):
            self._look(kwargs["model"], state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, if this epoch is one to measure at."""
        # A sum of shares of an epoch, a whole number but for rounding.
        if self._intervals.epoch(round(state.epoch)):
            self._look(kwargs["model"], state, control)

    def _look(self, model: Any, state: Any, control: Any) -> None:
        # The weights are alike on all processes; measured once, the others wait at their next step.
        if self.tracker is None or not state.is_world_process_zero:
            return
        found = self.tracker.look(model, state.global_step)
        if found is None:
            return
        due = control.should_log  # which `log` takes for done
        self._trainer.log(found.scalars())
        control.should_log = due


@undisturbed()
def _drawn(loader: Any, samples: int, settings: dict[str, Any]) -> Any:
    """Return a batch of samples of the training data, drawn by the seed."""
    dataset = loader.dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InvalidArgumentError(
            "samples of data without a length cannot be drawn; give `data`, a batch of them"
        )
    generator = torch.Generator().manual_seed(settings.get("seed", 0))
    chosen = torch.randperm(len(dataset), generator=generator)[:samples].sort().values
    batch = loader.collate_fn([dataset[int(index)] for index in chosen])
    # A `BatchEncoding` has keys and is no dict.
    return dict(batch) if hasattr(batch, "keys") else batch
