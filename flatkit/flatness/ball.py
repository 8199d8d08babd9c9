"""Maximise a smooth function over a ball by linearised ascent from several starts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError, NonFiniteError

_SCREENING = 3
"""Iterations that every start gets; only the best go on."""
_FINALISTS = 2


class Landing(Protocol):
    """A function evaluated at one displacement; the ascent direction is computed when asked."""

    @property
    def value(self) -> float:
        """The value of the function."""
        ...

    def ascent(self) -> Tensor:
        """Return the gradient [P] of the function, or a positive multiple of it."""
        ...


@dataclass(frozen=True)
class BallMaximum:
    """The best point that a search in the ball ‖δ‖ ≤ ρ found.

    Attributes:
        value: the function there: a LOWER bound of the maximum over the ball.
        displacement: δ [P].
        start: the name of the start that led there.
        stationarity: the angle, in radians, between δ and the ascent direction there, 0 at a
            stationary point of the sphere; `None` for an inner point.
        status: `converged` if the best ascent became stationary, else `budget`.
        trails: the values along each start's ascent.
        evaluations: of the function.
        ascents: of its gradient.
    """

    value: float
    displacement: Tensor
    start: str
    stationarity: float | None
    status: str
    trails: Mapping[str, list[float]]
    evaluations: int
    ascents: int


class _Climb:
    """One ascent: where it is, what it has seen."""

    def __init__(
        self, function: Callable[[Tensor], Landing], radius: float, start: Tensor, name: str
    ) -> None:
        self.function, self.radius, self.name = function, radius, name
        self.evaluations = self.ascents = 0
        self.done = False
        self.displacement = start
        self.landing = self._land(start)
        self.trail = [self.landing.value]

    def step(self, tolerance: float) -> None:
        """Move to the maximiser of the linearised function over the ball, or part of the way.

        For a convex function the whole step never descends; otherwise it is halved until it
        ascends. The segment lies within the ball, so a part of it does too.
        """
        target = self._target()
        if target is None:
            self.done = True
            return
        fraction = 1.0
        while fraction > 1e-3:
            candidate = torch.lerp(self.displacement, target, fraction)
            landing = self._land(candidate)
            if landing.value > self.landing.value:
                break
            fraction /= 2
        else:
            self.done = True
            return
        gain = landing.value - self.landing.value
        self.displacement, self.landing = candidate, landing
        self.trail.append(landing.value)
        self.done = gain <= tolerance * abs(landing.value)

    def _land(self, displacement: Tensor) -> Landing:
        self.evaluations += 1
        landing = self.function(displacement)
        if not math.isfinite(landing.value):
            raise NonFiniteError(
                f"the loss or its gradient is NaN or infinite within rho = {self.radius:g} of "
                "the checkpoint; choose a smaller rho, or dtype=float64"
            )
        return landing

    def stationarity(self) -> float | None:
        """Return the angle between a point on the sphere and its ascent direction."""
        target = self._target()
        length = float(self.displacement.norm())
        if target is None or length < 0.999 * self.radius:
            return None
        cosine = float(self.displacement @ target) / (length * self.radius)
        return math.acos(max(-1.0, min(1.0, cosine)))

    def _target(self) -> Tensor | None:
        """Return the maximiser of the linearised function, or None where it is constant."""
        direction = self.landing.ascent()
        self.ascents += 1
        return on_sphere(direction, self.radius) if float(direction.norm()) > 0 else None


def maximize_over_ball(
    function: Callable[[Tensor], Landing],
    *,
    radius: float,
    starts: Mapping[str, Tensor],
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> BallMaximum:
    """Search the maximum of a function over the ball ‖δ‖ ≤ ρ.

    From each start, δ ← ρ·∇φ(δ)/‖∇φ(δ)‖: the maximiser of the linearised function over the ball,
    a step that never descends where φ is convex (the generalised power method, Journée et al.
    2010) and is shortened until it ascends elsewhere (Frank and Wolfe, 1956). Every start gets a
    few steps, the best two go on until they gain less than the tolerance.

    The result is a feasible point, so its value is a LOWER bound of the maximum: a search that
    ends in a local maximum does not know it.

    Cost: an evaluation and an ascent direction per iteration and start, memory 4 vectors a start.

    Args:
        function: φ, evaluated at a displacement δ [P].
        radius: ρ > 0.
        starts: displacements [P] by name, each within the ball; also the centre, if it is given.
        tolerance: a climb ends when a step gains less than this, relative to the value.
        max_iterations: of each climb.

    Raises:
        InvalidArgumentError: no start, or an argument out of range.
        NonFiniteError: the function is not finite somewhere in the ball.

    >>> class Linear:  # φ(δ) = δ₀, whose maximum over the ball is ρ
    ...     def __init__(self, delta):
    ...         self.value = float(delta[0])
    ...
    ...     def ascent(self):
    ...         return torch.tensor([1.0, 0.0])
    >>> maximize_over_ball(Linear, radius=2.0, starts={"centre": torch.zeros(2)}).value
    2.0
    """
    check_positive("rho", radius)
    check_positive("tolerance", tolerance)
    check_count("max_iterations", max_iterations)
    if not starts:
        raise InvalidArgumentError("starts must hold at least one displacement, got none")
    climbs = [_Climb(function, radius, start, name) for name, start in starts.items()]
    _advance(climbs, _SCREENING, tolerance)
    finalists = sorted(climbs, key=_height)[:_FINALISTS]
    _advance(finalists, max_iterations - _SCREENING, tolerance)
    best = min(finalists, key=_height)
    stationarity = best.stationarity()
    return BallMaximum(
        value=best.landing.value,
        displacement=best.displacement,
        start=best.name,
        stationarity=stationarity,
        status="converged" if best.done else "budget",
        trails={climb.name: climb.trail for climb in climbs},
        evaluations=sum(climb.evaluations for climb in climbs),
        ascents=sum(climb.ascents for climb in climbs),
    )


def on_sphere(direction: Tensor, radius: float) -> Tensor:
    """Return the vector scaled to the length ρ.

    >>> on_sphere(torch.tensor([3.0, 4.0]), 10.0)
    tensor([6., 8.])
    """
    return direction * (radius / float(direction.norm()))


def _advance(climbs: list[_Climb], steps: int, tolerance: float) -> None:
    for climb in climbs:
        for _ in range(steps):
            if climb.done:
                break
            climb.step(tolerance)


def _height(climb: _Climb) -> float:
    return -climb.landing.value
