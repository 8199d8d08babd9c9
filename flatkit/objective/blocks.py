"""Blocks of samples: what each contributes to a mean says how far other samples would move it.

The blocks are drawn once for all, so that runs on the same samples have the same ones, and samples
that lie in an order, say of their classes, do not make blocks of one kind.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.devices import ordinary_torch
from flatkit.objective.function import Objective
from flatkit.objective.over_samples import sums
from flatkit.objective.passes import differentiate

MOST_BLOCKS = 25
"""Student's t of so many is within 6 % of the normal quantile, and small networks pay for each."""
LEAST_BLOCKS = 8


@dataclass(frozen=True, eq=False)
class Blocks:
    """The samples of an objective in parts of nearly equal size, drawn at random.

    Attributes:
        objective: whose samples they are.
        rows: of each block, int64.
    """

    objective: Objective
    rows: Sequence[Tensor]

    @property
    def weights(self) -> list[float]:
        """What each block counts in the mean over all; they add up to 1."""
        weights, total = self.objective.weights, self.objective.total_weight
        return [float(weights[rows].sum()) / total for rows in self.rows]

    def gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield what each block contributes to ∇L(θ) [P]; they add up to it. Cost: a gradient."""
        objective = self.objective
        objective.count(gradients=1)
        for rows in self.rows:
            total = torch.zeros_like(objective.theta)
            with objective.ranks.adding(total):
                for chunk in objective.chunks_of(rows):
                    # A point for each: complex weights are made of it by a graph that backward
                    # frees.
                    with objective.placed(theta) as point:
                        total += differentiate(objective.chunk_loss(point, chunk), point)
            yield total

    def losses(self, theta: Tensor) -> list[float]:
        """Return what each block contributes to L(θ). Cost: an evaluation of the loss."""
        return self.evaluate(theta).losses

    @ordinary_torch()
    def evaluate(self, theta: Tensor) -> "BlockValues":
        """Return what each block contributes to loss and accuracy. Cost: one of the loss."""
        objective, decision = self.objective, self.objective.decision
        objective.count(losses=1)
        known, singles, at = sums(3 * len(self.rows) + 1), sums(objective.num_rows), 0
        # Views of one tensor, so that one sum over the ranks brings all of it together.
        numbers, unknown = known[:-1].view(-1, 3), known[-1:]  # loss, right, asked of each block
        ranks = objective.ranks
        with torch.no_grad(), objective.placed(theta) as point, ranks.adding(singles, known):
            for rows, sum_of_block in zip(self.rows, numbers, strict=True):
                # Where a sample stands follows from the blocks
                # and the parts of the ranks alone: no rank asks.
                place = at + ranks.part(len(rows)).start
                for chunk in objective.chunks_of(rows):
                    outputs = objective.outputs(point, chunk)
                    values = objective.values(outputs, chunk).detach()
                    share = float(objective.share(outputs, chunk).detach())
                    right = (0, 0) if decision is None else decision.right(outputs, chunk.targets)
                    sum_of_block += torch.tensor([share, *right], dtype=torch.float64)
                    if values.ndim:
                        own = values.double().cpu() / objective.total_weight
                        singles[place : place + len(own)] = own
                        place += len(values)
                    unknown += values.ndim == 0
                at += len(rows)
        losses, right, asked = numbers.T.tolist()
        return BlockValues(losses, right, asked, None if bool(unknown) else singles)


@dataclass(eq=False)
class BlockValues:
    """What blocks contribute to a loss and an accuracy.

    Attributes:
        losses: to the loss.
        right: samples classified correctly.
        asked: of so many.
        singles: what each sample contributes to the loss, float64 [N] in the order of the blocks;
            None if the loss does not say.
    """

    losses: list[float]
    right: list[float]
    asked: list[float]
    singles: Tensor | None


def blocks_of(objective: Objective) -> Blocks | str:
    """Return the blocks of an objective, or why it has none.

    >>> from torch import nn
    >>> data = (torch.ones(20, 1), torch.zeros(20, 1))
    >>> blocks = blocks_of(Objective(nn.Linear(1, 1), "mse", data))
    >>> len(blocks.rows), round(sum(blocks.weights), 6)
    (20, 1.0)
    """
    if not objective.divisible:
        return "the samples of a batch depend on each other, so that the loss has no parts"
    rows = objective.num_rows
    if rows < LEAST_BLOCKS:
        return f"{rows} samples are too few, {LEAST_BLOCKS} are the least"
    # The same blocks in every run, so that those of two checkpoints make pairs.
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return Blocks(objective, order.tensor_split(min(MOST_BLOCKS, rows)))


def around(value: float, shares: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return what blocks say of a number, each as if all samples were like its own, to first order.

    Args:
        value: the number.
        shares: what each block contributes to it, or to an estimate of it.
        weights: of the blocks; they add up to 1.

    >>> around(2.0, [0.5, 1.5], [0.5, 0.5])
    [1.0, 3.0]
    """
    total, count = math.fsum(shares), len(shares)
    return [value + count * (share - total * w) for share, w in zip(shares, weights, strict=True)]
