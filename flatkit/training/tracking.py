"""Curvature along a training: the top eigenvalues every so many steps, each from the last."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from flatkit.checks import check_count, check_positive
from flatkit.hessian import HessianOperator
from flatkit.objective import Data, Loss, Objective
from flatkit.spectrum import lanczos


@dataclass(frozen=True)
class TrackedCurvature:
    """The top eigenvalues at one step.

    Attributes:
        step: of the training.
        values: largest first.
        errors: their residuals.
        status: `converged` or `budget`.
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
        data: likewise; a fixed part of the training data.
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
        loss: str | Loss,
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
        objective = Objective(model, self._loss, self._data, probe=not self.history)
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
