"""Samples of a training on its device: batches of them, parts of these, and means over them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.data.dataset import Split
from flatkit.objective.pytree import Tree, leaves, map_tree, take

_CHUNK = 2048
"""Samples a forward pass: it bounds the activations, and is beyond what keeps a GPU busy."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples, row by row.

    Attributes:
        inputs: a tree of tensors [N, ...].
        targets: a tree of tensors [N, ...].
        weights: what each sample counts in a mean, [N]; None where all count alike.
        chunk: how many go through a model at once in an evaluation.

    >>> rows = Rows(torch.ones(5, 2), torch.arange(5))
    >>> [part.samples for part in rows.parts(2)]
    [3, 2]
    """

    inputs: Tree
    targets: Tree
    weights: Tensor | None = None
    chunk: int = _CHUNK

    @classmethod
    def of(cls, split: "Split | Rows") -> "Rows":
        """Return the samples of a split of a data set."""
        return cls(split.inputs, split.targets) if isinstance(split, Split) else split

    @property
    def samples(self) -> int:
        """The number of samples N."""
        return len(next(leaves(self.inputs)))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(leaves(self.inputs)).device

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one sample; empty where it is no single tensor."""
        return tuple(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else ()

    @property
    def weight(self) -> float:
        """What all of them count."""
        return float(self.samples if self.weights is None else self.weights.sum())

    def take(self, rows: Tensor | slice) -> "Rows":
        """Return some of them."""
        weights = None if self.weights is None else self.weights[rows]
        return Rows(take(self.inputs, rows), take(self.targets, rows), weights, self.chunk)

    def to(self, device: torch.device) -> "Rows":
        """Return them on a device."""
        inputs, targets = (
            map_tree(lambda leaf: leaf.to(device), tree) for tree in (self.inputs, self.targets)
        )
        weights = None if self.weights is None else self.weights.to(device)
        return Rows(inputs, targets, weights, self.chunk)

    def chunks(self, size: int | None = None) -> Iterator["Rows"]:
        """Yield them in parts of a size, the last possibly smaller."""
        size = size or self.chunk
        for start in range(0, self.samples, size):
            yield self.take(slice(start, start + size))

    def parts(self, count: int) -> list["Rows"]:
        """Return them in so many parts, as even as can be."""
        if count == 1:
            return [self]
        # Even parts: of 65 samples in two, one of 64 and
        # one of a single sample would break BatchNorm.
        bounds = torch.arange(self.samples).tensor_split(count)
        return [self.take(slice(int(part[0]), int(part[-1]) + 1)) for part in bounds]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean loss of these samples.

        Args:
            values: what the loss gave for them: one a sample [N], or their mean.
        """
        if values.ndim == 0:
            return values
        # Losses that count samples differently return values that are multiplied already.
        return values.mean() if self.weights is None else values.sum() / self.weights.sum()

    def total(self, values: Tensor) -> Tensor:
        """Return what these samples add to a sum that `weight` divides; `values` as of `mean`."""
        return values * self.weight if values.ndim == 0 else values.sum()
