"""Whether what autograd calls the gradient of a loss is its derivative, held against differences.

Straight-through estimators, detached parts and wrong backward passes have gradients that are the
derivatives of no loss: no curvature belongs to them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatkit.errors import UserCodeError, WrongGradientError
from flatkit.objective.model.dispatch import Mode, execute
from flatkit.objective.proofs.examination import Found
from flatkit.objective.pytree import leaves
from flatkit.objective.users_code import users_code

if TYPE_CHECKING:
    from flatkit.objective.function import Objective
    from flatkit.objective.passes import Chunk

_FINE = (1e-6, 1e-7, 1e-8, 1e-5, 1e-4)
"""Steps, in lengths of θ, until one agrees: few kinks of ReLUs lie within, rounding is below."""
_COARSE = (1e-2, 3e-3)
"""Steps where the model itself rounds to 32 bits or fewer."""
_TOLERANCE, _COARSELY = 1e-4, 3e-2
"""Relative differences that are allowed, by fine steps and by coarse ones."""
_WRONG, _CLEARLY = 1e-3, 0.3
"""Those that no kinks, no rounding and no curvature make, by fine steps and by coarse ones."""
_FLAT = 1e-2
"""Relative rounding of a difference above which nothing can be told."""
_APART = 1e-2
"""How far the point near θ lies, in lengths of θ."""
_NAMED = 3
_LOOKED_AT = 40
"""Parameters that are looked at one by one to find the wrong ones."""


@dataclass(frozen=True)
class Slope:
    """The derivative of a loss along a direction, by autograd and by differences.

    Attributes:
        gradient: by autograd.
        difference: of the values, by the step that agrees best.
        error: their difference relative to the larger one.
        rounding: relative, of that difference of values.
    """

    gradient: float
    difference: float
    error: float
    rounding: float


class _Place:
    """A few samples of an objective at a point, with the gradient there.

    Args:
        function: the objective, or a copy of it in float64.
        chunk: the samples, of its dtype.
        theta: the point [P].
    """

    def __init__(self, function: "Objective", chunk: "Chunk", theta: Tensor) -> None:
        self.function, self.chunk, self.theta = function, chunk, theta
        self.length = float(theta.norm()) or math.sqrt(len(theta))
        with function.placed(theta) as point:
            loss = function.chunk_loss(point, chunk)
            self.depends = loss.requires_grad
            if self.depends:
                with users_code("the backward pass"):
                    (slope,) = torch.autograd.grad(loss, point, materialize_grads=True)
                self.gradient = slope.detach()
            self.loss = float(loss.detach())

    def value(self, step: Tensor) -> float:
        """Return the loss a step [P] away."""
        return float(self.function.chunk_loss(self.theta + step, self.chunk).detach())

    @cached_property
    def outputs(self) -> float:
        """The largest magnitude of what the model returns, whose rounding the loss has.

        The loss itself does not tell how it is rounded: where all samples are right by far, it is
        a vanishing difference of large logits.
        """
        with self.function.placed(self.theta) as point:
            found = leaves(self.function.outputs(point, self.chunk))
            sizes = [float(x.detach().abs().max()) for x in found if _is_number(x)]
        return max(sizes, default=0.0)

    def slope(self, direction: Tensor, steps: Sequence[float]) -> Slope:
        """Return the slope along a direction [P], by the first step that agrees, or the best."""
        expected = float(self.gradient @ direction)
        # Not |g·d|, which may cancel to nothing: the error is relative to the terms of that sum.
        size = float((self.gradient * direction).abs().sum())
        unit = self.length / (float(direction.norm()) or 1.0)
        eps = torch.finfo(self.theta.dtype).eps
        best: Slope | None = None
        for step in steps:
            move = step * unit * direction
            found = (self.value(move) - self.value(-move)) / (2 * step * unit)
            scale = max(abs(found), size) or 1.0
            error = abs(found - expected) / scale
            size_of_terms = abs(self.loss)
            if error > _TOLERANCE:  # only then is it of interest
                size_of_terms = max(size_of_terms, self.outputs)
            # A difference of two losses, each right to some units of rounding, divided by the step.
            rounding = 100 * eps * size_of_terms / (step * unit * scale)
            # Not `error < best.error`, with which a first NaN would remain the best.
            if best is None or not error >= best.error:
                best = Slope(expected, found, error, rounding)
            if error <= _TOLERANCE:
                break
        assert best is not None
        return best


def prove_gradient(
    function: "Objective", precise: "Objective | None", rows: Tensor, remark: str = ""
) -> Found:
    """Return whether the gradient is the derivative of the loss, near θ.

    Cost: a gradient and two losses of a few samples, in float64.

    Args:
        function: the objective.
        precise: its copy in float64, or itself where it is that; None where there is none.
        rows: which of its samples.
        remark: what an error says beside.

    Raises:
        WrongGradientError: it is not; the error names the parameters, and what is seen of them.
    """
    chunk = function.rows(rows.to(function.device))
    if precise is None:
        return _prove_coarsely(function, chunk, "a sharded model has no copy in float64", remark)
    try:
        # A hundredth off: at the checkpoint itself ReLUs of layers that are still zero have kinks.
        near = _Place(precise, chunk.in_double(), _near(function.theta.double()))
    except UserCodeError as error:
        return _prove_coarsely(function, chunk, f"float64 does not pass ({error})", remark)
    if not near.depends:
        return None, "the loss does not depend on the parameters", None
    slope = near.slope(_direction(near), _FINE)
    if not math.isfinite(near.loss + slope.error):
        return None, f"the loss of {chunk.size} samples is not finite", None
    if slope.error > max(_TOLERANCE, slope.rounding):
        # Looked at only now, as it takes a further pass: most models agree at the first step.
        if rounds(near.function, near.theta, near.chunk):
            return _prove_coarsely(function, chunk, "the model computes in 32 bits", remark)
        if slope.error > max(_WRONG, slope.rounding):
            raise _wrong(near, slope, remark)
        return None, f"agrees with differences of the loss to {slope.error:.1g} only", slope.error
    if slope.rounding > _FLAT:
        return None, "the loss is too flat for differences", None
    found = (
        f"agrees with differences of the loss of {chunk.size} samples in float64, near the point"
    )
    return True, found, slope.error


def _prove_coarsely(function: "Objective", chunk: "Chunk", why: str, remark: str) -> Found:
    """Look by steps that are long enough for 32 bits, and refuse only what is clearly wrong."""
    try:
        place = _Place(function, chunk, _near(function.theta))
        if not place.depends:
            return None, "the loss does not depend on the parameters", None
        slope = place.slope(_direction(place), _COARSE)
    except UserCodeError as error:
        return None, f"not looked at: {error}", None
    if not math.isfinite(place.loss + slope.error) or slope.rounding > 10 * _FLAT:
        return None, f"{why}, and differences tell nothing", None
    if slope.error > _CLEARLY:
        raise _wrong(place, slope, remark)
    if slope.error > _COARSELY:
        return None, f"{why}, and differences agree by {slope.error:.1g} only", slope.error
    return True, f"agrees with differences of the loss; coarsely, as {why}", slope.error


def _near(theta: Tensor) -> Tensor:
    """Return a random point near θ, off the kinks at which θ itself may lie."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta)
    length = float(theta.norm()) or math.sqrt(len(theta))
    return theta + _APART * length / math.sqrt(len(theta)) * noise


def _direction(place: _Place, only: str | None = None) -> Tensor:
    """Return a direction [P] along which every parameter bends the loss about alike.

    Of each parameter it is the gradient, by which a wrong one shows most, and random numbers, by
    which a missing one shows, in proportion to what that part of the gradient is.
    """
    generator = torch.Generator().manual_seed(2)
    parts = place.gradient.split(place.function.space.sizes)
    largest = max(float(part.norm()) for part in parts) or 1.0
    found: list[Tensor] = []
    for name, part in zip(place.function.space.names, parts, strict=True):
        noise = torch.randn(len(part), generator=generator, dtype=torch.float64).to(part)
        # A hundredth of the largest at least, or a parameter
        # without gradient would be divided by nothing.
        size = max(float(part.norm()), 0.01 * largest)
        mixed = part / size + noise / math.sqrt(max(1, len(part)))
        # Divided by the slope once more, so that each parameter changes the loss about alike.
        found.append(mixed / size if only in (None, name) else torch.zeros_like(part))
    return torch.cat(found)


def _wrong(place: _Place, slope: Slope, remark: str) -> WrongGradientError:
    """Return the error that names the parameters, and what differences say of them."""
    seen: list[str] = []
    steps = _FINE if place.theta.dtype == torch.float64 else _COARSE
    for name in place.function.space.names[:_LOOKED_AT]:
        own = place.slope(_direction(place, name), steps)
        if own.error > max(_WRONG, own.rounding):
            seen.append(f"{name}: {_cause(place, name, own)}")
    named = "; ".join(seen[:_NAMED]) + (f"; and {len(seen) - _NAMED} more" * (len(seen) > _NAMED))
    return WrongGradientError(
        "the gradient that autograd gives is not the derivative of the loss: along one direction "
        f"it is {slope.gradient:.6g}, differences of the loss give {slope.difference:.6g}"
        + (f" ({named})" if seen else " (a custom backward pass, a detached part?)")
        + ", so that no curvature belongs to both. Give a model whose backward pass is the "
        "derivative of its forward pass (without rounding, sign or detach, or with their smooth "
        "stand-ins in both); `examine` off measures what autograd gives, unproved" + remark
    )


def _cause(place: _Place, name: str, slope: Slope) -> str:
    """Return what is seen of one parameter."""
    size = max(abs(slope.gradient), abs(slope.difference))
    sizes = dict(zip(place.function.space.names, place.function.space.shapes, strict=True))
    # The loss stands still while a gradient is there: only an estimator does so.
    if abs(slope.difference) < 1e-3 * size:
        return "the loss does not change with it, a straight-through estimator"
    if len(sizes[name]) == 2 and _has_empty_rows(place, name):
        return "rows without gradient change the loss, the padding_idx of an embedding"
    if abs(slope.gradient) < 1e-3 * size:
        return "the loss changes with it, but it has no gradient, as of a detached part"
    return (
        "a straight-through estimator, a detached part, a hook that changes gradients, or a wrong "
        "custom backward pass"
    )


def _has_empty_rows(place: _Place, name: str) -> bool:
    """Whether some, not all, rows of a matrix have no gradient, and the loss depends on them."""
    names, shapes = place.function.space.names, place.function.space.shapes
    index = names.index(name)
    parts = list(place.gradient.split(place.function.space.sizes))
    empty = (parts[index].view(shapes[index]) == 0).all(1)
    if bool(empty.all()) or not bool(empty.any()):
        return False
    moved = [torch.zeros_like(part) for part in parts]
    moved[index] = empty[:, None].expand(shapes[index]).to(parts[index]).flatten()
    return place.slope(torch.cat(moved), _FINE[-1:]).difference != 0


def _is_number(leaf: Tensor) -> bool:
    return leaf.is_floating_point() and leaf.numel() > 0


class _Watch(Mode):
    """Notes whether anything is computed in fewer than 64 bits."""

    rounds = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = execute(func, args, kwargs)
        if isinstance(found, Tensor) and found.is_floating_point():
            self.rounds = self.rounds or found.dtype != torch.float64
        return found


def rounds(precise: "Objective", theta: Tensor, chunk: "Chunk") -> bool:
    """Whether a model computes parts of a loss in fewer than 64 bits, though all is in float64.

    Args:
        precise: an objective in float64.
        theta: a point [P].
        chunk: some of its samples, in float64.
    """
    with _Watch() as watch:
        precise.chunk_loss(theta, chunk)
    return watch.rounds
