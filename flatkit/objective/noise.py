"""By how much the numbers of an objective that computes in 16 bits are off, as it is measured."""

import copy
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatkit.objective.passes import Chunk, differentiate
from flatkit.objective.proofs.spread import spread_by_weight, spread_rows

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

FEWEST = 128
_SHARE, _MOST, _GROUPS = 20, 512, 16
"""Samples on which 16 bits are held against float32: `FEWEST` at least, one in so many if that is
more, and so many at most; and into how many groups they are cut, whose spread says how far all
samples may be from these."""
_QUANTILE = 2.5
"""Standard errors of 16 groups that a mean is off in one case of forty (Student's t)."""
_TIES = 2.0
"""Samples whose two best scores may tie in 16 bits; they fall with what they go through beside."""
_UNSEEN = 3.0
"""Of what none of n samples shows there are at most 3/n, at 95 % (the rule of three)."""


@dataclass(frozen=True)
class Noise:
    """By how much numbers in 16 bits may be off, against the weights and the sums in float32.

    Attributes:
        loss: |L̃ − L|.
        gradient: ‖∇L̃ − ∇L‖; infinite where it was not asked for.
        accuracy: of the fraction of samples that are classified correctly; None of no classifier.
        samples: on so many it was held against float32.
    """

    loss: float
    gradient: float
    accuracy: float | None
    samples: int


def measure_noise(
    objective: "Objective", theta: Tensor | None = None, *, slopes: bool = True
) -> Noise:
    """Return by how much loss, gradient and accuracy at a point are off.

    Three things are measured. On samples spread over all the data 16 bits are held against float32:
    this sees the rounding of weights and activations, also what it has in common for all samples.
    So is one whole chunk, for sums within it that lose small terms. And loss and gradient of all
    samples are computed once more in chunks of another size.

    The mean of few samples is itself uncertain: 2.5 standard errors over their groups are added,
    also where these are all, as kernels round otherwise in chunks of another size. Cost: two
    gradients and two losses, and two gradients of a chunk and of a twentieth of the samples.

    Args:
        objective: that computes in 16 bits.
        theta: the point [P]; the objective's own by default.
        slopes: measure it of the gradient too; without, it costs losses alone.
    """
    found = Noise(
        **objective.ranks.decided(lambda: asdict(_against_wide(objective, theta, slopes=slopes)))
    )
    if not objective.divisible or objective.num_rows < 2:  # chunks are part of the function
        return found
    # For another size of a batch kernels round otherwise: what changes is rounding.
    again = in_other_chunks(objective)
    usual, other = (one.evaluate(theta) for one in (objective, again))
    loss, slope = abs(usual.loss - other.loss), 0.0
    if slopes:
        (_, ours), (_, theirs) = (one.loss_and_gradient(theta) for one in (objective, again))
        slope = float((ours - theirs).double().norm())
    known = None not in (found.accuracy, usual.accuracy, other.accuracy)
    return Noise(
        found.loss + loss,
        found.gradient + slope,
        found.accuracy + abs(usual.accuracy - other.accuracy) if known else None,  # pyright: ignore
        found.samples,
    )


class NoiseOfPoints:
    """By how much the numbers at the points of a line or plane are off, in 16 bits.

    At each point some samples and a whole chunk are held against float32. What chunks of another
    size change takes another pass over all samples: it is measured at the centre, and makes the
    error of every point larger in proportion. Cost: at the centre that of `measure_noise`; at a
    point two passes over a chunk and over a twentieth of the samples, 128 at least, 512 at most.

    Args:
        objective: that computes in 16 bits.
        centre: [P].
        slopes: measure it of the gradient too.

    >>> data = (torch.ones(4, 1), torch.zeros(4, 1))  # L = θ²
    >>> from flatkit import Objective
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), "mse", data, dtype="bfloat16")
    >>> point = torch.tensor([1 + 2**-9])  # bfloat16 makes 1 of it
    >>> noise = NoiseOfPoints(objective, point, slopes=False)
    >>> noise.at(objective, point).loss >= (1 + 2**-9) ** 2 - objective.loss(point) > 0
    True
    """

    def __init__(self, objective: "Objective", centre: Tensor, *, slopes: bool) -> None:
        self._objective, self._centre, self._slopes = objective, centre, slopes

    def at(self, objective: "Objective", theta: Tensor) -> Noise:
        """Return by how much numbers at a point [P] may be off.

        Args:
            objective: the same function, whose statistics of BatchNorm may be others.
            theta: the point.
        """
        seen = self._seen(objective, theta)
        loss, gradient, accuracy = self._factors
        return Noise(
            loss * seen.loss,
            gradient * seen.gradient,
            None if seen.accuracy is None else accuracy * seen.accuracy,
            seen.samples,
        )

    def _seen(self, objective: "Objective", theta: Tensor) -> Noise:
        return _against_wide(objective, theta, slopes=self._slopes)

    @cached_property
    def _factors(self) -> tuple[float, float, float]:
        """By how much other chunks make errors of loss, gradient and accuracy larger."""
        seen = self._seen(self._objective, self._centre)
        whole = measure_noise(self._objective, self._centre, slopes=self._slopes)
        pairs = (
            (whole.loss, seen.loss),
            (whole.gradient, seen.gradient),
            (whole.accuracy, seen.accuracy),
        )
        loss, gradient, accuracy = (_ratio(*pair) for pair in pairs)
        return loss, gradient, accuracy


def passes_of_point(objective: "Objective") -> float:
    """Return what a point of a line or plane takes: 1, and in 16 bits more for its noise.

    For that the samples that are compared, and those of a chunk, go through in both dtypes.
    """
    rows = objective.num_rows
    if objective.narrow is None:
        return 1.0
    if not objective.divisible:
        return 1.0 + 2 * sum(chunk.size for chunk in some_chunks(objective, by_weight=True)) / rows
    return 1.0 + 2 * (min(_wanted(rows), rows) + min(objective.chunk_size, rows)) / rows


def in_other_chunks(objective: "Objective") -> "Objective":
    """Return the same function, computed in chunks of about half the size."""
    other = copy.copy(objective)
    other.chunk_size = max(1, -(-min(objective.chunk_size, objective.num_rows) // 2))
    other.kept = None
    return other


def some_chunks(objective: "Objective", *, by_weight: bool) -> list[Chunk]:
    """Return the samples on which 16 bits are held against float32, in groups that count alike.

    Args:
        objective: whose samples.
        by_weight: as often as they count in the loss; without, each alike.
    """
    count = objective.num_rows
    wanted = _wanted(count)
    if not objective.divisible:  # some whole chunks
        size = objective.chunk_size
        # Two at least: one alone has no spread.
        chosen = spread_rows(objective.num_chunks, max(2, wanted // size)).tolist()
        return [objective.rows(slice(size * number, size * (number + 1))) for number in chosen]
    weights = objective.weights if by_weight else torch.ones(count, dtype=torch.float64)
    rows = spread_by_weight(weights, wanted).to(objective.device)
    return [objective.rows(part) for part in rows.tensor_split(min(_GROUPS, len(rows)))]


@dataclass
class Spread:
    """The mean of some vectors, one a group of samples, and how far that of all may be from it.

    >>> spread = Spread()
    >>> for value in (1.0, 3.0):
    ...     spread.add(torch.tensor([value]))
    >>> spread.bound()  # 2, and 2.5 · √(2/2) more
    4.5
    """

    count: int = 0
    total: Tensor | None = None
    squares: float = 0.0

    def add(self, vector: Tensor) -> None:
        """Add that of a group."""
        vector = vector.detach().double()
        self.total = vector if self.total is None else self.total + vector
        self.squares += float(vector.square().sum())
        self.count += 1

    def bound(self) -> float:
        """Return what the length of the mean of all samples hardly exceeds."""
        if self.total is None:
            return 0.0
        mean = self.total / self.count
        size = float(mean.norm())
        if self.count < 2:
            # One group says nothing of the spread: it is taken to be as large as the mean.
            return size * (1 + _QUANTILE)
        scatter = max(0.0, self.squares - self.count * size * size) / (self.count - 1)
        return size + _QUANTILE * math.sqrt(scatter / self.count)


def at_point(
    objective: "Objective", chunk: Chunk, scale: float, theta: Tensor | None, *, slopes: bool = True
) -> tuple[Tensor, Tensor]:
    """Return mean loss and gradient [P] of a group, times a scale; without slopes [0]."""
    with objective.placed(theta, smooth=False) as point:
        share = objective.chunk_loss(point, chunk)
        slope = differentiate(share, point) if slopes else point.detach()[:0]
    return share.detach().double() * scale, slope * scale


def _wanted(count: int) -> int:
    return min(_MOST, max(FEWEST, count // _SHARE))


def _against_wide(objective: "Objective", theta: Tensor | None, *, slopes: bool) -> Noise:
    """Return what 16 bits and float32 differ by on some samples, and may on all."""
    exact = objective.exact
    assert exact is not None  # it computes in 16 bits
    losses, gradients = Spread(), Spread()
    size = length = 0.0
    chunks = some_chunks(objective, by_weight=True)
    for chunk in chunks:
        scale = objective.total_weight / chunk.weight
        (loss, slope), (true_loss, true_slope) = (
            at_point(one, chunk, scale, theta, slopes=slopes) for one in (objective, exact)
        )
        losses.add(loss - true_loss)
        gradients.add(slope.double() - true_slope.double())
        size, length = max(size, abs(float(true_loss))), max(length, float(true_slope.norm()))
    whole = _whole_chunk(objective, theta, slopes=slopes)
    eps = 4 * torch.finfo(objective.dtype).eps  # what is left of rounding in float32
    return Noise(
        _largest(losses.bound(), whole[0]) + eps * size,
        _largest(gradients.bound(), whole[1]) + eps * length if slopes else math.inf,
        _accuracy_against_wide(objective, exact, theta),
        sum(chunk.size for chunk in chunks),
    )


def _accuracy_against_wide(
    objective: "Objective", exact: "Objective", theta: Tensor | None
) -> float | None:
    """Return what accuracies differ by on some samples, and may on all; None of no classifier."""
    if objective.decision is None:
        return None
    spread, count = Spread(), 0
    for chunk in some_chunks(objective, by_weight=False):
        rights = [_right(one, chunk, theta) for one in (objective, exact)]
        spread.add(torch.tensor((rights[0] - rights[1]) / chunk.size))
        count += chunk.size
    # Nothing is unseen where these are all samples.
    unseen = _UNSEEN / count * (1 - count / objective.num_samples)
    return spread.bound() + unseen + _TIES / objective.num_samples


def _right(objective: "Objective", chunk: Chunk, theta: Tensor | None) -> int:
    with torch.no_grad(), objective.placed(theta, smooth=False) as point:
        decision = objective.decision
        assert decision is not None
        return decision.correct(objective.outputs(point, chunk), chunk.targets)


def _whole_chunk(
    objective: "Objective", theta: Tensor | None, *, slopes: bool
) -> tuple[float, float]:
    """Return by how much loss and gradient of as many samples as a chunk has are off."""
    exact, size = objective.exact, min(objective.chunk_size, objective.num_rows)
    if exact is None or not objective.divisible:  # then the groups are whole chunks
        return 0.0, 0.0
    rows = spread_rows(objective.num_rows, size).to(objective.device)
    whole = objective.rows(rows)
    scale = objective.total_weight / whole.weight
    loss, slope = at_point(objective, whole, scale, theta, slopes=slopes)
    slope = slope.double()
    # In parts: in float32 a sample takes twice the memory.
    for part in rows.split(-(-len(rows) // 2)):
        chunk = objective.rows(part)
        true_loss, true_slope = at_point(exact, chunk, scale, theta, slopes=slopes)
        loss, slope = loss - true_loss, slope - true_slope
    return abs(float(loss)), float(slope.norm())


def _largest(*values: float) -> float:
    """Return the largest; infinity where one is no number, as of losses beyond the float range."""
    return max(values) if all(map(math.isfinite, values)) else math.inf


def _ratio(whole: float | None, part: float | None) -> float:
    """Return how many times as large the whole is as a part; 1 where that says nothing."""
    if whole is None or not part or not (math.isfinite(whole) and math.isfinite(part)):
        return 1.0
    return max(1.0, whole / part)
