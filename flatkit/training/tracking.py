"""Curvature along a training: the top eigenvalues every so many steps, each from the last."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from flatkit.checks import check_count, check_positive
from flatkit.data import DATASETS
from flatkit.errors import ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.hessian import HessianOperator
from flatkit.objective.function import Objective
from flatkit.objective.losses import CrossEntropy, LossFunction
from flatkit.objective.reading.samples import Data
from flatkit.spectrum import lanczos
from flatkit.training.config import TrainingConfig
from flatkit.training.folder import RunFolder
from flatkit.training.history import read_history

SCHEMA = 1
_SAMPLES = 512
"""Training samples at most that a tracked run is measured on."""


@dataclass(frozen=True)
class TrackedCurvature:
    """The top eigenvalues at one step.

    Attributes:
        step: of the training.
        values: largest first.
        errors: their residuals.
        status: as of `flatkit.spectrum.Estimate`.
        matvecs: products that it took.
    """

    step: int
    values: tuple[float, ...]
    errors: tuple[float, ...]
    status: str
    matvecs: int


@final
class CurvatureTracker:
    """Measures the top k Hessian eigenvalues of a model in training, for any loop.

    Each measurement starts from the eigenvectors of the one before, which saves products as long
    as the weights move little between them. The model is copied; nothing of it is changed.

    Args:
        loss: as `flatkit.Objective` takes it.
        data: as `loss`; a fixed part of the training data.
        every: steps between measurements.
        k: how many eigenvalues.
        tolerance: on their residual, relative to the largest magnitude.
        max_matvecs: products of one measurement at most.
        warm: start from the last eigenvectors.
        seed: of the random part of the starts.

    Attributes:
        history: what was measured, in order.

    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> tracker = CurvatureTracker("mse", data, every=10)
    >>> model = nn.Linear(1, 1, bias=False)
    >>> [tracker.step(model, step) is not None for step in (1, 10, 11)]
    [False, True, False]
    >>> tracker.history[0].values
    (5.0,)
    """

    def __init__(
        self,
        loss: str | LossFunction,
        data: Data,
        *,
        every: int = 100,
        k: int = 1,
        tolerance: float = 1e-2,
        max_matvecs: int = 200,
        warm: bool = True,
        seed: int = 0,
    ) -> None:
        check_count("every", every)
        check_count("k", k)
        check_positive("tolerance", tolerance)
        self._loss, self._data, self._every, self._k = loss, data, every, k
        self._tolerance, self._max_matvecs = tolerance, max_matvecs
        self._warm, self._seed = warm, seed
        self._vectors: Tensor | None = None
        self.history: list[TrackedCurvature] = []

    def step(self, model: nn.Module, step: int) -> TrackedCurvature | None:
        """Measure if the step is one of those to measure at.

        Raises:
            NonFiniteError: the weights are NaN or infinite.
        """
        return self.measure(model, step) if step % self._every == 0 else None

    def measure(self, model: nn.Module, step: int) -> TrackedCurvature:
        """Measure now."""
        objective = Objective(model, self._loss, self._data, examine=not self.history)
        found = lanczos(
            HessianOperator(objective),
            k=self._k,
            tolerance=self._tolerance,
            max_matvecs=self._max_matvecs,
            initial=self._vectors if self._warm else None,
            generator=torch.Generator().manual_seed(self._seed + step),
        )
        self._vectors = found.vectors
        self.history.append(
            TrackedCurvature(
                step,
                tuple(found.value.tolist()),
                tuple(found.error.tolist()),
                found.status,
                found.matvecs,
            )
        )
        return self.history[-1]


@final
class RunTracker:
    """Tracks a run of `flatkit.training.train` and leaves `curvature.json` beside its checkpoint.

    Measured are the loss of the training, over up to 512 of its samples that the seed of the run
    chooses. A run that is resumed keeps what was measured until its last whole epoch; the next
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
        split = DATASETS.build(config.data, **config.data_arguments).train
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(split.samples, generator=generator)[:_SAMPLES].sort().values
        self._tracker = CurvatureTracker(
            CrossEntropy(label_smoothing=config.label_smoothing),
            (split.inputs[chosen], split.targets[chosen]),
            every=every,
            seed=config.seed,
            **settings,
        )
        self._folder, self._samples = RunFolder(Path(out)), len(chosen)
        if resume and self._folder.curvature.exists():
            steps = len(read_history(self._folder.history)) * -(-split.samples // config.batch_size)
            rows = _read_rows(self._folder.curvature)
            self._tracker.history += [row for row in rows if row.step <= steps]

    def __call__(self, model: nn.Module, step: int) -> None:
        """Measure and write, if the step is one of those to measure at."""
        if self._tracker.step(model, step) is None:
            return
        rows = [asdict(row) for row in self._tracker.history]
        content = {"schema": SCHEMA, "samples": self._samples, "rows": rows}
        write_text_atomically(self._folder.curvature, json.dumps(content, indent=1) + "\n")


def _read_rows(path: Path) -> list[TrackedCurvature]:
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return [TrackedCurvature(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} does not hold tracked eigenvalues ({error}); remove it"
        ) from error
