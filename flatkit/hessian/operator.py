"""The Hessian of an objective at a point, through exact Hessian-vector products."""

from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.objective import Objective, differentiate
from flatkit.operators import SymmetricOperator


class _Graph(NamedTuple):
    """The gradient of a chunk's loss at a point, still differentiable."""

    point: Tensor
    gradient: Tensor


@final
class HessianOperator(SymmetricOperator):
    """H(θ) = ∇²L(θ) of an objective, by double backward (Pearlmutter, 1994).

    H v = ∇(∇L(θ)·v), exact but for rounding, over all the samples, chunk by chunk. Where all the
    samples fit in one chunk, the graph of the gradient is built once and kept: a product then
    costs about 2 gradients instead of 3, and the memory of one differentiable gradient is held
    until the operator is dropped.

    Args:
        objective: the function.
        theta: the point [P]; the objective's own by default.
        retain_graph: keep the graph between products; by default if there is only one chunk.

    Raises:
        NonFiniteError: by `gradient` or a product, if the loss or it is NaN or infinite.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> HessianOperator(objective) @ torch.tensor([1.0])  # 2·(1² + 2²) / 2
    tensor([5.])
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        retain_graph: bool | None = None,
    ) -> None:
        self.objective = objective
        self.theta = (objective.theta if theta is None else theta).detach()
        self.retain_graph = objective.num_chunks == 1 if retain_graph is None else retain_graph
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self._kept: list[_Graph] = []

    def gradient(self) -> Tensor:
        """Return ∇L(θ) of shape [P]; free if the graph is kept and was built."""
        self.objective.tally.gradients += not self._kept
        total = torch.zeros_like(self.theta)
        for graph in self._graphs():
            total += graph.gradient.detach()
        return _finite(total, "gradient")

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v for v of shape [P]."""
        total = torch.zeros_like(self.theta)
        for point, gradient in self._graphs():
            if not gradient.requires_grad:  # a loss that is linear in θ has no curvature
                continue
            total += torch.autograd.grad(
                gradient,
                point,
                grad_outputs=vector,
                retain_graph=self.retain_graph,
                materialize_grads=True,
            )[0]
        self.objective.tally.matvecs += 1
        return _finite(total, "Hessian-vector product")

    def _graphs(self) -> Iterator[_Graph]:
        if self._kept:
            yield from self._kept
            return
        kept = []
        for chunk in self.objective.chunks():
            point = self.theta.clone().requires_grad_()
            loss = self.objective.chunk_loss(point, chunk)
            graph = _Graph(point, differentiate(loss, point, create_graph=True))
            if self.retain_graph:
                kept.append(graph)
            yield graph
        self._kept = kept


def _finite(vector: Tensor, what: str) -> Tensor:
    if not vector.isfinite().all():
        raise NonFiniteError(
            f"the {what} has NaN or infinite entries; the loss overflows here (try "
            "dtype=float64) or is not twice differentiable at this point"
        )
    return vector
