"""The positive relatives of the Hessian: Gauss-Newton and the empirical Fisher matrix."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.hessian.layers.tape import Tape
from flatkit.hessian.layers.trace import trace
from flatkit.hessian.operator import finite
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk
from flatkit.spectrum.operators import SymmetricOperator


class _Positive(SymmetricOperator):
    """Jᵀ B J over the chunks, J = ∂outputs/∂θ and B block-diagonal over the samples.

    Layer by layer where the model can be traced, else by two backward passes for J and one for Jᵀ.
    """

    _kept: Tape | None = None
    """The tape of the only chunk, if there is only one."""

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        self.objective = objective
        self.theta = (objective.theta if theta is None else theta).detach()
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self._record = self._recorder()

    @property
    def settings(self) -> dict[str, Any]:
        """How the products are computed, ready for JSON."""
        return {"engine": "double_backward" if self._record is None else "layers"}

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the layers."""
        return self.objective.space.layer_sizes()

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector [P]."""
        total = torch.zeros_like(self.theta)
        for chunk in self.objective.chunks(matvecs=1):
            if self._record is None:
                total += self._by_graph(vector, chunk)
                continue
            tape = self._kept or self._record(chunk)
            if self.objective.num_chunks == 1:
                self._kept = tape
            total += self._by_layers(tape, vector, chunk)
        return finite(total, "product")

    @abstractmethod
    def _by_layers(self, tape: Tape, vector: Tensor, chunk: Chunk) -> Tensor:
        """Return a chunk's part of the product from its tape."""

    @abstractmethod
    def _bent(self, outputs: Tensor, along: Tensor, chunk: Chunk) -> Tensor:
        """Return B ẏ for directions ẏ of the outputs."""

    def _by_graph(self, vector: Tensor, chunk: Chunk) -> Tensor:
        with self.objective.placed(self.theta) as point:
            outputs = self.objective.outputs(point, chunk)
            along = _pushforward(outputs, point, vector)
            bent = self._bent(outputs.detach(), along, chunk)
            return torch.autograd.grad(outputs, point, bent)[0]

    def _recorder(self) -> Callable[[Chunk], Tape] | None:
        """Return what records a chunk, or None where the model is no graph of layers."""
        if not isinstance(self.objective.samples.inputs, Tensor):
            return None
        try:
            record = partial(Tape, trace(self.objective.model), self.objective, self.theta)
            record(next(self.objective.chunks(1)))
        except UnsupportedError:
            return None
        return record


@final
class GaussNewtonOperator(_Positive):
    """G = Jᵀ (∇²ℓ) J: the Hessian without the curvature of the model itself.

    For losses that are convex in the outputs (cross-entropy, squared error) G is positive
    semi-definite, and equals the Hessian of the model linearised at θ (Schraudolph, 2002).

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> GaussNewtonOperator(objective) @ torch.tensor([1.0])  # a linear model: the Hessian
    tensor([5.])
    """

    def _by_layers(self, tape: Tape, vector: Tensor, chunk: Chunk) -> Tensor:
        return tape.products(vector[None], curved=False)[0]

    def _bent(self, outputs: Tensor, along: Tensor, chunk: Chunk) -> Tensor:
        point = outputs.requires_grad_()
        share = self.objective.share(point, chunk)
        (slope,) = torch.autograd.grad(share, point, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(outputs)
        return torch.autograd.grad(slope, point, along, materialize_grads=True)[0]


@final
class FisherOperator(_Positive):
    """F = (1/N) Σₙ gₙ gₙᵀ: the empirical Fisher matrix, gₙ the gradient of the n-th loss.

    Not the Fisher matrix, whose targets are drawn from the model: see Kunstner et al. (2019).

    Raises:
        InvalidArgumentError: by a product, if the loss does not return one value per sample.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> FisherOperator(objective, torch.tensor([1.0])) @ torch.tensor([1.0])  # (2² + 8²) / 2
    tensor([34.])
    """

    def _by_layers(self, tape: Tape, vector: Tensor, chunk: Chunk) -> Tensor:
        def bend(along: Tensor) -> Tensor:
            return self._bent(tape.outputs.detach(), along, chunk)

        return tape.products(vector[None], bend=bend, curved=False)[0]

    @torch.enable_grad()
    def _bent(self, outputs: Tensor, along: Tensor, chunk: Chunk) -> Tensor:
        point = outputs.requires_grad_()
        values = _sample_losses(self.objective, point, chunk)
        (slope,) = torch.autograd.grad(values.sum(), point)
        rates = (slope * along).flatten(1).sum(1)  # gₙ·v, [B]
        weighted = slope * rates.view(-1, *[1] * (slope.ndim - 1))
        return weighted / self.objective.num_samples


def _sample_losses(objective: Objective, outputs: Any, chunk: Chunk) -> Tensor:
    """Return the loss of every sample of a chunk, [B]."""
    values = objective.loss_function(outputs, chunk.targets)
    if values.shape != (chunk.size,) or objective.total_weight != objective.num_samples:
        raise InvalidArgumentError(
            "the empirical Fisher matrix needs the loss of every sample; give a loss that returns "
            "one value per sample, e.g. reduction='none'"
        )
    return values


def _pushforward(outputs: Tensor, point: Tensor, vector: Tensor) -> Tensor:
    """Return J v: the gradient, with respect to u, of ⟨Jᵀ u, v⟩."""
    dual = torch.zeros_like(outputs, requires_grad=True)
    (pulled,) = torch.autograd.grad(outputs, point, dual, create_graph=True)
    return torch.autograd.grad(pulled, dual, vector, materialize_grads=True)[0].detach()
