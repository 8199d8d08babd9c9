"""The objects that the measures of one analysis share: objectives, Hessian, eigenvectors."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from flatkit.devices import resolve_device
from flatkit.errors import NonFiniteError
from flatkit.hessian import HessianOperator
from flatkit.integrations.pyhessian import pyhessian_eigenvalues
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.function import Objective
from flatkit.objective.task import Task
from flatkit.results import Cost
from flatkit.spectrum import lanczos, power_iteration
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.lobpcg import lobpcg
from flatkit.spectrum.operators import check_symmetric

Progress = Callable[[str, int, int], object]
"""Called with the measure, the steps done and the steps in all."""


class Session:
    """A task under analysis; everything is computed once, when it is first needed."""

    def __init__(
        self, task: Task, settings: AnalysisSettings, progress: Progress | None = None
    ) -> None:
        self.task, self.settings, self._progress = task, settings, progress
        self.noise: dict[str, float] = {}  # of the gradient, by geometry
        self.objective = Objective(
            task.model,
            task.loss,
            task.data,
            samples=settings.samples,
            seed=settings.seed,
            batchnorm=settings.batchnorm,
            chunk_size=settings.chunk_size,
            dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
            device=resolve_device(settings.device),
        )

    @cached_property
    def test_objective(self) -> Objective | None:
        """The objective over the test data, if there are any."""
        if self.task.test_data is None:
            return None
        return Objective(
            self.task.model,
            self.task.loss,
            self.task.test_data,
            chunk_size=self.settings.chunk_size,
            dtype=self.objective.dtype,
            device=self.objective.device,
        )

    @cached_property
    def hessian(self) -> HessianOperator:
        """The Hessian at the checkpoint, found symmetric."""
        hessian = HessianOperator(self.objective, memory=self.settings.memory)
        check_symmetric(hessian, generator=self.generator("symmetry"))
        return hessian

    @cached_property
    def curved(self) -> Objective:
        """The objective whose curvature is measured: of all parameters, or of some."""
        params = self.settings.params
        return self.objective.block(params) if params else self.objective

    @cached_property
    def curvature(self) -> HessianOperator:
        """The Hessian, or its block, that the curvature measures are about."""
        if not self.settings.params:
            return self.hessian
        block = HessianOperator(self.curved, memory=self.settings.memory)
        check_symmetric(block, generator=self.generator("symmetry"))
        return block

    @cached_property
    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss and gradient [P] at the checkpoint, both finite."""
        loss, gradient = self.objective.loss_and_gradient()
        if not math.isfinite(loss) or not gradient.isfinite().all():
            raise NonFiniteError(
                f"the loss ({loss}) or its gradient is NaN or infinite at the checkpoint; "
                "the training diverged, analyze an earlier checkpoint"
            )
        return loss, gradient

    @property
    def gradient(self) -> Tensor:
        """The gradient [P] at the checkpoint."""
        return self.loss_and_gradient[1]

    @cached_property
    def top(self) -> Estimate:
        """The largest eigenvalues, as the settings ask."""
        return self.eigenvalues(self.curvature)

    def eigenvalues(self, hessian: HessianOperator, *, method: str | None = None) -> Estimate:
        """Return the largest eigenvalues of a Hessian, as the settings ask."""
        settings = self.settings
        method = method or settings.method
        if method == "pyhessian":
            return pyhessian_eigenvalues(
                hessian.objective, k=settings.num_eigenvalues, seed=settings.seed
            )
        methods = {"power": power_iteration, "lobpcg": lobpcg}
        return methods.get(method, lanczos)(
            hessian,
            k=settings.num_eigenvalues,
            tolerance=settings.tolerance,
            max_matvecs=settings.max_matvecs,
            generator=self.generator("eigenvalues"),
        )

    def draw(self, number: int) -> HessianOperator:
        """Return the curvature over another draw of the samples."""
        settings = self.settings
        other = Objective(
            self.task.model,
            self.task.loss,
            self.task.data,
            samples=settings.samples,
            seed=settings.seed + number,
            batchnorm=settings.batchnorm,
            chunk_size=settings.chunk_size,
            dtype=self.objective.dtype,
            device=self.objective.device,
        )
        other.tally = self.objective.tally
        part = other.block(settings.params) if settings.params else other
        part.tally = self.objective.tally
        return HessianOperator(part, memory=settings.memory)

    def generator(self, purpose: str) -> torch.Generator:
        """Return the random stream of one purpose, the same whatever else is measured."""
        digest = hashlib.sha256(f"{self.settings.seed}:{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def report(self, measure: str, done: int, total: int) -> None:
        """Tell whoever listens how far a measure is."""
        if self._progress is not None:
            self._progress(measure, done, total)

    @contextmanager
    def meter(self) -> Iterator[Callable[[], Cost]]:
        """Yield a function that returns the cost since the start of the block."""
        started, before = time.perf_counter(), self.objective.tally.copy()

        def cost() -> Cost:
            spent = self.objective.tally.since(before)
            return Cost(
                gradients=spent.gradients,
                matvecs=spent.matvecs,
                losses=spent.losses,
                seconds=time.perf_counter() - started,
            )

        yield cost
