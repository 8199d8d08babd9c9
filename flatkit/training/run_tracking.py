"""Curvature along a run of the trainer: `curvature.json` beside its checkpoint, and TensorBoard."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.errors import ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.objective.losses import CrossEntropy
from flatkit.objective.reading.samples import Data
from flatkit.training.config import TrainingConfig
from flatkit.training.data import changes_of, training_data
from flatkit.training.folder import RunFolder
from flatkit.training.history import read_history
from flatkit.training.logs import ScalarLog, check_logs
from flatkit.training.material import taken_task
from flatkit.training.tracking import CurvatureTracker, TrackedCurvature

SCHEMA = 1
_SAMPLES = 512
"""Training samples at most that a tracked run is measured on."""


@final
class RunTracker:
    """Tracks a run of `flatkit.training.train` and leaves `curvature.json` beside its checkpoint.

    Measured are the loss of the training, over up to 512 of its samples that the seed of the run
    chooses. Where the run is logged to TensorBoard they are too, as its run `curvature`, by
    steps. A run that is resumed keeps what was measured until its last whole epoch; the next
    measurement starts cold.

    Args:
        config: of the run; for a resumed one, with the epochs that it will have.
        out: its folder.
        every: steps between measurements.
        resume: go on after the last whole epoch in `out`.
        settings: more of `CurvatureTracker`.

    >>> import tempfile
    >>> from flatkit.training.run import train
    >>> config, out = TrainingConfig(data="gaussians", epochs=1, device="cpu"), tempfile.mkdtemp()
    >>> tracker = RunTracker(config, out, every=2)
    >>> outcome = train(config, out, on_step=tracker)
    >>> [row["step"] for row in json.loads((Path(out) / "curvature.json").read_text())["rows"]]
    [2, 4]
    """

    def __init__(
        self,
        config: TrainingConfig,
        out: str | Path,
        *,
        every: int,
        resume: bool = False,
        **settings: Any,
    ) -> None:
        check_count("every", every)
        loss, data, samples = _measured(config)
        generator = torch.Generator().manual_seed(config.seed)
        # By the seed of the run, so that a resumed one is measured on the same samples.
        chosen = torch.randperm(samples, generator=generator)[:_SAMPLES].sort().values
        self._tracker = CurvatureTracker(
            loss,
            data(chosen),
            every=every,
            seed=config.seed,
            **settings,
        )
        self._folder, self._samples = RunFolder(Path(out)), len(chosen)
        check_logs(config.log)
        self._every, self._logs = every, "tensorboard" in config.log
        self._log: ScalarLog | None = None
        if resume and self._folder.curvature.exists():
            # Rounded up: the last batch of an epoch may be short.
            steps = len(read_history(self._folder.history)) * -(-samples // config.batch_size)
            rows = _read_rows(self._folder.curvature)
            self._tracker.history += [row for row in rows if row.step <= steps]

    @property
    def history(self) -> tuple[TrackedCurvature, ...]:
        """What was measured so far, also before a resumption."""
        return tuple(self._tracker.history)

    def __call__(self, model: nn.Module, step: int) -> None:
        """Measure and write, if the step is one of those to measure at.

        Raises:
            NonFiniteError: the weights are NaN or infinite.
        """
        if step % self._every:
            return
        before = len(self._tracker.history)
        found = self._tracker.measure(model, step)
        rows = [asdict(row) for row in self._tracker.history]
        content = {"schema": SCHEMA, "samples": self._samples, "rows": rows}
        # After each measurement, which took longer than the file does.
        write_text_atomically(self._folder.curvature, json.dumps(content, indent=1) + "\n")
        if self._logs:
            if self._log is None:  # only now: a run that is refused must leave no file
                last = self._tracker.history[before - 1].step if before else 0
                self._log = ScalarLog(self._folder.curvature_log, after=last)
            self._log(found.scalars(), step)

    def close(self) -> None:
        """Close the log of TensorBoard, if there is one."""
        if self._log is not None:
            self._log.close()


def _measured(config: TrainingConfig) -> tuple[Any, Callable[[Tensor], Data], int]:
    """Return the loss of a training, its samples by their rows, and how many there are."""
    if config.task is not None:
        found = taken_task(config, config.task).changed(changes_of(config))
        return found.task.loss, found.train.rows, len(found.train)
    split, loss = training_data(config).train, CrossEntropy(label_smoothing=config.label_smoothing)
    return loss, lambda rows: (split.inputs[rows], split.targets[rows]), split.samples


def _read_rows(path: Path) -> list[TrackedCurvature]:
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return [TrackedCurvature(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} does not hold tracked eigenvalues ({error}); remove it"
        ) from error
