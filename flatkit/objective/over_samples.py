"""The samples of an objective: how many, cut into chunks, shared out among ranks, and counted."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from flatkit.devices.ranks import Ranks
from flatkit.objective.passes import Chunk, Counter, chunk_of
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.pytree import take
from flatkit.objective.reading.sample_set import Samples
from flatkit.results.cost import Cost


class OverSamples(ABC):
    """The samples of a mean: the half of `Objective` that holds them.

    Attributes:
        samples: those in use.
        weights: what each counts [N], float64.
        total_weight: their sum.
        chunk_size: samples that go through the model at once.
        divisible: whether L is the same however samples are cut.
        ranks: the processes among which a pass is shared out.
    """

    samples: Samples
    weights: Tensor
    total_weight: float
    chunk_size: int
    divisible: bool
    ranks: Ranks
    _counter: Counter

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the computation."""

    @property
    def num_samples(self) -> int:
        """N, the samples in use."""
        return self.samples.count

    @property
    def num_rows(self) -> int:
        """How many rows they are: one a sample, or one a batch that cannot be cut."""
        return len(self.samples)

    @property
    def most_rows(self) -> int:
        """How many of them the rank with the most goes through in a pass."""
        if self.divisible:
            # The rank with the most says how much memory a pass needs.
            return self.ranks.largest_part(self.num_rows)
        return min(self.num_rows, self.ranks.largest_part(self.num_chunks) * self.chunk_size)

    @property
    def num_chunks(self) -> int:
        """How many chunks one pass takes, of one process over all the samples."""
        return -(-self.num_rows // self.chunk_size)

    @property
    def cost(self) -> Cost:
        """What was computed so far; the difference of two readings is what a measurement cost.

        Blocks of the objective and relatives with other buffers count in the same place.
        """
        return self._counter.read()

    def count(self, *, losses: int = 0, gradients: int = 0, matvecs: int = 0) -> None:
        """Count what is computed by other ways than `chunks`, in passes over all the samples."""
        self._counter.add(losses=losses, gradients=gradients, matvecs=matvecs)

    def count_with(self, other: "OverSamples") -> None:
        """From now on count in the same place as another objective."""
        self._counter = other._counter

    def chunks(
        self, size: int | None = None, *, losses: int = 0, gradients: int = 0, matvecs: int = 0
    ) -> Iterator[Chunk]:
        """Yield the samples in parts, and count what is computed on this pass over them.

        Of several ranks each has its own part of the samples, or some whole chunks where these are
        part of the function; what they add up `ranks.adding` brings together.

        Args:
            size: samples a part, the last possibly fewer; `chunk_size` by default.
            losses: how many evaluations of the loss the pass makes.
            gradients: how many gradients.
            matvecs: how many Hessian-vector products.
        """
        self.count(losses=losses, gradients=gradients, matvecs=matvecs)
        for rows in self.parts(size):
            yield self.rows(rows)

    def parts(self, size: int | None = None) -> Iterator[slice]:
        """Yield which samples each of the parts that `chunks` yields has."""
        size = self.chunk_size if size is None else size
        if self.divisible:
            own = self.ranks.part(self.num_rows)
            starts = range(own.start, own.stop, size)
        else:
            starts = range(0, self.num_rows, size)
            # Where chunks are part of the function, ranks share out these, not samples.
            own, starts = slice(0, self.num_rows), starts[self.ranks.part(len(starts))]
        for start in starts:
            yield slice(start, min(start + size, own.stop))

    def rows(self, rows: slice | Tensor) -> Chunk:
        """Return some of the samples as a chunk."""
        # Not by `Samples.rows`: a pass does not ask for their numbers in the data.
        inputs, targets = (take(tree, rows) for tree in (self.samples.inputs, self.samples.targets))
        here = rows.cpu() if isinstance(rows, Tensor) else rows
        counts = self.samples.counts
        return chunk_of(
            inputs, targets, self.weights[here], None if counts is None else counts[here]
        )

    def chunks_of(self, rows: Tensor, size: int | None = None) -> Iterator[Chunk]:
        """Yield those of some rows, int64, that this rank goes through, in chunks.

        Args:
            rows: which.
            size: samples a chunk; `chunk_size` by default.
        """
        own = rows[self.ranks.part(len(rows))]
        for part in own.split(size or self.chunk_size) if len(own) else ():
            yield self.rows(part.to(self.device))

    def spread(self, size: int) -> Chunk:
        """Return up to `size` samples that are spread over all of them, the same each time."""
        return self.rows(spread_rows(self.num_rows, size).to(self.device))

    @property
    def indices(self) -> Tensor:
        """Which samples of the data are in use, int64 [N]."""
        return self.samples.indices

    def weigh(self, weights: Tensor) -> None:
        """Let samples count by weights [N], float64, and leave out those that count for nothing."""
        counted = weights > 0
        # Of these no pass is made: a chunk that holds
        # nothing else would have a weight of 0 to divide by.
        if not bool(counted.all()):
            self.samples = self.samples.rows(counted.nonzero().squeeze(1).to(self.device))
            weights = weights[counted]
        self.weights, self.total_weight = weights, float(weights.sum())

    def as_one_batch(self) -> None:
        """Let all samples go through the model at once, as they depend on each other."""
        # Not divisible any more: measures that take blocks or batches of the samples must not.
        self.chunk_size, self.divisible = self.num_rows, False


def sums(count: int) -> Tensor:
    """Return zeros to add numbers up in, float64 [K], on the CPU.

    >>> sums(2)
    tensor([0., 0.], dtype=torch.float64)
    """
    return torch.zeros(count, dtype=torch.float64)
