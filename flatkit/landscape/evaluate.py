"""Evaluate points of a line or plane: one after the other, or several at once.

`evaluator` decides which of the two it is from the network, the loss and the data alone, never by
a clock, so that the same job gives the same bits; the reason is kept in the result.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.hessian.operator import HessianOperator
from flatkit.landscape.chain import CannotStackError
from flatkit.landscape.settings import Quantity, Statistics
from flatkit.landscape.stacked import StackedPoints
from flatkit.objective.decisions import Decision
from flatkit.objective.function import Objective
from flatkit.objective.kept import ask
from flatkit.objective.model.copier import duplicate
from flatkit.objective.noise import Noise, NoiseOfPoints
from flatkit.objective.passes import Chunk, differentiate
from flatkit.spectrum.lanczos import lanczos

Values = dict[str, float]
Steps = Sequence[float]
"""How far a point lies along each direction [D]."""
Settle = Callable[[Steps], None]
"""Sets the running statistics of a model whose weights have just moved."""


class Evaluator(Protocol):
    """The quantities of an objective at θ + Σᵢ tᵢ·dᵢ.

    Attributes:
        batch: how many points go through at once.
        reason: why no more do, or that several do.
    """

    batch: int
    reason: str

    def values(self, steps: Sequence[Steps]) -> list[Values]:
        """Return the quantities at points [n, D], n at most `batch`; the loss is among them.

        The centre itself is always the checkpoint's own number. In 16 bits each has its error
        beside it: `loss_rounding`, `accuracy_rounding`, `gradient_norm_rounding`.
        """
        ...


def evaluator(
    objective: Objective,
    theta: Tensor,
    directions: Tensor,
    *,
    quantities: Sequence[Quantity] = ("loss",),
    statistics: Statistics = "fixed",
    buffers: Mapping[str, Tensor] | None = None,
    estimate_on: Objective | None = None,
    memory: int | None = None,
    batched: bool = True,
) -> Evaluator:
    """Return what evaluates points: several at once where that is possible and gains something.

    In 16 bits points are taken one at a time, and each is held against float32 on some samples
    (`NoiseOfPoints`); what its numbers may be off stands beside them.

    Memory: three vectors [P], and activations of one chunk, or of K points of it where K is
    bounded by `stacked.MEMORY`; it does not grow with the number of points.

    Args:
        objective: L.
        theta: the centre [P].
        directions: [D, P].
        quantities: of `loss`, `accuracy`, `gradient_norm`, `top_eigenvalue` (a Lanczos
            iteration at every point, with its residual beside it).
        statistics: of BatchNorm. `fixed` leaves the running means and variances as they are at
            the centre; `reestimate` sets them at every point from one more pass over the samples
            (averages over the chunks); `interpolate` moves them as `buffers` say.
        buffers: name -> [1 + D, ...], what a buffer is at the centre and what a step adds.
        estimate_on: whose samples `reestimate` takes; those of the objective by default.
        memory: bytes that a Hessian-vector product may hold.
        batched: False forbids several points at once.

    Raises:
        InvalidArgumentError: directions of another network, or statistics of one without any.

    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ²
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), "mse", data)
    >>> quantities = ("loss", "gradient_norm")
    >>> found = evaluator(objective, torch.ones(1), torch.ones(1, 1), quantities=quantities)
    >>> found.values([[0.0]]) + found.values([[2.0]])
    [{'loss': 1.0, 'gradient_norm': 2.0}, {'loss': 9.0, 'gradient_norm': 6.0}]
    >>> found.reason
    'gradient_norm takes one point at a time'
    """
    for quantity in quantities:
        check_choice("quantities", quantity, get_args(Quantity))
    check_choice("statistics", statistics, get_args(Statistics))
    if directions.ndim != 2 or directions.shape[1] != objective.num_parameters:
        raise InvalidArgumentError(
            f"directions must have the shape [D, {objective.num_parameters}], "
            f"got {list(directions.shape)}; do they belong to another architecture?"
        )
    theta, directions = theta.detach(), directions.detach().to(theta)
    if "top_eigenvalue" in quantities:
        # At the centre, so that one engine multiplies at all points, whichever come first.
        with suppress(NonFiniteError):  # of which each point tells
            _ = HessianOperator(objective, theta).choice
    objective = objective.alone()  # of several ranks each takes whole points
    moving = (buffers or {}) if statistics == "interpolate" else {}
    model = MovableModel(objective, apart=statistics == "reestimate" or bool(moving))
    settle: Settle | None = None
    if statistics == "reestimate":
        settle = _reestimation(model, objective if estimate_on is None else estimate_on.alone())
    elif moving:
        settle = _interpolation(model, moving)
    if settle is not None and objective.sharded is not None:
        raise InvalidArgumentError(
            "statistics of BatchNorm do not move in a sharded model, which is measured in place; "
            "use statistics='fixed'"
        )
    noise = None
    if objective.narrow is not None:
        noise = NoiseOfPoints(objective, theta, slopes="gradient_norm" in quantities)
    single = InPlace(
        model, theta, directions, quantities, settle=settle, memory=memory, noise=noise
    )
    single.reason = _single_reason(objective, quantities, settle, batched) or ""
    if single.reason:
        return single
    try:
        return Stacked(StackedPoints(objective, theta, directions), single)
    except CannotStackError as error:
        single.reason = str(error)
        return single


def _single_reason(
    objective: Objective, quantities: Sequence[Quantity], settle: Settle | None, batched: bool
) -> str | None:
    """Return why points are taken one at a time, as far as the network does not matter."""
    for quantity in ("gradient_norm", "top_eigenvalue"):
        if quantity in quantities:
            return f"{quantity} takes one point at a time"
    if objective.narrow is not None:
        return "in 16 bits every point has a noise of its own, which is measured beside it"
    if objective.sharded is not None:
        return "the weights lie in parts on several ranks"
    if settle is not None:
        return "statistics of BatchNorm move from point to point"
    if objective.batchnorm != "eval":
        return "BatchNorm takes the statistics of each batch"
    if not objective.divisible:
        return "all samples are one batch, as their losses depend on each other"
    return None if batched else "several points at once are forbidden"


class MovableModel:
    """An objective at a point that is written over; on a model of its own where its buffers move.

    Args:
        objective: L.
        apart: whether buffers move; a sharded model has no copy, and is measured in place.

    Attributes:
        module: the objective's model, or the copy; of one in 16 bits that in float32.
        wide: L on this.
        objective: L that is measured, in 16 bits with a model of its own.
        place: the point [P]; empty between calls, as the landscapes of a large network are many.
    """

    def __init__(self, objective: Objective, *, apart: bool) -> None:
        self.objective, self.wide = objective, objective.exact or objective
        if apart and objective.sharded is None:
            self.objective = objective.with_model(duplicate(self.wide.model))
            self.wide = self.objective.exact or self.objective
        self.module = self.wide.model
        self.place = objective.theta.new_empty(0)

    @torch.no_grad()
    def move(self, theta: Tensor, directions: Tensor, steps: Steps) -> None:
        """Go to θ + (Σᵢ tᵢ·dᵢ), added in this order, so that the bits are the same."""
        # The moves are added up before θ, beside which each would be rounded by itself.
        moves = [(d, t) for d, t in zip(directions, steps, strict=True) if t]
        if not len(self.place):
            self.place = torch.empty_like(theta)
        if len(moves) < 2:
            self.place.copy_(theta)
        else:
            torch.mul(moves[0][0], moves[0][1], out=self.place)
            for direction, step in moves[1:-1]:
                self.place.add_(direction, alpha=step)
        if moves:
            self.place.add_(moves[-1][0], alpha=moves[-1][1])
        if len(moves) > 1:
            self.place.add_(theta)

    def outputs(self, chunk: Chunk) -> Any:
        """Return what the model makes of a chunk at the point."""
        return self.objective.outputs(self.place, chunk)

    @torch.no_grad()
    def settled(self) -> None:
        """Take over the buffers of the module into the model that is measured, if it is another."""
        if self.objective.model is not self.module:
            pairs = zip(self.objective.model.buffers(), self.module.buffers(), strict=True)
            for own, given in pairs:
                own.copy_(given)


class InPlace:
    """One point at a time: its weights are written into a model.

    Args:
        model: a copy of the objective's.
        theta: the centre [P].
        directions: [D, P].
        quantities: of `loss`, `accuracy`, `gradient_norm`, `top_eigenvalue`.
        settle: sets statistics at every point, where they move.
        memory: bytes that a Hessian-vector product may hold.
        noise: what is measured beside every point in 16 bits.
    """

    batch = 1
    reason = ""

    def __init__(
        self,
        model: MovableModel,
        theta: Tensor,
        directions: Tensor,
        quantities: Sequence[Quantity],
        *,
        settle: Settle | None,
        memory: int | None,
        noise: NoiseOfPoints | None,
    ) -> None:
        self.quantities = tuple(quantities)
        self._model, self._theta, self._directions = model, theta, directions
        self._settle, self._memory, self._noise = settle, memory, noise

    def values(self, steps: Sequence[Steps]) -> list[Values]:
        """Return the quantities at points [n, D]."""
        found = [self._values(point) for point in steps]
        self._model.place = self._theta.new_empty(0)
        return found

    def _values(self, steps: Steps) -> Values:
        self._model.move(self._theta, self._directions, steps)
        if self._settle is not None:
            self._settle(steps)
            self._model.settled()
        values = self._first_order()
        if self._noise is not None:
            values |= self._roundings(values, self._noise)
        if "top_eigenvalue" in self.quantities:
            values |= self._top_eigenvalue()
        return values

    def _roundings(self, values: Values, noise: NoiseOfPoints) -> Values:
        """Return by how much 16 bits may have put each value off."""
        objective, place = self._model.objective, self._model.place
        asked = ask(objective, f"noise of {', '.join(self.quantities)}", place)
        seen = Noise(*(asked.answer or asked.keep(*asdict(noise.at(objective, place)).values())))
        known = {"loss": seen.loss, "gradient_norm": seen.gradient}
        if seen.accuracy is not None:
            known["accuracy"] = seen.accuracy
        return {
            f"{name}_rounding": known[name] if math.isfinite(value) else math.inf
            for name, value in values.items()
        }

    def _first_order(self) -> Values:
        """Return loss, accuracy and gradient norm, from one pass."""
        objective, with_accuracy = self._model.objective, "accuracy" in self.quantities
        if "gradient_norm" not in self.quantities:
            loss, accuracy = objective.evaluate(self._model.place)
            if accuracy is None or not with_accuracy:
                return {"loss": loss}
            return {"loss": loss, "accuracy": accuracy}
        decision = objective.decision if with_accuracy else None
        what = f"value and gradient norm, {'with' if with_accuracy else 'without'} accuracy"
        asked = ask(objective, what, self._model.place, gradients=1)
        # In the order in which `_norm` gives them, as a journal keeps numbers without names.
        names = ("loss", *(["accuracy"] if decision is not None else []), "gradient_norm")
        return dict(zip(names, asked.answer or asked.keep(*self._norm(decision)), strict=True))

    def _norm(self, decision: Decision | None) -> list[float]:
        """Return the loss, the accuracy if there is a decision, and the norm of the gradient."""
        objective = self._model.objective
        if objective.is_joint:  # whose outputs have no derivatives by themselves
            value, slope = objective.loss_and_gradient(self._model.place)
            right = [] if decision is None else [objective.accuracy(self._model.place)]
            return [value, *right, float(torch.linalg.vector_norm(slope, dtype=torch.float64))]
        loss, correct, named, gradient = 0.0, 0, 0, torch.zeros_like(self._model.place)
        with objective.placed(self._model.place) as point:
            for chunk in objective.chunks(gradients=1):
                outputs = objective.outputs(point, chunk)
                part = objective.share(outputs, chunk)
                gradient += differentiate(part, point)
                loss += float(part.detach())
                if decision is not None:
                    correct += decision.correct(outputs, chunk.targets)
                    named += decision.asked(outputs)
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        return [loss, norm] if decision is None else [loss, correct / named, norm]

    def _top_eigenvalue(self) -> Values:
        """Return λmax at the present point; no number where the curvature is none."""
        place = self._model.place.clone()
        hessian = HessianOperator(self._model.objective, place, memory=self._memory)
        # One start for all points: neighbours differ by the function alone.
        generator = torch.Generator().manual_seed(0)
        try:
            # Three digits, more than a picture of a line or plane shows.
            found = lanczos(hessian, tolerance=1e-3, max_matvecs=200, generator=generator)
        except NonFiniteError:
            return {"top_eigenvalue": float("nan"), "top_eigenvalue_residual": float("nan")}
        return {
            "top_eigenvalue": float(found.value[0]),
            "top_eigenvalue_residual": float(found.error[0]),
        }


class Stacked:
    """Several points at once; the centre alone goes through by itself.

    Args:
        points: evaluates them.
        single: evaluates the centre, and says which quantities there are.
    """

    def __init__(self, points: StackedPoints, single: InPlace) -> None:
        self._points, self._single = points, single
        self.batch = points.batch
        self.reason = "the parameters enter through linear layers alone, and a pass is small"

    def values(self, steps: Sequence[Steps]) -> list[Values]:
        """Return the quantities at points [n, D]."""
        found = self._points.values(steps, with_accuracy="accuracy" in self._single.quantities)
        return [
            values if any(point) else self._single.values([point])[0]
            for point, values in zip(steps, found, strict=True)
        ]


def _reestimation(model: MovableModel, samples: Objective) -> Settle:
    """Return what takes the statistics anew from one pass over some samples."""
    modules = model.module.modules()
    norms: list[Any] = [m for m in modules if getattr(m, "running_mean", None) is not None]
    if not norms:
        raise InvalidArgumentError("statistics='reestimate' needs a model with BatchNorm")

    def settle(_: Steps) -> None:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        # In float32 also of a model in 16 bits, in which an average of averages loses most digits.
        with model.wide.placed(model.place) as point:
            for chunk in samples.chunks():
                model.wide.outputs(point, chunk)
        model.objective.count(losses=1)
        for norm in norms:
            norm.eval()

    return settle


def _interpolation(model: MovableModel, buffers: Mapping[str, Tensor]) -> Settle:
    """Return what moves the statistics along with the weights."""
    own = dict(model.module.named_buffers())
    moving = [(own[name], parts.to(own[name])) for name, parts in buffers.items()]

    @torch.no_grad()
    def settle(steps: Steps) -> None:
        for place, parts in moving:
            place.copy_(parts[0])
            for part, step in zip(parts[1:], steps, strict=True):
                place.add_(part, alpha=step)

    return settle


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield the items in parts of a size, the last one possibly smaller.

    >>> list(batches("abc", 2))
    ['ab', 'c']
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]
