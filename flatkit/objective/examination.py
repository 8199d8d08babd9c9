"""What is checked of a loss before anything is measured with it, and what was found.

The checks know no `Objective`: they ask for values by the functions that they are given.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

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

if TYPE_CHECKING:
    from flatkit.objective.function import Objective


Found: TypeAlias = tuple[bool | None, str, float | None]
"""`passed`, `how` and `error` of a check."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was to be proved, e.g. `deterministic`.
        passed: whether it was; None if it was not looked at, for the reason that `how` gives. What
            is found wrong is an error, or is put right, which `how` says.
        how: on what it was looked at and what was found, in words.
        error: relative, what was left over; None if that has no size.
        seconds: that it took.
    """

    name: str
    passed: bool | None
    how: str
    error: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Examination:
    """What was found of an objective when it was made; a check that fails is an error instead.

    Attributes:
        mean_over: what the loss is a mean over: `samples`, labels that count, or `loss` where the
            loss itself says how much each sample counts.
        checks: what was looked at, in order.

    >>> found = Examination("samples").adding(Check("deterministic", True, "two evaluations agree"))
    >>> found["deterministic"].passed, found["additive"].passed
    (True, None)
    """

    mean_over: str
    checks: tuple[Check, ...] = ()

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name; one that has not passed if it was not looked at."""
        return next((c for c in self.checks if c.name == name), Check(name, None, "not looked at"))

    @property
    def seconds(self) -> float:
        """What all of it took."""
        return sum(check.seconds for check in self.checks)

    def adding(self, *checks: Check) -> "Examination":
        """Return it with further checks; one of the same name takes the place of the earlier."""
        names = {check.name for check in checks}
        kept = [check for check in self.checks if check.name not in names]
        return replace(self, checks=(*kept, *checks))

    def describe(self) -> list[dict[str, Any]]:
        """Return the checks, ready for JSON."""
        return [asdict(check) for check in self.checks]


def prove(name: str, proof: Callable[[], Found]) -> Check:
    """Return a check with the time that it took.

    Args:
        name: of the check.
        proof: returns `passed`, `how` and `error`; raises what is found wrong.

    >>> prove("additive", lambda: (True, "3 splits add up", 1e-8)).how
    '3 splits add up'
    """
    begun = time.perf_counter()
    passed, how, error = proof()
    return Check(name, passed, how, error, time.perf_counter() - begun)


NOT_EXAMINED = (Check("examined", None, "not examined, as asked: nothing below is proved"),)
"""What stands in place of the checks where they were switched off."""


@torch.no_grad()
def examine_all(function: "Objective") -> tuple[Check, ...]:
    """Return what was found of an objective.

    Raises:
        NonDeterministicError: two evaluations differ.
        NonAdditiveLossError: the parts do not add up.
    """
    size = min(function.num_samples, function.chunk_size)
    first, one = function.rows(slice(size)), function.rows(slice(1))

    def share_of(rows: slice) -> float:
        part = function.rows(rows)
        scale = function.total_weight / first.weight
        return float(function.chunk_loss(function.theta, part)) * scale

    def deterministic() -> Found:
        eps = torch.finfo(function.theta.dtype).eps
        check_deterministic(lambda: share_of(slice(size)), eps=eps, device=function.theta.device)
        return True, f"two evaluations of {size} samples agree", None

    def additive() -> Found:
        # With `train` BatchNorm no part has a loss of its own, and a single sample is refused.
        if function.batchnorm == "train" or size == 1:
            return None, "not looked at: one sample, or a function of the batch", None
        if function.loss_function(function.outputs(function.theta, one), one.targets).ndim > 0:
            return None, "the loss has a value per sample", None
        check_additive(share_of, size, tolerance=function.slack)
        return True, f"parts of {size} samples add up", None

    return prove("deterministic", deterministic), prove("additive", additive)


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
        weights = loss.weights(targets).double().cpu()
        what = "samples" if bool(((weights == 1) | (weights == 0)).all()) else "loss"
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
