"""Objectives that compute in 16 bits: which may, and what they are called."""

import copy
import math
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError, UserCodeError
from flatkit.objective.model.widening import is_narrower
from flatkit.objective.noise import FEWEST, at_point
from flatkit.objective.passes import Chunk
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.reading.sample_set import Samples
from flatkit.objective.settings import DType

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

NARROW = (torch.bfloat16,)
"""The dtypes in which a model may compute while θ stays in float32. float16 is none of them: what
lies below 6e-8, as most second derivatives do, vanishes there."""


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


def compute_narrowly(
    objective: "Objective", asked: torch.dtype | None, own: torch.dtype | None
) -> None:
    """Let the model compute in the narrow dtype that is asked for, or in its own if none is.

    A dtype that is not narrow is one in which the model computes throughout.

    Args:
        objective: L, made and examined without it; that remains as its `exact`.
        asked: the dtype that the user named, if any.
        own: in which the model computes by itself, if in a narrow one; float32 within float64 is
            none, as there all is computed in float64.

    Raises:
        InvalidArgumentError: it cannot; it says why, and the way out.
    """
    own = own if own is not None and is_narrower(own) else None
    narrow = own if asked is None else asked if asked in NARROW else None
    if narrow is None:
        return
    if asked is not None:
        _refuse_what_needs_width(objective, narrow)
    # Shallow: both have the same samples and count their passes in one place.
    objective.exact = copy.copy(objective)
    objective.narrow_to(narrow, by_itself=asked is None)
    objective.engine_choices = {}
    try_out(objective)


def narrowed_like(wide: "Objective", other: "Objective") -> "Objective":
    """Return a function in float32 as it is in the 16 bits of another, beside which it remains."""
    found, narrow = copy.copy(wide), other.narrow
    assert narrow is not None
    found.exact, found.engine_choices = wide, other.engine_choices
    found.narrow_to(narrow, by_itself=other.by_itself)
    return found


def _refuse_what_needs_width(objective: "Objective", narrow: torch.dtype) -> None:
    """Refuse a function that cannot be computed in 16 bits.

    Raises:
        InvalidArgumentError: it says why, and the way out.
    """
    name = _named(narrow)
    elsewhere = objective.elsewhere
    reasons = {
        "weights stand also outside of the model": elsewhere is not None and bool(elsewhere.spots),
        "the loss reads what the forward pass keeps in the model": elsewhere is not None,
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
        size = min(FEWEST, objective.chunk_size)
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
    loss, slope = at_point(objective, chunk, 1.0, None)
    return math.isfinite(float(loss)) and bool(slope.isfinite().all())


def why_not_finite(objective: "Objective") -> str:
    """Return what may be the matter with a loss that is no number, and the way out."""
    if objective.exact is not None and math.isfinite(objective.exact.loss()):
        return f" in {_name(objective)}, and a number in float32; choose dtype float32"
    return "; the training diverged, analyze an earlier checkpoint"


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
