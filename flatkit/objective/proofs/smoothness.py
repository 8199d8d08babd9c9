"""Whether a loss has its derivatives at the very point that is measured, which may lie on a kink.

A ReLU whose input is exactly 0 and would move, an absolute value at 0, a maximum of equal numbers:
there autograd takes one side and says nothing. On one side of the point the second derivative, or
already the gradient, is then another one than on the other. Units that are off on both sides,
padding, and layers of zeros that nothing has moved yet make no kink.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flatkit.errors import UserCodeError, WrongGradientError
from flatkit.objective.passes import differentiate
from flatkit.objective.proofs.derivative import rounds
from flatkit.objective.proofs.examination import Found

if TYPE_CHECKING:
    from flatkit.objective.function import Objective
    from flatkit.objective.passes import Chunk

_STEP, _FARTHER = 1e-11, 16.0
"""A step, in lengths of θ, and how many times longer the second one is. Of ten million ReLUs about
one in ten thousand has a kink that is so near without being at the point; rounding in float64 is a
hundred thousand times smaller than what curvature makes of the step."""
_SEEN = 1e-3
"""A step that also 32 bits see, in lengths of θ."""
_IN_32_BITS = "the model computes in 32 bits"
_JUMP = 1e-9
"""Part of the gradient that a jump is at least."""
_BEND = 1e-3
"""Part of the second derivative by which its two sides differ at least."""
_BLUR = 2e-13
"""Rounding of a loss in float64, relative: a thousand units."""
_ROUNDED = 3e-14
"""Rounding of a gradient in float64, of the terms that add up to it: some hundred units."""
_ALIKE = 0.5
"""Part by which two vectors may differ that should be the same; rounding makes them unlike."""
_NAMED = 3


class _Sides(NamedTuple):
    """What changes from one side of a point to the other.

    Attributes:
        jump: ∇L(θ + h) − ∇L(θ − h), which is proportional to h where L is smooth.
        bend: ∇L(θ + h) + ∇L(θ − h) − 2∇L(θ), which is proportional to h² there.
        rise: L(θ + h) − L(θ − h).
    """

    jump: Tensor
    bend: Tensor
    rise: float


def prove_smooth(precise: "Objective", rows: Tensor, remark: str = "") -> Found:
    """Return whether the gradient and the second derivative are the same on both sides of θ.

    `error` is by which part of itself the gradient jumps; 0 where only the second derivative does.

    Cost: three gradients of a few samples in float64, six where something shows.

    Args:
        precise: an objective that computes in float64.
        rows: which of its samples.
        remark: what an error says beside.

    Raises:
        WrongGradientError: the loss itself jumps at θ.
    """
    look = _Look(precise, precise.rows(rows.to(precise.device)).in_double())
    try:
        here, centre = look.at(precise.theta)
    except UserCodeError as error:
        return None, f"float64 does not pass ({error})", None
    if centre is None:
        return None, "the loss does not depend on the parameters", None
    # Both sides at once, as a kink shows by what changes between them.
    sides = look.sides(centre, _STEP)
    # What rounding makes of the loss over a length of θ is no jump, as of a loss that is constant.
    blur = _BLUR * abs(here) / look.length
    size = max(float(centre.norm()), float(sides.jump.norm()), blur / _JUMP)
    if not math.isfinite(here + size + float(sides.bend.norm())):
        return None, f"the loss of {look.chunk.size} samples is not finite around the point", None
    seen = float(sides.jump.norm()) > _JUMP * size
    seen = seen or float(sides.bend.norm()) > _BEND * float(sides.jump.norm())
    steep = abs(sides.rise) > _JUMP * abs(here)
    # What computes in 32 bits does not see such a step; it is asked late, as to look takes long.
    if not sides.jump.any() and look.sides(centre, _SEEN).jump.any() and look.rounds():
        return None, _IN_32_BITS, None
    if seen or steep:
        # Where the gradient vanishes, that of residuals that do, rounding is all that is left.
        terms = look.terms(centre)
        rounded = _ROUNDED * terms
        size, blur = max(size, rounded / _JUMP), max(blur, rounded)
        # Over a longer step what is smooth grows with it, and a jump stays: that tells them apart.
        farther = look.sides(centre, _FARTHER * _STEP)
        steep = steep and abs(sides.rise) > terms * _STEP * look.length
        if steep and abs(sides.rise) > 0.5 * abs(farther.rise) and not look.rounds():
            raise _jumps(here, sides.rise, remark)
        if found := _kink(precise, size, blur, sides, farther):
            return (None, _IN_32_BITS, None) if look.rounds() else found
    return True, f"both sides of the point agree, on {look.chunk.size} samples in float64", None


class _Look:
    """Samples at which an objective is looked at, from both sides of a point.

    Args:
        function: in float64.
        chunk: the samples.

    Attributes:
        length: of θ.
    """

    def __init__(self, function: "Objective", chunk: "Chunk") -> None:
        self.function, self.chunk, self.theta = function, chunk, function.theta
        generator = torch.Generator().manual_seed(3)
        # A random direction crosses every kink at the point; an axis would run along most of them.
        noise = torch.randn(len(self.theta), generator=generator, dtype=torch.float64)
        root = math.sqrt(max(1, len(noise)))
        self.length = float(self.theta.norm()) or root
        self._unit = self.length / root * noise.to(self.theta)

    def at(self, theta: Tensor) -> tuple[float, Tensor | None]:
        """Return the loss and its gradient [P]; None where there is no graph."""
        with self.function.placed(theta) as point:
            loss = self.function.chunk_loss(point, self.chunk)
            slope = differentiate(loss, point).detach() if loss.requires_grad else None
            return float(loss.detach()), slope

    def rounds(self) -> bool:
        """Whether anything is computed in fewer than 64 bits."""
        return rounds(self.function, self.theta, self.chunk)

    def terms(self, centre: Tensor) -> float:
        """Return how large the terms of the gradient are, which may cancel at the point itself."""
        _, away = self.at(self.theta + _SEEN * self._unit)
        moved = 0.0 if away is None else float((away - centre).norm())
        return float(centre.norm()) + moved / _SEEN

    def sides(self, centre: Tensor, step: float) -> _Sides:
        """Return what changes over a step, in lengths of θ, given the gradient between."""
        (above, ahead), (below, behind) = (
            self.at(self.theta + sign * step * self._unit) for sign in (1.0, -1.0)
        )
        ahead, behind = (centre if slope is None else slope for slope in (ahead, behind))
        return _Sides(ahead - behind, ahead + behind - 2 * centre, above - below)


def _kink(
    precise: "Objective", size: float, blur: float, near: _Sides, far: _Sides
) -> Found | None:
    """Return what is to be said of a kink, if there is one."""
    for short, long in ((near.jump, far.jump), (near.bend, far.bend)):
        jumped = float(short.norm())
        # What does not grow with the step is a jump: from side to side, or from the point to both.
        if jumped > _JUMP * size and _alike(short, long):
            names = _named(precise, short)
            return False, _JUMPS.format(jumped / size, names), jumped / size
    bent, curved = float(near.bend.norm()), float(near.jump.norm())
    # At a kink of the gradient this grows as the step h, by a smooth third derivative as h².
    if bent > max(_BEND * curved, blur) and _alike(_FARTHER * near.bend, far.bend):
        return False, _BENDS.format(bent / curved, _named(precise, near.bend)), 0.0
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) < _ALIKE * float(one.norm())


def _named(precise: "Objective", change: Tensor) -> str:
    """Return the parameters in which most of a change [P] is."""
    parts = zip(precise.space.names, change.split(precise.space.sizes), strict=True)
    sizes = {name: float(part.norm()) for name, part in parts}
    most = sorted(sizes, key=lambda name: -sizes[name])
    named = [name for name in most if sizes[name] > 0.01 * sizes[most[0]]]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def _jumps(loss: float, rise: float, remark: str) -> WrongGradientError:
    return WrongGradientError(
        f"the loss jumps at this point, by {abs(rise):.3g} of {loss:.6g} over a step of "
        f"{_STEP:.0e} of its length (a sign, a rounding or a comparison whose argument is exactly "
        f"at the threshold?): it has no derivatives there; measure at another point{remark}"
    )


_WHY = (
    " the point lies on a kink (a ReLU whose input is exactly 0, an absolute value at 0, a maximum "
    "of equal numbers, in {}). Numbers made of second derivatives are those of the side that "
    "autograd takes. Measure after a step of training, or hold those weights constant "
    "(`requires_grad_(False)`); measures in balls need no second derivative"
)
_JUMPS = "the gradient jumps here by {:.2g} of itself:" + _WHY
_BENDS = "the second derivative differs by {:.2g} of itself from one side to the other:" + _WHY
