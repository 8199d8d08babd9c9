"""Jᵀ B J of a chunk of samples: J the derivative of some values, B what bends their directions.

For the Gauss-Newton matrix the values are the outputs of the model, in whatever shapes and
containers, and B is the Hessian of the loss in them. For the empirical Fisher matrix they are the
losses of the samples, and B = 1/N. No dimension of the outputs is taken for the samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from flatkit.errors import InvalidArgumentError
from flatkit.hessian.layers.tape import Tape
from flatkit.hessian.layers.trace import Network
from flatkit.hessian.products import Formula
from flatkit.hessian.unsupported import torch_derivatives
from flatkit.objective.function import Objective
from flatkit.objective.losses import ModelLoss
from flatkit.objective.passes import Chunk, gradients

Directions: TypeAlias = Sequence[Tensor]
"""A direction of each of the values."""


class Linearised(NamedTuple):
    """What is linearised of a chunk.

    Attributes:
        values: differentiable in θ.
        bend: directions of them -> B times these.
    """

    values: list[Tensor]
    bend: Callable[[Directions], Directions]


Head: TypeAlias = Callable[[Objective, Any, Chunk], Linearised]
"""(objective, outputs of the model, chunk) -> what is linearised."""


def outputs_head(objective: Objective, outputs: Any, chunk: Chunk) -> Linearised:
    """Return the outputs, and the Hessian of the loss in them.

    Raises:
        InvalidArgumentError: the loss is no function of the outputs alone.
    """
    if isinstance(objective.loss_function, ModelLoss):
        raise InvalidArgumentError(
            "the Gauss-Newton matrix needs a loss of the outputs; this model computes its loss "
            "itself (loss 'model'). Give a loss of (outputs, targets), such as cross_entropy"
        )
    values = [leaf for leaf in tree_leaves(outputs) if _depends(leaf)]
    # Leaves of their own: B must be the derivative in the outputs, not through them in θ.
    points = {id(value): value.detach().requires_grad_() for value in values}
    with torch.enable_grad():
        # Apart from each other: one output may have been computed from another one.
        apart = tree_map(lambda leaf: points.get(id(leaf), leaf), outputs)
        share = objective.share(apart, chunk)
        leaves = [points[id(value)] for value in values]
        if not values or not share.requires_grad:
            raise InvalidArgumentError(
                "the Gauss-Newton matrix needs outputs that are tensors, or lists, tuples and "
                f"dictionaries of them, on which the loss depends; got {type(outputs).__name__}"
            )
        with torch_derivatives():
            slopes = gradients(share, leaves, create_graph=True)
    curved = [slope.requires_grad for slope in slopes]

    def bend(along: Directions) -> Directions:
        if not any(curved):  # a loss that is linear in the outputs
            return [torch.zeros_like(leaf) for leaf in leaves]
        bent = [slope for slope, has in zip(slopes, curved, strict=True) if has]
        given = [part for part, has in zip(along, curved, strict=True) if has]
        with torch_derivatives():
            return gradients(bent, leaves, given, retain_graph=True)

    return Linearised(values, bend)


def losses_head(objective: Objective, outputs: Any, chunk: Chunk) -> Linearised:
    """Return the losses of the samples, and 1/N.

    Raises:
        InvalidArgumentError: the loss does not return one value per sample.
    """
    with torch.enable_grad():
        values = objective.losses(outputs, chunk.targets)
    if values.shape != (chunk.size,) or objective.total_weight != objective.num_samples:
        raise InvalidArgumentError(
            "the empirical Fisher matrix needs the loss of every sample; give a loss that returns "
            f"one value per sample, [{chunk.size}] here (got {list(values.shape)}), e.g. "
            "reduction='none'"
        )
    return Linearised([values], lambda along: [along[0] / objective.num_samples])


def by_graph(head: Head, objective: Objective, theta: Tensor, chunk: Chunk) -> Formula:
    """J by two backward passes (the derivative of Jᵀu in u), Jᵀ by one."""
    with objective.placed(theta) as point:
        values, bend = head(objective, objective.outputs(point, chunk), chunk)
        # Jᵀu is linear in u, so that the value of u does not matter: zeros do.
        duals = [torch.zeros_like(value, requires_grad=True) for value in values]
        pulled = _pulled(values, point, duals, create_graph=True)

    def products(vectors: Tensor) -> Tensor:
        found = torch.empty_like(vectors)
        # What the model recomputes needs the weights of the forward pass once more.
        with objective.placed_again(point):
            for row, vector in zip(found, vectors, strict=True):
                with torch_derivatives():
                    along = gradients(pulled, duals, vector, retain_graph=True)
                # Jᵀ B (J v)
                row.copy_(_pulled(values, point, bend(along)))
        return found

    return Formula(products)


def by_differences(
    head: Head, objective: Objective, theta: Tensor, chunk: Chunk, *, steps: float = 1.0
) -> Formula:
    """J by central differences of the values, Jᵀ by a backward pass.

    The step is that of `central_difference`, times `steps`.
    """
    size = steps * 0.1 * torch.finfo(theta.dtype).eps ** (1 / 3) * max(1.0, float(theta.norm()))
    with objective.placed(theta) as point:
        values, bend = head(objective, objective.outputs(point, chunk), chunk)

    def at(theta: Tensor) -> list[Tensor]:
        with objective.placed(theta) as there:
            moved = head(objective, objective.outputs(there, chunk), chunk)
            return [value.detach() for value in moved.values]

    def products(vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        for row, vector in zip(found, vectors, strict=True):
            length = float(vector.norm())
            if length == 0:
                continue
            step = vector * (size / length)
            pairs = zip(at(theta + step), at(theta - step), strict=True)
            # J v = ‖v‖ · (f(θ + h u) - f(θ - h u)) / 2h with the unit vector u = v/‖v‖.
            along = [(ahead - behind) * (length / (2 * size)) for ahead, behind in pairs]
            with objective.placed_again(point):
                row.copy_(_pulled(values, point, bend(along)))
        return found

    return Formula(products)


def by_layers(
    network: Network, head: Head, objective: Objective, theta: Tensor, chunk: Chunk
) -> Formula:
    """J and Jᵀ layer by layer.

    Raises:
        UnsupportedError: a layer has no rule here.
    """
    tape = Tape(network, objective, theta, chunk)
    outputs = tape.outputs.detach().requires_grad_()
    values, bend = head(objective, outputs, chunk)
    duals = [torch.zeros_like(value, requires_grad=True) for value in values]
    pulled = _pulled(values, outputs, duals, create_graph=True)

    def bend_outputs(direction: Tensor) -> Tensor:
        with torch_derivatives():
            along = gradients(pulled, duals, direction, retain_graph=True)
        return _pulled(values, outputs, bend(along))

    def products(vectors: Tensor) -> Tensor:
        # One by one: `bend_outputs` takes one direction of the outputs at a time.
        rows = [tape.products(row[None], bend=bend_outputs, curved=False) for row in vectors]
        return torch.cat(rows)

    return Formula(products, tape.gradient)


def _depends(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _pulled(
    values: Sequence[Tensor], point: Tensor, duals: Directions, *, create_graph: bool = False
) -> Tensor:
    """Return Jᵀu."""
    with torch.enable_grad(), torch_derivatives():
        return gradients(
            list(values), point, list(duals), create_graph=create_graph, retain_graph=True
        )[0]
