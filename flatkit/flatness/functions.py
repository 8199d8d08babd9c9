"""Functions on a ball, at many points at once: the loss increase and the gradient norm."""

from functools import cached_property, partial
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.func import vmap

from flatkit.flatness.frank_wolfe import FunctionValues
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.quadratic_model import Quantity
from flatkit.hessian.operator import HessianOperator
from flatkit.hessian.plan import Plan
from flatkit.objective.function import Objective
from flatkit.objective.model.one_function import has_fused_paths
from flatkit.objective.over_samples import sums
from flatkit.objective.pytree import leaves
from flatkit.spectrum.operators import SymmetricOperator

_MOST_ROWS = 64  # points of a batch
# Of one forward pass, above which a batch of points is no faster than a loop over them.
_MULTIPLICATIONS = 2**25
# Of one batch of points, so that the activations of all of them fit in memory.
_INPUT_NUMBERS = 2**22


@final
class LossIncrease:
    """φ(u) = L(θ + T u) − L(θ); one gradient gives the value and the ascent.

    Args:
        objective: L.
        theta: θ [P].
        geometry: T.
    """

    quantity: ClassVar[Quantity] = "loss"
    value_cost, ascent_cost = 1, 0

    def __init__(self, objective: Objective, theta: Tensor, geometry: Geometry) -> None:
        self.objective, self.theta, self.geometry = objective, theta, geometry
        self.hessian: SymmetricOperator = HessianOperator(objective, theta)
        self.base = objective.loss(theta)
        self.product_cost = product_cost(objective)

    @property
    def rows(self) -> int:
        """How many points are best evaluated at once."""
        return self._rows

    @cached_property
    def _rows(self) -> int:
        return batch_rows(self.objective, self.theta)

    def __call__(self, u: Tensor) -> FunctionValues:
        """Evaluate φ at the rows of u [K, P]. Cost: K gradients."""
        points = self.theta + self.geometry.displacement(u)
        if len(points) == 1:
            loss, gradient = self.objective.loss_and_gradient(points[0])
            losses, gradients = torch.tensor([loss], dtype=torch.float64), gradient[None]
        else:
            losses, gradients = _gradients(self.objective, points)
        return FunctionValues(losses - self.base, lambda _: self.geometry.displacement(gradients))


@final
class GradientNorm:
    """φ(u) = ‖T ∇L(θ + T u)‖ in the dual norm; its gradient is a Hessian-vector product.

    With c = T ∇L and s the gradient of the dual norm at c (c/‖c‖, or sign c in the L∞ ball),
    ∇φ = T H(θ + T u) T s. Its secant is T (∇L(θ + T u) − ∇L(θ + T (u − h s))) / h, for one more
    gradient.

    Args:
        objective: L.
        theta: θ [P].
        geometry: T.
    """

    quantity: ClassVar[Quantity] = "gradient_norm"
    value_cost = 1

    def __init__(self, objective: Objective, theta: Tensor, geometry: Geometry) -> None:
        self.objective, self.theta, self.geometry = objective, theta, geometry
        self.hessian: SymmetricOperator = HessianOperator(objective, theta)
        self.product_cost = product_cost(objective)
        self.ascent_cost = self.product_cost + 1  # the gradient at its point is computed again

    @property
    def rows(self) -> int:
        """How many points are best evaluated at once."""
        return self._rows

    @cached_property
    def _rows(self) -> int:
        return batch_rows(self.objective, self.theta)

    def __call__(self, u: Tensor) -> FunctionValues:
        """Evaluate φ at the rows of u [K, P]. Cost: K gradients; as many for secants."""
        gradients = self._gradients(u)

        def steepest() -> Tensor:  # not kept: of a large network it is as much as the gradients
            return self.geometry.maximiser(self.geometry.displacement(gradients), 1.0)

        def secants(u: Tensor, step: float) -> Tensor:
            # Backwards, to where φ was lower: the docstring of `FunctionValues.secants`.
            change = gradients - self._gradients(u - step * steepest())
            return self.geometry.displacement(change) / step

        def ascents(u: Tensor) -> Tensor:
            return torch.stack([self._ascent(*rows) for rows in zip(u, steepest(), strict=True)])

        values = self.geometry.dual_norm(self.geometry.displacement(gradients))
        return FunctionValues(values.cpu(), ascents, secants)

    @cached_property
    def _plan(self) -> Plan:
        """How products at other points than θ are cut: as there, but nothing is kept for a next."""
        return Plan(HessianOperator(self.objective, self.theta).plan.chunk_size, 0)

    def _gradients(self, u: Tensor) -> Tensor:
        points = self.theta + self.geometry.displacement(u)
        del u  # which the caller may not hold
        if len(points) == 1:
            return self.objective.gradient(points[0])[None]
        return _gradients(self.objective, points)[1]

    def _ascent(self, u: Tensor, steepest: Tensor) -> Tensor:
        hessian = HessianOperator(self.objective, self.theta + self.geometry.displacement(u))
        hessian.plan = self._plan
        return self.geometry.displacement(hessian.matvec(self.geometry.displacement(steepest)))


def product_cost(objective: Objective) -> int:
    """Return what a Hessian-vector product costs in gradients, beside the gradient at its point.

    Two where the graph of the gradient is kept, that is with one chunk; else it is built again.
    """
    return 2 if objective.num_chunks == 1 else 3


def batch_rows(objective: Objective, theta: Tensor) -> int:
    """Return how many points are evaluated at once: 1 where a batch is no faster, or fails.

    A batch shares the overhead of the operations, which is most of the time of a small network. Two
    points are tried, and a model that cannot be batched, or gives other values then, is not.
    """
    if objective.num_chunks > 1 or objective.sharded is not None:
        return 1
    numbers = sum(leaf.numel() for leaf in leaves(objective.samples.inputs))
    work = max(1, objective.num_parameters * objective.num_samples)
    rows = min(_MOST_ROWS, _MULTIPLICATIONS // work, _INPUT_NUMBERS // max(1, numbers))
    fused = has_fused_paths(objective.model)  # what vmap wraps requires no gradient for them
    return rows if rows >= 4 and not fused and _can_batch(objective, theta) else 1


def _can_batch(objective: Objective, theta: Tensor) -> bool:
    # Two different points: with equal rows a batch that mixes them would not show.
    points = torch.stack([theta, theta * 1.01])  # [2, P]
    try:
        losses, gradients = _gradients(objective, points)
    except RuntimeError:  # what vmap raises for an operation of the model without a batching rule
        return False
    alone = [objective.loss_and_gradient(point) for point in points]
    near = 1e3 * torch.finfo(theta.dtype).eps  # sums in another order, no other function
    return all(
        abs(float(losses[row]) - loss) <= near * max(1.0, abs(loss))
        and float((gradients[row] - gradient).norm()) <= near * max(1.0, float(gradient.norm()))
        for row, (loss, gradient) in enumerate(alone)
    )


def _gradients(objective: Objective, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return L [K] in float64 and ∇L [K, P] at the rows of points."""
    losses, gradients = sums(len(points)), torch.zeros_like(points)
    with objective.ranks.adding(gradients, losses):
        # The rows share nothing but the samples, so that the
        # gradient of the sum is one of each row.
        for chunk in objective.chunks(gradients=len(points)):  # one at most
            leaf = points.detach().requires_grad_()
            found = vmap(partial(objective.chunk_loss, chunk=chunk), randomness="error")(leaf)
            gradients += torch.autograd.grad(found.sum(), leaf)[0]
            losses += found.detach().double().cpu()
    return losses, gradients
