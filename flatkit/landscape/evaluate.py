"""Evaluate many points of one line or plane: weights written in place, or several points at once.

Weights in place: a private copy of the model whose parameters are views of ONE vector, so that a
point costs one addition and one pass. Several points at once: where the parameters of a network
enter through linear layers only and the work of a pass is small, K points go through as stacked
matrices, and the first layer, which is affine in the steps, is not even multiplied again:
(W + xD)a + b = Wa + b + x·Da. Which of the two is a function of the network and the data alone,
never of a clock, so that the same job gives the same bits.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.hessian import HessianOperator
from flatkit.landscape.settings import Quantity, Statistics
from flatkit.landscape.stacked import StackedLinear
from flatkit.objective.function import Chunk, Objective
from flatkit.objective.passes import arguments
from flatkit.spectrum import lanczos

Values = dict[str, float]


class Engine:
    """The quantities of an objective at θ + Σᵢ tᵢ·dᵢ.

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
        batched: False forbids several points at once.
        far: the steps [D] of a point far away, 1 each by default; there and near the centre both
            ways must agree before several points are taken at once.
        memory: bytes that a Hessian-vector product may hold.

    Memory: three vectors [P], and activations of one chunk, or of K points of it where K is
    bounded by `stacked.MEMORY`; it does not grow with the number of points.

    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ²
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), "mse", data)
    >>> quantities = ("loss", "gradient_norm")
    >>> engine = Engine(objective, torch.ones(1), torch.ones(1, 1), quantities=quantities)
    >>> engine.values([[0.0]]) + engine.values([[2.0]])
    [{'loss': 1.0, 'gradient_norm': 2.0}, {'loss': 9.0, 'gradient_norm': 6.0}]
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        directions: Tensor,
        *,
        quantities: Sequence[Quantity] = ("loss",),
        statistics: Statistics = "fixed",
        buffers: Mapping[str, Tensor] | None = None,
        estimate_on: Objective | None = None,
        batched: bool = True,
        far: Sequence[float] | None = None,
        memory: int | None = None,
    ) -> None:
        for quantity in quantities:
            check_choice("quantities", quantity, get_args(Quantity))
        check_choice("statistics", statistics, get_args(Statistics))
        if directions.ndim != 2 or directions.shape[1] != objective.num_parameters:
            raise InvalidArgumentError(
                f"directions must have the shape [D, {objective.num_parameters}], "
                f"got {list(directions.shape)}; do they belong to another architecture?"
            )
        self.objective, self.quantities = objective, tuple(quantities)
        self._memory = memory
        self._theta, self._directions = theta.detach(), directions.detach().to(theta)
        self._place = torch.empty_like(self._theta)  # [P], where the model's weights live
        self._model = copy.deepcopy(objective.model)
        own = dict(self._model.named_parameters())
        self._parameters = [own[name] for name in objective.space.names]
        parts = self._place.split(objective.space.sizes)
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.data = part.view(parameter.shape)
        self._reestimate = statistics == "reestimate"
        self._norms = [
            m for m in self._model.modules() if getattr(m, "running_mean", None) is not None
        ]
        if self._reestimate and not self._norms:
            raise InvalidArgumentError("statistics='reestimate' needs a model with BatchNorm")
        self._samples = estimate_on or objective
        self._buffers: list[tuple[Tensor, Tensor]] = []
        if statistics == "interpolate":
            buffers = buffers or {}
            places = dict(self._model.named_buffers())
            self._buffers = [
                (places[name], moves.to(places[name])) for name, moves in buffers.items()
            ]
        self._moving = self._reestimate or bool(self._buffers)
        self._stacked = None
        plain = not {"gradient_norm", "top_eigenvalue"} & set(quantities)
        small = batched and plain and not self._moving
        if small and objective.batchnorm == "eval":
            self._stacked = StackedLinear.of(objective, self._theta, self._directions, self._model)
            far = [1.0] * len(directions) if far is None else far
            if self._stacked is not None and not self._agrees(self._stacked, far):
                self._stacked = None

    @property
    def batch(self) -> int:
        """How many points go through at once; 1: weights in place."""
        return 1 if self._stacked is None else self._stacked.batch

    def values(self, steps: Sequence[Sequence[float]]) -> list[Values]:
        """Return the quantities at points given by their steps [n, D], n at most `batch`.

        The loss is always among them.
        The centre itself always takes the plain way, so that it is the checkpoint's own number.
        """
        # The flash kernels of attention round otherwise than the plain one of the objective.
        with sdpa_kernel(SDPBackend.MATH):
            if self._stacked is None:
                return [self._single(point) for point in steps]
            found = self._stacked.values(steps, with_accuracy="accuracy" in self.quantities)
            return [
                values if any(point) else self._single(point)
                for point, values in zip(steps, found, strict=True)
            ]

    def _single(self, steps: Sequence[float]) -> Values:
        self._move(steps)
        if self._reestimate:
            self._estimate_statistics()
        with_gradient = "gradient_norm" in self.quantities
        loss, correct = 0.0, 0
        for parameter in self._parameters:
            parameter.grad = None
        with torch.set_grad_enabled(with_gradient):
            for chunk in self.objective.chunks():
                outputs = self._run(chunk)
                if "accuracy" in self.quantities:
                    part, right = self.objective.part(outputs, chunk)
                else:
                    part, right = self.objective.share(outputs, chunk), None
                if with_gradient:
                    part.backward()
                loss += float(part.detach())
                correct = None if correct is None or right is None else correct + right
        self._count(with_gradient)
        values = {"loss": loss}
        if "accuracy" in self.quantities and correct is not None:
            values["accuracy"] = correct / self.objective.num_samples
        if with_gradient:
            values["gradient_norm"] = self._gradient_norm()
        if "top_eigenvalue" in self.quantities:
            values |= self._top_eigenvalue()
        return values

    def _move(self, steps: Sequence[float]) -> None:
        """Write θ + (Σᵢ tᵢ·dᵢ) into the model."""
        moves = [(d, t) for d, t in zip(self._directions, steps, strict=True) if t]
        with torch.no_grad():
            if len(moves) < 2:
                self._place.copy_(self._theta)
            else:
                torch.mul(moves[0][0], moves[0][1], out=self._place)
                for direction, step in moves[1:-1]:
                    self._place.add_(direction, alpha=step)
            if moves:
                self._place.add_(moves[-1][0], alpha=moves[-1][1])
            if len(moves) > 1:
                self._place.add_(self._theta)
            for place, parts in self._buffers:
                place.copy_(parts[0])
                for part, step in zip(parts[1:], steps, strict=True):
                    place.add_(part, alpha=step)

    def _run(self, chunk: Chunk) -> Any:
        args, kwargs = arguments(chunk.inputs)
        return self._model(*args, **kwargs)

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _top_eigenvalue(self) -> Values:
        """Return λmax at the present point; no number where the curvature is none."""
        moved = self.objective.with_model(self._model) if self._moving else self.objective
        # Chosen by name: `auto` looks at the clock, and the same job must give the same bits.
        hessian = HessianOperator(
            moved, self._place.clone(), engine="double_backward", memory=self._memory
        )
        generator = torch.Generator().manual_seed(0)
        try:
            found = lanczos(hessian, tolerance=1e-3, max_matvecs=200, generator=generator)
        except NonFiniteError:
            return {"top_eigenvalue": float("nan"), "top_eigenvalue_residual": float("nan")}
        return {
            "top_eigenvalue": float(found.value[0]),
            "top_eigenvalue_residual": float(found.error[0]),
        }

    @torch.no_grad()
    def _estimate_statistics(self) -> None:
        for module in self._norms:
            module.reset_running_stats()  # type: ignore[operator]
            module.momentum = None  # type: ignore[assignment]  # a cumulative average
            module.train()
        for chunk in self._samples.chunks():
            self._run(chunk)
        self.objective.count(losses=1)
        for module in self._norms:
            module.eval()

    def _count(self, with_gradient: bool) -> None:
        if with_gradient:
            self.objective.count(gradients=1)
        else:
            self.objective.count(losses=1)

    @torch.no_grad()
    def _agrees(self, stacked: StackedLinear, far: Sequence[float]) -> bool:
        """Whether both ways give one value, at a point near the centre and at one far away.

        Outputs are compared too: where all losses are almost 0, those of another function are. What
        acts on samples together may do nothing near the centre, such as a bound on their norms.
        """
        steps = [[0.013] * len(self._directions), list(far)]
        try:
            plain = [self._loss_and_outputs(point) for point in steps]
            if not plain[-1][1].isfinite().all():  # too far to tell
                steps, plain = steps[:1] * 2, plain[:1] * 2
            found = torch.zeros(len(steps), dtype=torch.float64)
            for number, (_, outputs, losses) in enumerate(stacked.parts(steps)):
                found += losses.sum(1).cpu() / self.objective.total_weight
                pairs = zip(outputs, plain, strict=True) if number == 0 else ()
                if not all(self._same(one, other[: len(one)]) for one, (_, other) in pairs):
                    return False
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        return all(
            abs(a - b) <= self._slack * max(1.0, abs(b))
            for a, (b, _) in zip(found.tolist(), plain, strict=True)
        )

    def _loss_and_outputs(self, steps: Sequence[float]) -> tuple[float, Tensor]:
        """Return the loss at a point, and the outputs of the first chunk."""
        self._move(steps)
        loss, first = 0.0, None
        for chunk in self.objective.chunks():
            outputs = self._run(chunk)
            loss += float(self.objective.share(outputs, chunk))
            first = outputs if first is None else first
        assert first is not None
        return loss, first

    def _same(self, outputs: Tensor, plain: Tensor) -> bool:
        """Whether outputs differ by no more than rounding."""
        allowed = self._slack * float(plain.abs().max())
        return outputs.shape == plain.shape and bool((outputs - plain).abs().max() <= allowed)

    @property
    def _slack(self) -> float:
        """The relative difference that rounding may make."""
        return 1e3 * torch.finfo(self._theta.dtype).eps


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield the items in parts of a size, the last one possibly smaller.

    >>> list(batches("abc", 2))
    ['ab', 'c']
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]
