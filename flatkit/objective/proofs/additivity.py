"""Whether a loss is made of samples: what parts of a batch give must make up what the whole gives.

A loss that does not split is measured as one batch of all the samples, or refused.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatkit.errors import NonAdditiveLossError, UserCodeError
from flatkit.objective.pytree import leaves, map_tree
from flatkit.objective.users_code import users_code

if TYPE_CHECKING:
    from flatkit.objective.passes import Chunk

SPLITS, _OF_LOSS = 2, 8
"""Cuts of the samples that are looked at, each of which costs one evaluation of them; and of their
outputs, which cost next to nothing: a mean over the hardest half agrees with its parts in a third
of all cuts."""
Values = Callable[[Tensor], Tensor]
"""Rows (of the samples that are looked at) -> the loss of each of them, or their mean."""


@dataclass(frozen=True)
class Gap:
    """How far the parts of a batch are from the whole.

    Attributes:
        error: relative to the largest loss; infinite where a part has none.
        whole: the loss of the whole.
        parts: those of the parts, or their mean where samples have values of their own.
        sum_error: as `error`, were the loss a sum.
    """

    error: float
    whole: float
    parts: tuple[float, ...]
    sum_error: float = math.inf


def gap(whole: Tensor, values: Values, weights: Tensor, cut: tuple[Tensor, Tensor]) -> Gap:
    """Return how far two parts of samples are from the whole.

    Args:
        whole: the losses of all [B], or their mean.
        values: of some of them.
        weights: how much each counts in a mean [B].
        cut: the rows of the two parts.

    >>> losses = torch.tensor([1.0, 2.0, 6.0])
    >>> cut = torch.tensor([0]), torch.tensor([1, 2])
    >>> gap(losses.mean(), lambda rows: losses[rows].mean(), torch.ones(3), cut).error
    0.0
    >>> gap(losses.max(), lambda rows: losses[rows].max(), torch.ones(3), cut).parts
    (1.0, 6.0)
    """
    found = [values(rows) for rows in cut]
    if whole.ndim:
        # Put back in their old order, so that each sample is held against itself.
        apart = torch.empty_like(whole)
        for rows, part in zip(cut, found, strict=True):
            apart[rows] = part
        scale = float(whole.abs().max())
        error = float((apart - whole).abs().max()) / scale if scale else 0.0
        return Gap(_known(error), float(whole.mean()), (float(apart.mean()),))
    parts = torch.stack(found)
    # Means are joined by what their parts weigh, not by how many samples they have.
    shares = torch.stack([weights[rows].sum() for rows in cut]) / weights.sum()
    # Losses of exactly 0 have no size to be relative to.
    scale = float(parts.abs().max()) or 1.0
    error = abs(float(shares.to(parts) @ parts - whole)) / scale
    sum_error = abs(float(parts.sum() - whole)) / scale
    return Gap(_known(error), float(whole), tuple(parts.tolist()), _known(sum_error))


def _known(error: float) -> float:
    return math.inf if math.isnan(error) else error


def cuts(
    size: int, key: Tensor | None = None, *, count: int = SPLITS
) -> list[tuple[Tensor, Tensor]]:
    """Return cuts of rows in two parts of about a third and two, the same each time.

    Args:
        size: how many rows.
        key: by which one of the cuts tells small from large [size]; the others are random.
        count: how many cuts.

    >>> cuts(4, torch.tensor([2.0, 0.0, 3.0, 1.0]))[0]
    (tensor([1, 3]), tensor([0, 2]))
    """
    # Fixed, so that the same data pass or fail in every run.
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(size, generator=generator) for _ in range(count)]
    if key is not None:
        orders[0] = key.argsort()
    first = max(min(2, size // 2), size // 3)  # BatchNorm takes no single sample
    return [(order[:first].sort().values, order[first:].sort().values) for order in orders]


def is_weighted_mean(mean_of: Values, other: Values, size: int, *, tolerance: float) -> bool:
    """Whether a loss is a mean whose weights are constants, only other ones than were taken.

    Then L(a ∪ b) lies between L(a) and L(b), at the same place at every point.

    Args:
        mean_of: rows -> the loss at a point.
        other: the same at another point.
        size: samples.
        tolerance: of the place.

    >>> losses, weights = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([1.0, 5.0, 2.0])
    >>> def mean_of(rows):
    ...     return (losses * weights)[rows].sum() / weights[rows].sum()
    >>> is_weighted_mean(mean_of, lambda rows: 2 * mean_of(rows), 3, tolerance=1e-3)
    True
    """
    places: list[float] = []
    a, b = cuts(size)[0]
    for values in (mean_of, other):
        first, second, both = (float(values(rows)) for rows in (a, b, torch.arange(size)))
        # Equal means lie on every line: nothing can be told of the weights.
        if first == second or not math.isfinite(first + second + both):
            return False
        # p of L(a ∪ b) = (1 − p) L(a) + p L(b): the part of b in the weights, at every point.
        places.append((first - both) / (first - second))
    return min(places) >= 0 and max(places) <= 1 and abs(places[0] - places[1]) <= tolerance


def loss_splits(
    loss: Callable[[Any, Any], Tensor],
    outputs: Any,
    chunk: "Chunk",
    weights: Tensor,
    tolerance: float,
) -> Gap | None:
    """Return how far a loss of given outputs is from splitting; None where they cannot be cut.

    This looks at the loss alone, whatever the model does with its batch.

    Args:
        loss: of outputs and targets.
        outputs: of the whole chunk.
        chunk: two samples at least.
        weights: how much each counts in a mean [B].
        tolerance: relative; cuts are tried until one is beyond.
    """
    sizes = [len(leaf) if leaf.ndim else 0 for leaf in leaves(outputs)]
    if not sizes or set(sizes) != {chunk.size}:
        return None

    def values(rows: Tensor) -> Tensor:
        def cut(leaf: Tensor) -> Tensor:
            return leaf[rows.to(leaf.device)]

        return as_values(loss(map_tree(cut, outputs), map_tree(cut, chunk.targets)))

    # The outputs are those of one pass: what the model does with its batch is out of the question.
    whole = as_values(loss(outputs, chunk.targets))
    found = Gap(0.0, 0.0, ())
    for cut in cuts(chunk.size, count=_OF_LOSS):
        try:
            with users_code("the loss"):
                found = gap(whole, values, weights, cut)
        except UserCodeError:  # of rows that are no samples, as of similarities [B, B]
            return None
        if found.error > tolerance:
            break
    return found


def as_values(loss: Tensor) -> Tensor:
    """Return a loss without its graph, in float64, on the CPU."""
    return loss.detach().double().cpu()


def refuse_sum(found: Gap, size: int, samples: int) -> NonAdditiveLossError:
    """Return the error of a loss that is a sum, which says what it would mean."""
    return NonAdditiveLossError(
        f"the loss is not a mean over samples but a sum: {found.whole:.6g} for {size} samples, "
        f"{' + '.join(f'{part:.6g}' for part in found.parts)} for their parts. Its value, gradient "
        f"and curvature grow with the number of samples: over these {samples:,} they would be "
        f"{samples:,} times those of the mean. Measure the mean (reduction='mean'), or give one "
        "value per sample (reduction='none')"
    )


def refuse_mean(found: Gap) -> NonAdditiveLossError:
    """Return the error of a mean that counts samples in a way that was not found out."""
    return NonAdditiveLossError(
        f"the loss is not a mean over samples: {found.whole:.6g} for a batch but "
        f"{_apart(found)} for its parts, so that a mean of their means is another number (class "
        "weights, an ignored class, padding, a mask?); give one value per sample, e.g. "
        "reduction='none', a loss with `weights(targets)`, or measure all samples as one batch "
        "by `chunk_size`"
    )


def refuse_coupled(found: Gap | None, why: str, samples: int, but: str) -> NonAdditiveLossError:
    """Return the error of samples that depend on their batch.

    Args:
        found: how far parts are from the whole, if they have losses.
        why: the samples cannot be cut.
        samples: N.
        but: why they are not measured as one batch.
    """
    shown = f" ({found.whole:.6g} for a batch, {_apart(found)} from its parts)" if found else ""
    return NonAdditiveLossError(
        f"the loss is not a mean over samples: {why}{shown}, so that its value would depend on "
        f"`chunk_size`; {but}. To measure all of them as one batch set `chunk_size` to {samples}, "
        "to as many as there are"
    )


def _apart(found: Gap) -> str:
    return " and ".join(f"{part:.6g}" for part in found.parts)
