"""The loss of a chunk of which each rank of a sharded model takes its part (`fully_shard`)."""

from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flatkit.objective.over_samples import sums
from flatkit.objective.passes import Chunk
from flatkit.objective.pytree import map_tree
from flatkit.objective.users_code import users_code

if TYPE_CHECKING:
    from flatkit.objective.function import Objective


class Part(NamedTuple):
    """What one rank takes of a chunk.

    Attributes:
        chunk: some of the samples.
        factor: what these count: 1, 0 of a rank that has none and takes one all the same, as a pass
            through the model is made by all; 1/N where every rank takes all of them.
    """

    chunk: Chunk
    factor: float


def part_of(objective: "Objective", chunk: Chunk) -> Part:
    """Return what this rank takes of a chunk, which is cut where samples count alike."""
    assert objective.sharded is not None
    ranks = objective.sharded.ranks.apart
    alike = objective.divisible and bool((objective.weights == 1).all())
    if not alike or chunk.units or chunk.counted is not None:
        return Part(chunk, 1 / ranks.count)
    own = ranks.part(chunk.size)
    # A rank without samples runs one all the same: hooks
    # of `fully_shard` gather weights by all ranks.
    taken = own if own.stop > own.start else slice(1)
    inputs, targets = (map_tree(lambda x: x[taken], tree) for tree in (chunk.inputs, chunk.targets))
    few = Chunk(inputs, targets, float(taken.stop - (taken.start or 0)))
    return Part(few, float(own.stop > own.start))


def joint_loss(objective: "Objective", point: Tensor, chunk: Chunk) -> Tensor:
    """Return the part of L that a chunk contributes, by all ranks together, differentiable once.

    Args:
        objective: of a sharded model.
        point: that stands in it.
        chunk: the same on all ranks.
    """
    return _Joint.apply(point, objective, chunk)  # pyright: ignore


def joint_value(objective: "Objective", point: Tensor, chunk: Chunk) -> tuple[float, int, int]:
    """Return what a chunk adds to L, and how many of how many samples are right."""
    assert objective.sharded is not None
    part, factor = part_of(objective, chunk)
    outputs, decision, found = objective.outputs(point, part), objective.decision, sums(3)
    with objective.sharded.ranks.apart.adding(sums=found):
        right, asked = (0, 0) if decision is None else decision.right(outputs, part.targets)
        value = float(objective.share(outputs, part).detach())
        # Where all ranks took all samples each counts a
        # part, so that right ones are rounded afterwards.
        found += factor * torch.tensor([value, right, asked], dtype=found.dtype)
    loss, right, asked = found.tolist()
    return loss, round(right), round(asked)


@final
class _Joint(torch.autograd.Function):
    """The value, with a gradient that is computed at once: hooks of `fully_shard` gather it."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, point: Tensor, objective: "Objective", chunk: Chunk
    ) -> Tensor:
        sharded = objective.sharded
        assert sharded is not None
        (part, factor), ranks = part_of(objective, chunk), sharded.ranks.apart
        value = sums(1)
        with sharded.own_gradients(), torch.enable_grad():
            outputs = objective.outputs(point, part)
            with ranks.adding(sums=value):  # all hear of a loss that failed before any waits
                share = objective.share(outputs, part) * factor
                value += float(share.detach())
            if share.requires_grad:
                with users_code("the backward pass"):
                    (share * ranks.count).backward()  # of the gradients the mean is taken
            named = sharded.gradients()
            gradient = objective.space.flatten({n: named[n] for n in objective.space.names})
        with ranks.adding(gradient):
            del share, outputs
        # The gradient at this point is all that there is: of it no second derivative can be taken.
        ctx.save_for_backward(gradient)
        return value[0].to(point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
