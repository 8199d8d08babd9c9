"""What is checked of a loss before anything is measured with it, and what was found.

The checks know no `Objective`: they ask for values by the functions that they are given.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatkit.errors import (
    InvalidArgumentError,
    NonAdditiveLossError,
    NonDeterministicError,
    NonFiniteError,
)
from flatkit.objective.pytree import Tree, leaves
from flatkit.objective.sample_weights import find_weights


@dataclass(frozen=True)
class Examination:
    """What was found of an objective when it was made; a check that fails is an error instead.

    Attributes:
        mean_over: what the loss is a mean over: `samples`, labels that count, or `loss` where the
            loss itself says how much each sample counts.
        deterministic: two evaluations agreed; None if that was not looked at.
        additive: parts add up to the whole; None where nothing had to be looked at, because the
            loss returns a value per sample, or was not, because it depends on the batch.
    """

    mean_over: str
    deterministic: bool | None = None
    additive: bool | None = None


def examine(
    share_of: Callable[[slice], float],
    size: int,
    *,
    mean_over: str,
    eps: float,
    has_parts: Callable[[], bool],
    tolerance: float,
    device: torch.device,
) -> Examination:
    """Return what was found of a loss that is looked at on its first samples.

    Args:
        share_of: rows -> what they contribute to the mean over the first `size` samples.
        size: samples to look at.
        mean_over: what the loss is a mean over.
        eps: of the dtype in which it is computed.
        has_parts: whether the loss is one number, so that those of parts must add up to it.
        tolerance: relative, by which they must.
        device: whose random state is put back.

    Raises:
        NonDeterministicError: two evaluations differ.
        NonAdditiveLossError: the parts do not add up.

    >>> settings = {"eps": 1e-7, "tolerance": 1e-4, "device": torch.device("cpu")}
    >>> examine(lambda rows: 0.5, 9, mean_over="samples", has_parts=lambda: False, **settings)
    Examination(mean_over='samples', deterministic=True, additive=None)
    """
    check_deterministic(lambda: share_of(slice(size)), eps=eps, device=device)
    if not has_parts():
        return Examination(mean_over, deterministic=True)
    check_additive(share_of, size, tolerance=tolerance)
    return Examination(mean_over, deterministic=True, additive=True)


def weigh(
    loss: Any,
    targets: Any,
    size: int,
    *,
    mean_of: Callable[[Tensor], float] | None,
    tolerance: float,
) -> tuple[Tensor, str]:
    """Return how much each sample counts in the mean [N], float64, and what the mean is over.

    Args:
        loss: may say so itself, by `weights(targets)`.
        targets: of the samples.
        size: N.
        mean_of: rows -> the mean that the model takes over them; None unless it takes one itself.
        tolerance: relative, of `mean_of`.

    Raises:
        InvalidArgumentError: no sample counts.
        NonAdditiveLossError: the model's mean is over nothing that is known.

    >>> weigh(None, torch.tensor([0, 1]), 2, mean_of=None, tolerance=1e-6)
    (tensor([1., 1.], dtype=torch.float64), 'samples')
    """
    if mean_of is not None:
        weights, what = find_weights(mean_of, targets, size, tolerance=tolerance)
    elif hasattr(loss, "weights"):
        weights, what = loss.weights(targets).double().cpu(), "loss"
    else:
        weights, what = torch.ones(size, dtype=torch.float64), "samples"
    if not bool((weights > 0).any()):
        raise InvalidArgumentError("no sample counts: every target is ignored by the loss")
    return weights, what


def nearby(theta: Tensor) -> Tensor:
    """Return a point [P] a fiftieth of the length of θ away, where no two samples lose alike.

    >>> nearby(torch.zeros(2))
    tensor([0., 0.])
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(theta), generator=generator).to(theta)
    return theta + 0.02 * theta.norm() / math.sqrt(len(theta)) * noise


def check_finite(weights: Mapping[str, Tensor], inputs: Tree) -> None:
    """Refuse weights or inputs that are not finite.

    Args:
        weights: by name.
        inputs: a tree of tensors.

    Raises:
        NonFiniteError: some are NaN or infinite.

    >>> check_finite({"weight": torch.ones(2)}, torch.zeros(1))
    """
    for name, part in weights.items():
        if not part.isfinite().all():
            count = int((~part.isfinite()).sum())
            raise NonFiniteError(
                f"the weights are not finite: {name} has {count} NaN or infinite entries; "
                "the training diverged, analyze an earlier checkpoint"
            )
    if not all(leaf.isfinite().all() for leaf in leaves(inputs)):
        raise NonFiniteError("the inputs have NaN or infinite entries")


def check_deterministic(value: Callable[[], float], *, eps: float, device: torch.device) -> None:
    """Refuse a loss that has two values at one point. Cost: two evaluations.

    Args:
        value: the loss of a few samples.
        eps: of the dtype in which it is computed.
        device: whose random state is put back.

    Raises:
        NonDeterministicError: the values differ; the message names the cause.

    >>> check_deterministic(lambda: 0.5, eps=1e-7, device=torch.device("cpu"))
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        first, second = value(), value()
        # Threads may add in another order, which is no more than rounding.
        tolerance = 16 * eps * abs(first)
        if abs(first - second) <= tolerance or first != first:
            return
        torch.manual_seed(0)
        replayed = value()
    cause = (
        "the forward pass draws random numbers although dropout layers are off (functional "
        "dropout with training=True, or noise added to activations); switch it off"
        if abs(first - replayed) <= tolerance
        else "the model or the loss keeps state between calls, or a kernel is not "
        "deterministic; make the forward pass a function of its input"
    )
    raise NonDeterministicError(
        f"two evaluations at the same point differ: {first!r} and {second!r}; {cause}"
    )


def check_additive(share_of: Callable[[slice], float], size: int, *, tolerance: float) -> None:
    """Refuse a loss of samples that is not the sum of those of its parts. Cost: two evaluations.

    Args:
        share_of: rows -> what they contribute to the mean over the first `size` samples.
        size: samples, two at least.
        tolerance: relative.

    Raises:
        NonAdditiveLossError: it is another number.

    >>> check_additive(lambda rows: (rows.stop - (rows.start or 0)) / 6, 6, tolerance=1e-6)
    """
    cut = max(1, size // 3)
    joined, *parts = map(share_of, (slice(size), slice(cut), slice(cut, size)))
    allowed = tolerance * max(map(abs, parts))
    if math.isfinite(joined) and not abs(sum(parts) - joined) <= allowed:
        raise NonAdditiveLossError(
            f"the loss is not a mean over samples: {joined:.6g} for a batch but "
            f"{sum(parts):.6g} from its parts (a sum, class weights or an ignored class?); "
            "give a loss that returns one value per sample, e.g. reduction='none'"
        )
