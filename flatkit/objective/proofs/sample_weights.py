"""How much each sample counts in a mean that a model takes by itself, found by asking it.

A model that returns one loss a batch divides by something: the samples, or the labels that are not
padding, or those that are left when they are shifted by one place. Which it is shows where batches
are joined: with the right weights, L(a ∪ b) = (w_a L(a) + w_b L(b)) / (w_a + w_b).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError, NonAdditiveLossError
from flatkit.objective.pytree import Bundle, named_leaves
from flatkit.objective.users_code import own_weights

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

IGNORED = -100
"""Labels of this value do not count, by the convention of torch and of Hugging Face."""
_PAIRS = 5


def find_own_weights(function: "Objective") -> tuple[Tensor, str]:
    """Return how much each sample counts in the mean [N], float64, and what the mean is over.

    A loss may say so itself, by `weights(targets)`; a model that takes the mean is asked.

    Raises:
        InvalidArgumentError: no sample counts.
        NonAdditiveLossError: the model's mean is over nothing that is known.

    >>> from flatkit.objective.function import Objective
    >>> model = torch.nn.Linear(1, 2)
    >>> objective = Objective(model, "cross_entropy", (torch.ones(2, 1), torch.tensor([0, 1])))
    >>> find_own_weights(objective)
    (tensor([1., 1.], dtype=torch.float64), 'samples')
    """
    loss, targets, size = function.loss_function, function.samples.targets, len(function.samples)
    if function.samples.counts is not None:
        weights, what = _of_batches(loss, targets, function.samples.counts)
    elif function.model_takes_mean:
        weights, what = find_weights(
            partial(function.mean_of, nearby(function.theta)),
            _of_labels(targets, size),
            size,
            tolerance=0.1 * function.slack,
        )
    elif (of_loss := own_weights(loss)) is not None:
        weights = of_loss(targets).double().cpu()
        # Of weights 0 and 1 the mean is over the samples that are left.
        alike = bool(((weights == 1) | (weights == 0)).all())
        what = "samples" if alike else getattr(loss, "mean_over", "loss")
    else:
        weights, what = torch.ones(size, dtype=torch.float64), "samples"
    if not bool((weights > 0).any()):
        raise InvalidArgumentError("no sample counts: every target is ignored by the loss")
    return weights, what


def _of_batches(loss: Any, targets: Bundle, counts: Tensor) -> tuple[Tensor, str]:
    """Return how much each batch that cannot be cut counts, and what the mean is over."""
    if getattr(loss, "reduction", "") == "sum":
        raise NonAdditiveLossError(
            "the loss is a sum, and these batches count by their means; give reduction='mean'"
        )
    of_loss = own_weights(loss)
    if of_loss is None:
        return counts.double(), "samples, batch by batch"
    sums = [float(of_loss(part).sum()) for part in targets.units]
    return torch.tensor(sums, dtype=torch.float64), getattr(loss, "mean_over", "loss")


def nearby(theta: Tensor) -> Tensor:
    """Return a point [P] a fiftieth of the length of θ away, where no two samples lose alike.

    >>> nearby(torch.zeros(2))
    tensor([0., 0.])
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(theta), generator=generator).to(theta)
    # A fiftieth: far enough that losses of an untrained head differ, near enough to stay finite.
    return theta + 0.02 * theta.norm() / math.sqrt(len(theta)) * noise


def find_weights(
    mean_of: Callable[[Tensor], float], ways: Mapping[str, Tensor], size: int, *, tolerance: float
) -> tuple[Tensor, str]:
    """Return the weight of every sample [N], and what it is.

    Args:
        mean_of: rows -> the model's mean over them.
        ways: how samples may count beside alike, float64 [N], by name.
        size: N.
        tolerance: relative, of `mean_of`.

    Raises:
        NonAdditiveLossError: no way of weighting that is known fits.

    >>> tokens = torch.tensor([3.0, 1.0])
    >>> sums = torch.tensor([3.0, 5.0])
    >>> def mean_of(rows):
    ...     return float(sums[rows].sum() / tokens[rows].sum())
    >>> find_weights(mean_of, {"tokens": tokens.double()}, 2, tolerance=1e-6)
    (tensor([3., 1.], dtype=torch.float64), 'tokens')
    """
    candidates = {"samples": torch.ones(size, dtype=torch.float64), **ways}
    joined, apart = 0.0, (0.0, 0.0)
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
            # A way of weighting is kept if it says what the model says of the two samples joined.
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


def _of_labels(labels: Any, size: int) -> dict[str, Tensor]:
    """Return how labels may count that follow the convention of torch."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return {}
    return _counts(labels, IGNORED, "labels", size)


def _counts(leaf: Tensor, value: float, name: str, size: int) -> dict[str, Tensor]:
    """Return how many entries of every sample are not a value, also but for the first place."""
    counted = (leaf != value if value == value else ~leaf.isnan()).cpu()
    found = {f"{name} that are not {value:g}": counted.reshape(size, -1).sum(1).double()}
    if leaf.ndim == 2 and leaf.shape[1] > 1:
        found[f"{name} that are not {value:g}, shifted by one"] = counted[:, 1:].sum(1).double()
    return found


def counts_that_differ(targets: Any, size: int, *, classes: bool = True) -> dict[str, Tensor]:
    """Return in which ways samples may count differently by what shows in their targets.

    Looked for are entries that may be padding (by a value at the ends of rows, or the smallest, the
    largest, 0, -1, -100 or NaN), masks, and weights of samples.

    Args:
        targets: a tree of tensors [N, ...].
        size: N.
        classes: also whether a sample is of a class, where there is one number [N] of each.

    Returns:
        Weights [N], float64, by what they count; only those that differ from sample to sample.

    >>> labels = torch.tensor([[1, 2, 3], [4, 0, 0]])
    >>> counts_that_differ(labels, 2)["labels that are not 0"]
    tensor([3., 1.], dtype=torch.float64)
    """
    found: dict[str, Tensor] = {}
    for name, leaf in named_leaves(targets, "labels"):
        if leaf.is_complex() or not leaf.ndim or len(leaf) != size:
            continue
        if leaf.is_floating_point() and leaf.numel() == size and bool((leaf >= 0).all()):
            found[f"the weights {name}"] = leaf.reshape(size).double().cpu()
        number = leaf.ndim == 1 and not leaf.is_floating_point() and leaf.dtype != torch.bool
        for value in _special(leaf) if classes or not number else ():
            found |= _counts(leaf, value, name, size)
    return {name: way for name, way in found.items() if float(way.max()) > float(way.min())}


def _special(leaf: Tensor) -> list[float]:
    """Return values that may mean that an entry does not count, and occur."""
    if leaf.is_floating_point():
        missing = [math.nan] if bool(leaf.isnan().any()) else []
        return [*missing, 0.0] if bool(((leaf == 0) | (leaf == 1)).all()) else missing
    # Padding stands at the ends of rows, to the right or to the left.
    ends = [leaf[..., -1], leaf[..., 0]] if leaf.ndim > 1 else []
    common = [int(end.reshape(-1).mode().values) for end in ends if end.dtype != torch.bool]
    found = {IGNORED, -1, 0, *common, int(leaf.min()), int(leaf.max())}
    return [float(value) for value in sorted(found) if bool((leaf == value).any())]


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
    # Alone, a sample without a label has a mean of nothing, 0/0.
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
