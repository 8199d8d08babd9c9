"""How much each sample counts in a mean that a model takes by itself, found by asking it.

A model that returns one loss a batch divides by something: the samples, or the labels that are not
padding, or those that are left when they are shifted by one place. Which it is shows where batches
are joined: with the right weights, L(a ∪ b) = (w_a L(a) + w_b L(b)) / (w_a + w_b).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatkit.errors import NonAdditiveLossError

IGNORED = -100
"""Labels of this value do not count, by the convention of torch and of Hugging Face."""
_ROUNDS = 4


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
    for _ in range(_ROUNDS):
        pair = _telling_pair(candidates)
        if pair is None:
            return _agreed(candidates)
        a, b = (torch.tensor([row]) for row in pair)
        apart, joined = (mean_of(a), mean_of(b)), mean_of(torch.cat([a, b]))
        kept = {}
        for name, weights in candidates.items():
            w = weights[torch.cat([a, b])]
            expected = float((w * torch.tensor(apart, dtype=torch.float64)).sum() / w.sum())
            if abs(expected - joined) <= tolerance * max(map(abs, (*apart, joined))):
                kept[name] = weights
        if not kept:
            break
        if len(kept) == len(candidates):
            raise NonAdditiveLossError(
                "two samples of equal loss do not show how the model weights them; give a loss "
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


def _agreed(candidates: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """Return one of several ways that weight alike all samples that have a loss.

    Samples without a label that counts have none; only the count of labels knows them.
    """
    names = list(candidates)
    some_without = any(bool((weights == 0).any()) for weights in candidates.values())
    name = names[-1] if some_without else names[0]
    return candidates[name], name


def _telling_pair(candidates: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return two samples whose relative weights the candidates see differently, or None.

    Samples without any label that counts have no loss by themselves and are not asked.
    """
    weights = torch.stack(list(candidates.values()))  # [ways, N]
    asked = (weights > 0).all(0).nonzero().squeeze(1)
    if len(asked) < 2:
        return None
    first = weights[:, asked]
    ratios = first / first[:1]  # how much more than a sample each way counts
    ratios = ratios / ratios[:, :1]
    spread = ratios.amax(0) / ratios.amin(0)
    if float(spread.max()) <= 1 + 1e-9:
        return None
    return int(asked[0]), int(asked[int(spread.argmax())])
