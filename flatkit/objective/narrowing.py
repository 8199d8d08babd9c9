"""Objectives that compute in 16 bits, and by how much their numbers are off."""

import copy
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError, UserCodeError
from flatkit.objective.model.widening import is_narrower
from flatkit.objective.passes import Chunk, differentiate
from flatkit.objective.proofs.spread import spread_by_weight, spread_rows
from flatkit.objective.reading.sample_set import Samples
from flatkit.objective.settings import DType

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

NARROW = (torch.bfloat16,)
"""The dtypes in which a model may compute while θ stays in float32. float16 is none of them: what
lies below 6e-8, as most second derivatives do, vanishes there."""
_FEWEST, _SHARE, _MOST, _GROUPS = 128, 20, 512, 16
"""Samples on which bfloat16 is held against float32: so many at least, one in so many if that is
more, and so many at most; and into how many groups they are cut, whose spread says how far all
samples may be from these."""
_QUANTILE = 2.5
"""Standard errors of 16 groups that a mean is off in one case of forty (Student's t)."""
_TIES = 2.0
"""Samples whose two best scores may tie in 16 bits; they fall with what they go through beside."""
_UNSEEN = 3.0
"""Of what none of n samples shows there are at most 3/n, at 95 % (the rule of three)."""


def check_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name, or as it is.

    Raises:
        InvalidArgumentError: another name, or what is no dtype of real numbers.

    >>> check_dtype("float64"), check_dtype(None)
    (torch.float64, None)
    """
    if given is None or (isinstance(given, torch.dtype) and given.is_floating_point):
        return given
    name = str(given).removeprefix("torch.")
    return getattr(torch, check_choice("dtype", name, get_args(DType)))


@dataclass(frozen=True)
class Noise:
    """By how much numbers in 16 bits may be off, against the weights and the sums in float32.

    Attributes:
        loss: |L̃ − L|.
        gradient: ‖∇L̃ − ∇L‖.
        accuracy: of the fraction of samples that are classified correctly; None of no classifier.
        samples: on so many it was held against float32.
    """

    loss: float
    gradient: float
    accuracy: float | None
    samples: int


def compute_narrowly(
    objective: "Objective", asked: torch.dtype | None, own: torch.dtype | None
) -> None:
    """Let the model compute in the narrow dtype that is asked for, or in its own if none is.

    A dtype that is not narrow is one in which the model computes throughout.

    Args:
        objective: L, made and examined without it; that remains as its `exact`.
        asked: the dtype that the user named, if any.
        own: in which the model computes by itself, if in a narrow one.

    Raises:
        InvalidArgumentError: it cannot; it says why, and the way out.
    """
    narrow = own if asked is None else asked if asked in NARROW else None
    if narrow is None:
        return
    if asked is not None:
        _refuse_what_needs_width(objective, narrow)
    objective.exact = copy.copy(objective)
    objective.narrow_to(narrow, by_itself=asked is None)
    objective.engine_choices = {}
    try_out(objective)


def _refuse_what_needs_width(objective: "Objective", narrow: torch.dtype) -> None:
    """Refuse a function that cannot be computed in 16 bits.

    Raises:
        InvalidArgumentError: it says why, and the way out.
    """
    name = _named(narrow)
    reasons = {
        "weights stand also outside of the model": objective.elsewhere is not None,
        "batches that cannot be cut into samples are measured": objective.samples.counts
        is not None,
        "the weights of the model lie in parts on several ranks": objective.sharded is not None,
        "it has complex weights": bool(objective.space.complex_names),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InvalidArgumentError(
                f"dtype {name} is not possible here, as {reason}; choose float32"
            )


def start_widely(objective: "Objective", model: nn.Module) -> bool:
    """Return whether 16 bits in a model are its own; if its weights have them, compute without.

    Weights of 16 bits are measured in float32: casts to their dtype would meet another one.

    Args:
        objective: L, while it is made.
        model: as the user gave it.
    """
    has_narrow = any(is_narrower(parameter.dtype) for parameter in model.parameters())
    objective.widen(yes=has_narrow)
    return not has_narrow


def compute_widely(objective: "Objective", narrow: torch.dtype | None, some: Samples) -> None:
    """Let a model that computes in a narrower dtype by itself do so in that of θ.

    Args:
        objective: L, while it is made.
        narrow: in which it computes; None if it does not.
        some: samples to try it on.

    Raises:
        InvalidArgumentError: it cannot; it says why, and the way out.
    """
    objective.widen(yes=narrow is not None)
    if narrow is None:
        return
    name, wide = _named(narrow), _named(objective.dtype)
    if objective.sharded is not None:
        raise InvalidArgumentError(
            f"a sharded model is measured in the dtype of its weights, {wide}, and this one "
            f"computes in {name} by itself; shard it without mixed precision or autocast"
        )
    chunk = Chunk(some.inputs, some.targets, 1.0)
    try:
        objective.losses(objective.outputs(objective.theta, chunk), chunk.targets)
    except UserCodeError as error:  # which ran in 16 bits
        said = " ".join(str(error.__cause__ or error).split())[:200]
        raise InvalidArgumentError(
            f"the model computes in {name} by itself and does not run without ({said}), so that "
            f"nobody can tell how wrong that makes it; let its casts follow the dtype of its "
            "weights, and switch its autocast off"
        ) from error


def refuse_narrow(objective: "Objective", what: str) -> None:
    """Refuse what has no error bar in 16 bits.

    Raises:
        InvalidArgumentError: the objective computes in 16 bits.
    """
    if objective.narrow is not None:
        raise InvalidArgumentError(
            f"{what} cannot say how wrong {narrow_words(objective)} makes it; choose float32"
        )


def try_out(objective: "Objective") -> None:
    """Compute a gradient of some samples, spread over all of them, in 16 bits, once.

    Raises:
        InvalidArgumentError: the model cannot, or gives no finite number where float32 does.
    """
    name = _name(objective)
    rows = slice(objective.chunk_size)
    if objective.divisible:
        size = min(_FEWEST, objective.chunk_size)
        rows = spread_rows(objective.num_rows, size).to(objective.device)
    chunk = objective.rows(rows)
    try:
        finite = _is_finite(objective, chunk)
    except UserCodeError as error:  # the model, which computed in float32
        said = " ".join(str(error.__cause__ or error).split())[:200]
        raise InvalidArgumentError(
            f"the model does not compute in {name} ({said}); choose dtype float32"
        ) from error
    if not finite and objective.exact is not None and _is_finite(objective.exact, chunk):
        raise InvalidArgumentError(
            f"the loss or its gradient is not finite in {name}, as it is in float32; choose "
            "dtype float32"
        )


def _is_finite(objective: "Objective", chunk: Chunk) -> bool:
    loss, slope = _at(objective, chunk, 1.0)
    return math.isfinite(float(loss)) and bool(slope.isfinite().all())


def why_not_finite(objective: "Objective") -> str:
    """Return what may be the matter with a loss that is no number, and the way out."""
    if objective.exact is not None and math.isfinite(objective.exact.loss()):
        return f" in {_name(objective)}, and a number in float32; choose dtype float32"
    return "; the training diverged, analyze an earlier checkpoint"


def measure_noise(objective: "Objective") -> Noise:
    """Return by how much loss, gradient and accuracy at the model's own point are off.

    Three things are measured. On samples spread over all the data 16 bits are held against float32:
    this sees the rounding of weights and activations, also what it has in common for all samples.
    So is one whole chunk, for sums within it that lose small terms. And loss and gradient of all
    samples are computed once more in chunks of another size.

    The mean of few samples is itself uncertain: 2.5 standard errors over their groups are added,
    also where these are all, as kernels round otherwise in chunks of another size. Cost: two
    gradients and two losses, and two gradients of a chunk and of a twentieth of the samples.
    """
    found = Noise(**objective.ranks.decided(lambda: asdict(_against_wide(objective))))
    if not objective.divisible or objective.num_rows < 2:  # chunks are part of the function
        return found
    # For another size of a batch kernels round otherwise: what changes is rounding.
    again = in_other_chunks(objective)
    usual, other = (one.loss_and_gradient() for one in (objective, again))
    values = objective.evaluate().accuracy, again.evaluate().accuracy
    known = None not in (found.accuracy, *values)
    return Noise(
        found.loss + abs(usual[0] - other[0]),
        found.gradient + float((usual[1] - other[1]).double().norm()),
        found.accuracy + abs(values[0] - values[1]) if known else None,  # pyright: ignore
        found.samples,
    )


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
    wanted = min(_MOST, max(_FEWEST, count // _SHARE))
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


def _against_wide(objective: "Objective") -> Noise:
    """Return what 16 bits and float32 differ by on some samples, and may on all."""
    exact = objective.exact
    assert exact is not None  # it computes in 16 bits
    losses, slopes = Spread(), Spread()
    size = length = 0.0
    chunks = some_chunks(objective, by_weight=True)
    for chunk in chunks:
        (loss, slope), (true_loss, true_slope) = (
            _at(one, chunk, objective.total_weight / chunk.weight) for one in (objective, exact)
        )
        losses.add(loss - true_loss)
        slopes.add(slope.double() - true_slope.double())
        size, length = max(size, abs(float(true_loss))), max(length, float(true_slope.norm()))
    whole = _whole_chunk(objective)
    eps = 4 * torch.finfo(objective.dtype).eps  # what is left of rounding in float32
    return Noise(
        max(losses.bound(), whole[0]) + eps * size,
        max(slopes.bound(), whole[1]) + eps * length,
        _accuracy_against_wide(objective, exact),
        sum(chunk.size for chunk in chunks),
    )


def _accuracy_against_wide(objective: "Objective", exact: "Objective") -> float | None:
    """Return what accuracies differ by on some samples, and may on all; None of no classifier."""
    if objective.decision is None:
        return None
    spread, count = Spread(), 0
    for chunk in some_chunks(objective, by_weight=False):
        rights = [_right(one, chunk) for one in (objective, exact)]
        spread.add(torch.tensor((rights[0] - rights[1]) / chunk.size))
        count += chunk.size
    # Nothing is unseen where these are all samples.
    unseen = _UNSEEN / count * (1 - count / objective.num_samples)
    return spread.bound() + unseen + _TIES / objective.num_samples


def _right(objective: "Objective", chunk: Chunk) -> int:
    with torch.no_grad(), objective.placed(smooth=False) as point:
        decision = objective.decision
        assert decision is not None
        return decision.correct(objective.outputs(point, chunk), chunk.targets)


def _whole_chunk(objective: "Objective") -> tuple[float, float]:
    """Return by how much loss and gradient of as many samples as a chunk has are off."""
    exact, size = objective.exact, min(objective.chunk_size, objective.num_rows)
    if exact is None or not objective.divisible:  # then the groups are whole chunks
        return 0.0, 0.0
    rows = spread_rows(objective.num_rows, size).to(objective.device)
    whole = objective.rows(rows)
    scale = objective.total_weight / whole.weight
    loss, slope = _at(objective, whole, scale)
    slope = slope.double()
    # In parts: in float32 a sample takes twice the memory.
    for part in rows.split(-(-len(rows) // 2)):
        true_loss, true_slope = _at(exact, objective.rows(part), scale)
        loss, slope = loss - true_loss, slope - true_slope
    return abs(float(loss)), float(slope.norm())


def _at(objective: "Objective", chunk: Chunk, scale: float) -> tuple[Tensor, Tensor]:
    """Return mean loss and gradient [P] of a group at the own point."""
    with objective.placed(smooth=False) as point:
        share = objective.chunk_loss(point, chunk)
        slope = differentiate(share, point)
    return share.detach().double() * scale, slope * scale


def name_of_dtype(objective: "Objective") -> str:
    """Return in words in which dtype an objective is computed."""
    if objective.by_itself:
        return f"{_named(objective.dtype)}, {_name(objective)} by the model itself"
    return _named(objective.narrow or objective.dtype)


def narrow_words(objective: "Objective") -> str:
    """Return what makes numbers of an objective in 16 bits wrong."""
    of_model = f"the {_name(objective)} in which the model itself computes"
    return of_model if objective.by_itself else f"dtype {_name(objective)}"


def _name(objective: "Objective") -> str:
    return _named(objective.narrow)


def _named(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
