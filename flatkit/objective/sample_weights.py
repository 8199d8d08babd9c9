"""How much each sample counts in a mean that a model takes by itself, found by asking it.

A model that returns one loss a batch divides by something: the samples, or the labels that are not
padding, or those that are left when they are shifted by one place. Which it is shows where batches
are joined: with the right weights, L(a ∪ b) = (w_a L(a) + w_b L(b)) / (w_a + w_b).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatkit.errors import NonAdditiveLossError

IGNORED = -100
"""Labels of this value do not count, by the convention of torch and of Hugging Face."""
_PAIRS = 5


def find_weights(
    mean_of: Callable[[Tensor], float], labels: Any, size: int, *, tolerance: float
) -> tuple[Tensor, str]:
    """Return the weight of every sample [N], and what it is.

    Args:
        mean_of: rows -> the model's mean over them.
        labels: whole numbers [N, ...]; anything else counts by samples.
        size: N.
        tolerance: relative, of `mean_of`.

    Raises:
        NonAdditiveLossError: no way of weighting that is known fits.

    >>> labels = torch.tensor([[1, 2, 3], [4, -100, -100]])
    >>> losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    >>> def mean_of(rows):
    ...     return float(losses[rows].sum() / (labels[rows] != -100).sum())
    >>> find_weights(mean_of, labels, 2, tolerance=1e-6)
    (tensor([3., 1.], dtype=torch.float64), 'labels that are not -100')
    """
    candidates, joined, apart = _candidates(labels, size), 0.0, (0.0, 0.0)
    while candidates:
        pairs = _telling_pairs(candidates)
        if not pairs:
            row = _disputed(candidates)
            if row is None:
                return next(iter(candidates.values())), next(iter(candidates))
            value = mean_of(torch.tensor([row]))
            counts = math.isfinite(value) and value != 0  # else nothing was divided by nothing
            candidates = {n: w for n, w in candidates.items() if bool(w[row] > 0) == counts}
            continue
        for a, b in pairs:
            rows = torch.tensor([a, b])
            apart, joined = (mean_of(rows[:1]), mean_of(rows[1:])), mean_of(rows)
            losses = torch.tensor(apart, dtype=torch.float64)
            kept = {
                name: weights
                for name, weights in candidates.items()
                if abs(float(weights[rows] @ losses / weights[rows].sum()) - joined)
                <= tolerance * max(map(abs, (*apart, joined)))
            }
            if len(kept) < len(candidates):
                break
        else:
            raise NonAdditiveLossError(
                "samples of nearly equal loss do not show how the model weights them; give a loss "
                "that returns one value per sample"
            )
        candidates = kept
    raise NonAdditiveLossError(
        "the loss that the model returns is a mean over neither samples nor labels: "
        f"{joined:.6g} for two samples but {apart[0]:.6g} and {apart[1]:.6g} for each; give a "
        "loss that returns one value per sample"
    )


def _candidates(labels: Any, size: int) -> dict[str, Tensor]:
    """Return the ways of weighting, without those that give a sample everywhere the same."""
    samples = {"samples": torch.ones(size, dtype=torch.float64)}
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return samples
    counted = (labels != IGNORED).cpu()
    found = {"labels that are not -100": counted.reshape(size, -1).sum(1).double()}
    if labels.ndim == 2:
        found["labels that are not -100, shifted by one"] = counted[:, 1:].sum(1).double()
    return samples | found


def _disputed(candidates: Mapping[str, Tensor]) -> int | None:
    """Return a sample that counts by one way and not by another, or None."""
    counts = torch.stack(list(candidates.values())) > 0
    rows = (counts.any(0) & ~counts.all(0)).nonzero().squeeze(1)
    return int(rows[0]) if len(rows) else None


def _telling_pairs(candidates: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Return pairs of samples whose relative weights the candidates see most differently.

    Samples without any label that counts have no loss by themselves and are not asked.
    """
    weights = torch.stack(list(candidates.values()))  # [ways, N]
    asked = (weights > 0).all(0).nonzero().squeeze(1)
    if len(asked) < 2:
        return []
    ratios = weights[:, asked] / weights[0, asked]  # how much more than by the first way
    way = int((ratios.amax(1) / ratios.amin(1)).argmax())
    order = ratios[way].argsort()
    if float(ratios[way, order[-1]] / ratios[way, order[0]]) <= 1 + 1e-9:
        return []
    ends = zip(order[:_PAIRS].tolist(), order.flip(0)[:_PAIRS].tolist(), strict=True)
    return [(int(asked[a]), int(asked[b])) for a, b in ends if a != b]
