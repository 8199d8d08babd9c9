"""What the measures of one analysis share; each thing is computed once, when it is first needed."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.flatness.functions import product_cost
from flatkit.flatness.geometry import Geometry, geometry_of
from flatkit.hessian.operator import HessianOperator
from flatkit.integrations.pyhessian import pyhessian_eigenvalues
from flatkit.measures.ball import Ball, prepare_ball
from flatkit.measures.effort import EffortSettings
from flatkit.measures.settings import AnalysisSettings
from flatkit.measures.shared_settings import (
    FULL_SEARCH_BUDGET,
    SEARCH_BUDGET,
    BallSettings,
    CurvatureSettings,
)
from flatkit.measures.watching import Progress
from flatkit.objective.function import Objective
from flatkit.objective.narrowing import narrow_words, why_not_finite
from flatkit.objective.noise import Noise
from flatkit.objective.passes import Evaluation
from flatkit.objective.proofs.prove import check_slope
from flatkit.objective.settings import ObjectiveSettings
from flatkit.objective.task import Task
from flatkit.results.cost import Cost
from flatkit.results.report import Report, environment
from flatkit.results.result import Result
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.krylov import KEPT_BYTES, basis_for
from flatkit.spectrum.lanczos import Lanczos, lanczos
from flatkit.spectrum.lobpcg import lobpcg
from flatkit.spectrum.operators import check_symmetric, refuse_asymmetry
from flatkit.spectrum.power_iteration import power_iteration
from flatkit.spectrum.space import Space

S = TypeVar("S")

_SEEN, _SEEN_OF_LARGE, _LARGE = 12, 4, 2**20
"""Products after which a Krylov space is kept for other measures; fewer of so many parameters."""
_SEEN_BYTES, _BASIS_BYTES = 300_000_000, 600_000_000
"""Bytes that this space may take, and a basis whose images are not kept."""


class Session:
    """A task under analysis.

    Args:
        task: what is measured.
        settings: of the analysis.
        progress: is told how far each measure is.

    Attributes:
        objective: L over the training samples in use.
        noise: how much of the gradient is rounding, by the name of the geometry.
        noise_from: by what that was found.
        noises: by how much values are off in 16 bits, by split.
        seconds_of_setup: what copying the model and examining the function took.
        krylov_by_others: what the search of the largest eigenvalues spent for other measures.
        keep: lets the passes of a further objective be kept, where there is a journal.
        seen: makes `space`, once there are vectors.
        bottom: the search of the smallest eigenvalues, if there was one.
        outside: what was spent by others than the process that is at work.
    """

    def __init__(
        self, task: Task, settings: AnalysisSettings, progress: Progress | None = None
    ) -> None:
        self.task, self.settings, self._progress = task, settings, progress
        self.noise: dict[str, float] = {}
        self.noises: dict[str, Noise] = {}
        self.noise_from, self.outside, self.krylov_by_others = "", Cost(), Cost()
        self.seen: Callable[[], Space] | None = None
        self.bottom: Lanczos | None = None
        self.keep: Callable[[Objective], Objective] = lambda objective: objective
        begun, self.objective = time.monotonic(), task.objective(self.own(ObjectiveSettings))
        if self.objective.by_itself:
            self.settings = settings.in_16_bits(narrow_words(self.objective))
        self.objective.ranks.check_alike(settings.to_json())
        self.seconds_of_setup = time.monotonic() - begun

    def own(self, part: type[S]) -> S:
        """Return the settings of one class, as a measure's file declares them.

        Raises:
            PluginError: no chosen measure names the class in its `settings`.
        """
        return self.settings.of(part)

    @property
    def search_budget(self) -> int:
        """Gradients for a search in a ball."""
        usual = FULL_SEARCH_BUDGET if self.own(EffortSettings).full else SEARCH_BUDGET
        return self.own(BallSettings).search_budget or usual

    @cached_property
    def product_price(self) -> int:
        """What a Hessian-vector product counts, in gradients."""
        return product_cost(self.objective)

    @cached_property
    def test_objective(self) -> Objective | None:
        """The objective over the test data, if there are any."""
        if self.task.test_data is None:
            return None
        own = self.objective
        return self.keep(
            self.task.objective(
                self.own(ObjectiveSettings),
                split="test",
                batchnorm="eval",
                dtype=None if own.by_itself else own.narrow or own.dtype,
                device=own.device,
            )
        )

    @property
    def splits(self) -> Mapping[str, Objective]:
        """The objectives over the training data and, if there are any, the test data."""
        test = self.test_objective
        return {"train": self.objective} | ({} if test is None else {"test": test})

    @cached_property
    def evaluations(self) -> Mapping[str, tuple[Evaluation, Cost]]:
        """Loss and accuracy of each split, and what they cost."""
        found: dict[str, tuple[Evaluation, Cost]] = {}
        for split, objective in self.splits.items():
            with self.meter() as cost:
                evaluation = objective.evaluate()
                found[split] = evaluation, cost()
            if not math.isfinite(evaluation.loss):
                raise NonFiniteError(
                    f"the loss on the {split} data is {evaluation.loss}{why_not_finite(objective)}"
                )
        return found

    @cached_property
    def hessian(self) -> HessianOperator:
        """The Hessian at the checkpoint."""
        return HessianOperator(self.objective, memory=self.own(ObjectiveSettings).memory)

    @cached_property
    def curved(self) -> Objective:
        """The objective whose curvature is measured: of all parameters, or of some."""
        params = self.own(CurvatureSettings).params
        return self.objective.block(params) if params else self.objective

    @cached_property
    def curvature(self) -> HessianOperator:
        """The Hessian, or its block, that the curvature measures are about."""
        if self.curved is self.objective:
            return self.hessian
        return HessianOperator(self.curved, memory=self.own(ObjectiveSettings).memory)

    @cached_property
    def asymmetry(self) -> float:
        """How far the curvature is from symmetric, for those that do not see it. Cost: 2 products.

        Raises:
            NotSymmetricError: too far.
        """
        return check_symmetric(self.curvature, generator=self.generator("symmetry"))

    @cached_property
    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss and gradient [P] at the checkpoint, both finite."""
        loss, gradient = self.objective.loss_and_gradient()
        check_slope(loss, gradient)
        return loss, gradient

    @property
    def gradient(self) -> Tensor:
        """The gradient [P] at the checkpoint."""
        return self.loss_and_gradient[1]

    @cached_property
    def geometry(self) -> Geometry:
        """The shape of the balls, at the checkpoint."""
        objective = self.objective
        return geometry_of(self.own(BallSettings).geometry, objective.space, objective.theta)

    @cached_property
    def ball(self) -> Ball:
        """What the searches in the balls of all radii share."""
        return prepare_ball(self)

    @cached_property
    def krylov(self) -> Lanczos:
        """The search of the largest eigenvalues; call `look_at` after each step."""
        own, curvature = self.own(CurvatureSettings), self.curvature
        k, vector = own.num_eigenvalues, self.curved.theta.nbytes
        usual = basis_for(k, None)
        if 2 * (usual + 1) * vector > KEPT_BYTES:  # then its images follow from the recurrence
            usual = min(usual, max(k + 10, _BASIS_BYTES // vector))
        return Lanczos(
            curvature,
            k=k,
            tolerance=own.tolerance,
            max_matvecs=own.max_matvecs,
            max_basis=usual,
            generator=self.generator("eigenvalues"),
        )

    def look_at(self, search: Lanczos) -> None:
        """Look at a search after a step; keep what that of the largest eigenvalues saw early on.

        Always at the same product, so that what is made of it does not depend on whose turn it was.

        Raises:
            NotSymmetricError: the first two products show that the operator is not symmetric.
        """
        if search.matvecs == 2:
            refuse_asymmetry(search.operator, search.asymmetry)
        if self.seen is not None or search is not self.krylov:
            return
        if search.done or search.matvecs >= self._enough:
            fits = max(1, _SEEN_BYTES // (2 * self.curved.theta.nbytes))
            space = search.space(fits if search.matvecs > fits else None)
            self.seen = lambda: space

    @property
    def has_space(self) -> bool:
        """Whether `space` costs no further product."""
        return self.seen is not None

    @property
    def gradients_to_space(self) -> float:
        """What `space` costs, in gradients, about."""
        left = 0 if self.has_space else self._enough - self.krylov.matvecs
        return float(self.product_price * left)

    @property
    def _enough(self) -> int:
        """After how many products the space is kept."""
        enough = _SEEN if self.curved.num_parameters < _LARGE else _SEEN_OF_LARGE
        return min(enough, self.krylov.capacity)

    def step_space(self) -> None:
        """Let the search go on for another measure; it counts where the eigenvalues do, if any."""
        before = self.objective.cost
        self.krylov.step()
        self.look_at(self.krylov)
        if "top_eigenvalues" in self.settings.measures and self.searches_by_krylov:
            spent = self.objective.cost - before
            self.outside += spent
            self.krylov_by_others += spent

    @property
    def space(self) -> Space:
        """A Krylov space of the curvature, of some twelve products, shared by all measures."""
        while self.seen is None:
            self.step_space()
        return self.seen()

    @cached_property
    def top(self) -> Estimate:
        """The largest eigenvalues, as the settings ask."""
        if not self.searches_by_krylov:
            return self.eigenvalues(self.curvature)
        while not self.krylov.done:
            self.krylov.step()
            self.look_at(self.krylov)
        return self.krylov.estimate()

    @property
    def knows_top(self) -> bool:
        """Whether something is known of the largest eigenvalues."""
        return self.krylov.matvecs > 0 if self.searches_by_krylov else "top" in vars(self)

    @property
    def top_so_far(self) -> Estimate:
        """What is known of the largest eigenvalues."""
        return self.krylov.estimate() if self.searches_by_krylov else self.top

    @property
    def searches_by_krylov(self) -> bool:
        """Whether the largest eigenvalues are those of `krylov`."""
        return self.own(CurvatureSettings).method in ("auto", "lanczos")

    def eigenvalues(
        self, hessian: HessianOperator, *, k: int | None = None, method: str | None = None
    ) -> Estimate:
        """Return the largest eigenvalues of a Hessian.

        They are computed anew, as their last digits depend on how many are asked for; `top` keeps
        those that the settings ask for.

        Args:
            hessian: e.g. `curvature`.
            k: how many; by default as the settings say.
            method: how; by default as the settings say.
        """
        own = self.own(CurvatureSettings)
        method, k = method or own.method, own.num_eigenvalues if k is None else k
        if hessian is self.curvature:
            _ = self.asymmetry
        if method == "pyhessian":
            seed = self.own(ObjectiveSettings).seed
            return pyhessian_eigenvalues(hessian.objective, k=k, seed=seed)
        methods = {"power": power_iteration, "lobpcg": lobpcg}
        return methods.get(method, lanczos)(
            hessian,
            k=k,
            tolerance=own.tolerance,
            max_matvecs=own.max_matvecs,
            generator=self.generator("eigenvalues"),
        )

    def over_draws(
        self, first: Estimate, measure: Callable[[HessianOperator], Estimate]
    ) -> dict[str, Any]:
        """Return the spread of a value over draws of the samples, if more were asked for.

        Args:
            first: the estimate over the samples in use, which are the first draw.
            measure: the same estimate of another Hessian.
        """
        draws = self.own(CurvatureSettings).draws
        if draws < 2:
            return {}
        found = [first, *(measure(self._draw(number)) for number in range(1, draws))]
        values = [float(estimate.value.reshape(-1)[0]) for estimate in found]
        return {
            "draws": draws,
            "draw_values": values,
            "sampling_error": statistics.stdev(values),
            "sampling_error_is": "standard deviation of the value over draws of the samples",
        }

    def estimated(
        self, measure: str, estimate: Estimate, settings: Mapping[str, Any], cost: Cost
    ) -> Result:
        """Return an estimate of the curvature as a result."""
        return Result(
            measure,
            estimate.value.tolist(),
            estimate.error.tolist(),
            error_kind=estimate.error_kind,
            status=estimate.status,
            settings={**settings, **self.measured_on, **estimate.notes},
            cost=cost,
        )

    @property
    def measured_on(self) -> dict[str, Any]:
        """Which curvature was measured, ready for JSON: parameters, seed, products."""
        params = self.own(CurvatureSettings).params
        part = {"params": list(params)} if params else {}
        return {**part, "seed": self.own(ObjectiveSettings).seed, **self.curvature.settings}

    def make_report(
        self,
        results: Sequence[Result],
        command: Sequence[str],
        analysis: Mapping[str, Any] = MappingProxyType({}),
    ) -> Report:
        """Return results with where they come from, and how the work went."""
        # Read only where a measure asked for it.
        test = self.test_objective if "test_objective" in vars(self) else None
        return Report(
            results,
            checkpoint={"name": self.task.name, **self.task.origin},
            objective={
                **self.objective.describe(),
                "seed": self.own(ObjectiveSettings).seed,
                **({} if test is None else {"test": test.samples.describe()}),
            },
            command=command,
            environment=environment(),
            analysis=analysis,
        )

    def generator(self, purpose: str) -> torch.Generator:
        """Return the random stream of one purpose, the same whatever else is measured."""
        digest = hashlib.sha256(f"{self.own(ObjectiveSettings).seed}:{purpose}".encode()).digest()
        # Seven bytes: torch takes seeds of 64 bits, signed.
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def radii(self, measure: str) -> Iterator[float]:
        """Yield the radii of the balls, and tell how far a measure is."""
        radii = self.own(BallSettings).rho
        for done, rho in enumerate(radii):
            self.report(measure, done, len(radii))
            yield rho

    def report(self, measure: str, done: int, total: int) -> None:
        """Tell whoever listens how far a measure is."""
        if self._progress is not None:
            self._progress(measure, done, total)

    @contextmanager
    def meter(self) -> Generator[Callable[[], Cost], None, None]:
        """Yield a function that returns the cost since the start of the block.

        What other processes spend in between is not counted: `outside` holds it.
        """
        before = self.objective.cost - self.outside
        yield lambda: self.objective.cost - self.outside - before

    def _draw(self, number: int) -> HessianOperator:
        """Return the curvature over another draw of the samples."""
        own, curvature = self.own(ObjectiveSettings), self.own(CurvatureSettings)
        other = self.keep(self.task.objective(own, seed=own.seed + number))
        other.count_with(self.objective)
        part = other.block(curvature.params) if curvature.params else other
        return HessianOperator(part, memory=own.memory)
