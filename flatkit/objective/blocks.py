"""Blocks of samples: what each contributes to a mean says how far other samples would move it.

The blocks are drawn once for all, so that runs on the same samples have the same ones, and samples
that lie in an order, say of their classes, do not make blocks of one kind.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk, differentiate

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

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Chunk]]:
        """Yield the number of each block with its samples, in parts that fit into memory.

        Args:
            size: samples a part; the chunk size of the objective by default.
        """
        objective = self.objective
        for number, rows in enumerate(self.rows):
            for part in rows.split(size or objective.chunk_size):
                yield number, objective.rows(part.to(objective.device))

    def gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield what each block contributes to ∇L(θ) [P]; they add up to it. Cost: a gradient."""
        self.objective.count(gradients=1)
        total, at = torch.zeros_like(self.objective.theta), 0
        for number, chunk in self.chunks():
            if number != at:
                yield total
                total, at = torch.zeros_like(total), number
            # A point for each: complex weights are made of it by a graph that backward frees.
            with self.objective.placed(theta) as point:
                total += differentiate(self.objective.chunk_loss(point, chunk), point)
        yield total

    def losses(self, theta: Tensor) -> list[float]:
        """Return what each block contributes to L(θ). Cost: an evaluation of the loss."""
        return self.evaluate(theta).losses

    def evaluate(self, theta: Tensor) -> "BlockValues":
        """Return what each block contributes to loss and accuracy. Cost: one of the loss."""
        objective, found = self.objective, BlockValues.zeros(len(self.rows))
        objective.count(losses=1)
        total, decision = objective.total_weight, objective.decision
        with torch.no_grad(), objective.placed(theta) as point:
            for number, chunk in self.chunks():
                outputs = objective.outputs(point, chunk)
                values = objective.values(outputs, chunk).detach()
                found.losses[number] += float(objective.share(outputs, chunk).detach())
                found.note(values.double().cpu() / total if values.ndim else None)
                if decision is not None:
                    right, asked = decision.right(outputs, chunk.targets)
                    found.right[number] += right
                    found.asked[number] += asked
        return found


@dataclass(eq=False)
class BlockValues:
    """What blocks contribute to a loss and an accuracy.

    Attributes:
        losses: to the loss.
        right: samples classified correctly.
        asked: of so many.
        singles: what each sample contributes to the loss, in the order of the blocks; None if the
            loss does not say.
    """

    losses: list[float]
    right: list[int]
    asked: list[int]
    singles: list[Tensor] | None

    @classmethod
    def zeros(cls, count: int) -> "BlockValues":
        """Return nothing, for so many blocks."""
        return cls([0.0] * count, [0] * count, [0] * count, [])

    def note(self, values: Tensor | None) -> None:
        """Add what single samples contribute, or that it is not known."""
        if values is None:
            self.singles = None
        elif self.singles is not None:
            self.singles.append(values)


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
