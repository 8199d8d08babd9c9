"""Curvature along a training, for any loop: every so many steps, each measurement from the last."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.hessian import HessianOperator
from flatkit.objective.function import Objective
from flatkit.objective.losses import LossFunction
from flatkit.objective.reading.sample_set import Samples
from flatkit.objective.reading.samples import Data, TooFewSamplesError
from flatkit.spectrum import lanczos
from flatkit.spectrum.xtrace import trace
from flatkit.training.allowance import Allowance

Tracked: TypeAlias = Literal["top_eigenvalue", "trace", "gradient_norm"]
TRACKED: tuple[Tracked, ...] = get_args(Tracked)

_TRACE_TOLERANCE = 0.05
"""Relative standard error of a tracked trace: a curve over epochs shows no more."""


@dataclass(frozen=True)
class TrackedCurvature:
    """The curvature at one step.

    Attributes:
        step: of the training.
        values: the top eigenvalues, largest first.
        errors: their residuals.
        status: as of `flatkit.spectrum.Estimate`.
        matvecs: products that they took.
        trace: of the Hessian; None where it was not asked for, as the next ones.
        trace_error: its standard error.
        gradient_norm: of the loss over the fixed samples.
        loss: over the same samples, where the norm of its gradient was asked for.
    """

    step: int
    values: tuple[float, ...]
    errors: tuple[float, ...]
    status: str
    matvecs: int
    trace: float | None = None
    trace_error: float | None = None
    gradient_norm: float | None = None
    loss: float | None = None

    def scalars(self) -> dict[str, float]:
        """Return what a logger takes: names such as `curvature/top_eigenvalue`, and numbers.

        >>> TrackedCurvature(10, (5.0, 1.0), (0.1, 0.2), "converged", 8, trace=7.0).scalars()
        {'curvature/top_eigenvalue': 5.0, 'curvature/eigenvalue_2': 1.0, 'curvature/trace': 7.0}
        """
        names = ["top_eigenvalue", *(f"eigenvalue_{n}" for n in range(2, len(self.values) + 1))]
        found = dict(zip(names, self.values, strict=False))
        for name in ("trace", "gradient_norm", "loss"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return {f"curvature/{name}": value for name, value in found.items()}


class _Found(NamedTuple):
    """What an examination finds of a function that is no plain mean over its samples."""

    samples: Samples
    weights: Tensor
    chunk_size: int
    divisible: bool


@final
class CurvatureTracker:
    """Measures the curvature of a model in training, for any loop.

    Each search for eigenvalues starts from the eigenvectors of the one before, which saves products
    as long as the weights move little between them; the probes of the trace are the same each time,
    so that its curve moves with the weights and not with the draws. The model is copied; nothing of
    it, of its gradients, of its buffers or of a random state is changed, and a training that is
    tracked ends with the same bits.

    Of several processes (`torch.distributed`) only the first one measures.

    Args:
        loss: as `flatkit.Objective` takes it.
        data: as `loss`; a fixed part of the training data.
        every: steps between measurements.
        k: how many eigenvalues.
        tolerance: on their residual, relative to the largest magnitude.
        max_matvecs: products at most, of the eigenvalues and of the trace each.
        warm: start from the last eigenvectors.
        seed: of the random part of the starts, of the samples and of the probes.
        measures: of `top_eigenvalue`, `trace` and `gradient_norm`.
        samples: how many of `data` at most, drawn once; by default all.
        max_share: of the time since the first step, that measurements may take. Where it does not
            last for one every `every` steps, they become rarer, which a warning says once. The
            first one is always made.
        clock: seconds that never go back.

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
        measures: Sequence[Tracked] = ("top_eigenvalue",),
        samples: int | None = None,
        max_share: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_count("every", every)
        check_count("k", k)
        check_positive("tolerance", tolerance)
        check_measures(measures)
        self._loss, self._data, self._every, self._k = loss, data, every, k
        self._tolerance, self._max_matvecs = tolerance, max_matvecs
        self._warm, self._seed = warm, seed
        self._measures, self._samples = tuple(measures), samples
        self._allowance = Allowance(max_share, clock=clock)
        self._vectors: Tensor | None = None
        self._examined = False
        self._found: _Found | None = None
        self._said: set[str] = set()
        self.history: list[TrackedCurvature] = []

    @property
    def seconds(self) -> float:
        """What the measurements took so far."""
        return self._allowance.spent

    def step(self, model: nn.Module, step: int) -> TrackedCurvature | None:
        """Measure if the step is one of those to measure at, and the time allows it.

        A measurement that fails is left out: the first such failure is a warning, and the training
        goes on.
        """
        self.begin()
        return self.look(model, step) if step % self._every == 0 else None

    def begin(self) -> None:
        """Count the time of the training from now on; the first `step` does so too."""
        self._allowance.begin()

    def look(
        self, model: nn.Module | Callable[[], nn.Module], step: int
    ) -> TrackedCurvature | None:
        """Measure now if the time allows it; a failure is a warning, said once.

        Args:
            model: or a function that returns it, whose failure counts as one of the measurement.
            step: of the training.
        """
        if not _is_first_process():
            return None
        if not self._allowance.allows():
            seconds = self._allowance.last
            self._say(
                "time",
                f"curvature is measured more seldom than asked for (not at step {step}): a "
                f"measurement takes {seconds:.2g} s, and `max_share` keeps all of them to a part "
                "of the time of the training; with fewer samples or measures it comes more often",
            )
            return None
        try:
            found = model if isinstance(model, nn.Module) else model()
            return self.measure(found, step)
        # Whatever fails here, also in the loss or data of the user, must not end a training.
        except Exception as error:
            self._say(
                "failure",
                f"the curvature at step {step} could not be measured, and the training goes on "
                f"without: {type(error).__name__}: {error}",
            )
            return None

    def measure(self, model: nn.Module, step: int) -> TrackedCurvature:
        """Measure now, whatever the time.

        Raises:
            NonFiniteError: the weights are NaN or infinite.
            InvalidArgumentError: the weights are shared out among processes.
        """
        with self._allowance.measuring():
            self.history.append(self._measured(_whole(model), step))
        return self.history[-1]

    def _measured(self, model: nn.Module, step: int) -> TrackedCurvature:
        try:
            objective = self._objective(model)
        except TooFewSamplesError:  # only the objective knows how many any kind of data holds
            self._samples = None
            objective = self._objective(model)
        found: dict[str, Any] = {}
        if "gradient_norm" in self._measures:
            loss, gradient = objective.loss_and_gradient()
            found |= {"loss": loss, "gradient_norm": float(gradient.double().norm())}
        hessian = HessianOperator(objective)
        if "trace" in self._measures:
            # The same probes each time: what a curve shows is the weights that moved.
            draws = torch.Generator().manual_seed(self._seed)
            given: dict[str, Any] = {
                "tolerance": _TRACE_TOLERANCE,
                "max_matvecs": self._max_matvecs,
            }
            mean = trace(hessian, **given, generator=draws)
            found |= {"trace": float(mean.value), "trace_error": float(mean.error)}
        return TrackedCurvature(step, *self._eigenvalues(hessian, step), **found)

    def _objective(self, model: nn.Module) -> Objective:
        """Return the function at the weights as they are: it stays the same, only its point moves.

        Examined once. How samples count, and whether all are one batch, is what that found.
        """
        known = self._found
        data = self._data if known is None else known.samples
        found = Objective(
            model,
            self._loss,
            data,
            samples=self._samples if known is None else None,
            seed=self._seed,
            examine=not self._examined,
        )
        if known is not None:
            found.weigh(known.weights)
            found.chunk_size, found.divisible = known.chunk_size, known.divisible
        elif not found.divisible or bool((found.weights != 1).any()):
            samples = found.samples.to(found.dtype, torch.device("cpu"))
            self._found = _Found(samples, found.weights, found.chunk_size, found.divisible)
        self._examined = True
        return found

    def _eigenvalues(
        self, hessian: HessianOperator, step: int
    ) -> tuple[tuple[float, ...], tuple[float, ...], str, int]:
        if "top_eigenvalue" not in self._measures:
            return (), (), "", 0
        found = lanczos(
            hessian,
            k=self._k,
            tolerance=self._tolerance,
            max_matvecs=self._max_matvecs,
            initial=self._vectors if self._warm else None,
            # Another start each time: one that is orthogonal to an eigenvector never finds it.
            generator=torch.Generator().manual_seed(self._seed + step),
        )
        self._vectors = found.vectors
        values, errors = tuple(found.value.tolist()), tuple(found.error.tolist())
        return values, errors, found.status, found.matvecs

    def _say(self, kind: str, text: str) -> None:
        """Warn, once of a kind."""
        if kind not in self._said:
            self._said.add(kind)
            # The line of the loop that calls `step`.
            warnings.warn(text, stacklevel=4)


def check_measures(names: Sequence[str]) -> None:
    """Refuse what cannot be tracked.

    Raises:
        InvalidArgumentError: there is none, or an unknown one.

    >>> check_measures(["trace"])
    """
    if isinstance(names, str) or not names:
        raise InvalidArgumentError(
            f"measures must be a list of {', '.join(TRACKED)}, got {names!r}"
        )
    for name in names:
        check_choice("measures", name, TRACKED)


def _is_first_process() -> bool:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.get_rank() == 0


def _whole(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers that give each process all of the weights.

    Raises:
        InvalidArgumentError: each process has a part of them.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _whole(model.module)
    for name, parameter in model.named_parameters():
        # DTensor of FSDP and tensor parallelism, parameters of DeepSpeed's third stage.
        # By what marks them: neither library need be installed for this to be asked.
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id"):
            raise InvalidArgumentError(
                f"{name} is shared out among processes, and no process has the whole model; track "
                "with DistributedDataParallel, or analyze the checkpoints with `flatkit track`"
            )
    return model
