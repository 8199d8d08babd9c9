"""The positive relatives of the Hessian: Gauss-Newton and the empirical Fisher matrix."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from flatkit.hessian.layers.trace import UntraceableError
from flatkit.hessian.operator import _finite
from flatkit.hessian.products import LayersEngine
from flatkit.objective.function import Chunk, Objective
from flatkit.spectrum.operators import SymmetricOperator


class _Positive(SymmetricOperator):
    """Jᵀ B J over the chunks, J = ∂outputs/∂θ and B block-diagonal over the samples.

    Layer by layer where the model can be traced, else by two backward passes for J and one for Jᵀ.
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        self.objective = objective
        self.theta = (objective.theta if theta is None else theta).detach()
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self._tapes: list[Any] | None = None
        self._engine = self._traced()

    @property
    def settings(self) -> dict[str, Any]:
        """How the products are computed, ready for JSON."""
        return {"engine": "double_backward" if self._engine is None else "layers"}

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the layers."""
        return self.objective.space.layer_sizes()

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector [P]."""
        total = torch.zeros_like(self.theta)
        for number, chunk in enumerate(self.objective.chunks()):
            if self._engine is None:
                total += self._by_graph(vector, chunk)
            else:
                total += self._by_layers(self._tape(number, chunk), vector, chunk)
        self.objective.tally.matvecs += 1
        return _finite(total, "product")

    @abstractmethod
    def _by_layers(self, tape: Any, vector: Tensor, chunk: Chunk) -> Tensor:
        """Return a chunk's part of the product from its tape."""

    @abstractmethod
    def _bent(self, outputs: Tensor, along: Tensor, chunk: Chunk) -> Tensor:
        """Return B ẏ for directions ẏ of the outputs."""

    def _by_graph(self, vector: Tensor, chunk: Chunk) -> Tensor:
        point = self.theta.clone().requires_grad_()
        outputs = self.objective.outputs(point, chunk)
        along = _pushforward(outputs, point, vector)
        bent = self._bent(outputs.detach(), along, chunk)
        return torch.autograd.grad(outputs, point, bent)[0]

    def _tape(self, number: int, chunk: Chunk) -> Any:
        assert self._engine is not None
        if self.objective.num_chunks > 1:
            return self._engine.tape(chunk)
        if self._tapes is None:
            self._tapes = [self._engine.tape(chunk)]
        return self._tapes[number]

    def _traced(self) -> LayersEngine | None:
        try:
            engine = LayersEngine(self.objective, self.theta)
            engine.tape(next(self.objective.chunks(1)))
            return engine
        except (UntraceableError, RuntimeError):
            return None


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

    def _by_layers(self, tape: Any, vector: Tensor, chunk: Chunk) -> Tensor:
        return tape.product(vector[None], gauss_newton=True)[0]

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

    def _by_layers(self, tape: Any, vector: Tensor, chunk: Chunk) -> Tensor:
        return tape.fisher_product(vector, self._values(chunk)) / self.objective.num_samples

    def _bent(self, outputs: Tensor, along: Tensor, chunk: Chunk) -> Tensor:
        point = outputs.requires_grad_()
        (slope,) = torch.autograd.grad(self._values(chunk)(point).sum(), point)
        rates = (slope * along).flatten(1).sum(1)  # gₙ·v, [B]
        weighted = slope * rates.view(-1, *[1] * (slope.ndim - 1))
        return weighted / self.objective.num_samples

    def _values(self, chunk: Chunk) -> Callable[[Tensor], Tensor]:
        return lambda outputs: self.objective.sample_losses(outputs, chunk)


def _pushforward(outputs: Tensor, point: Tensor, vector: Tensor) -> Tensor:
    """Return J v: the gradient, with respect to u, of ⟨Jᵀ u, v⟩."""
    dual = torch.zeros_like(outputs, requires_grad=True)
    (pulled,) = torch.autograd.grad(outputs, point, dual, create_graph=True)
    return torch.autograd.grad(pulled, dual, vector, materialize_grads=True)[0].detach()
