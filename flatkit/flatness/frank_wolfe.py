"""Frank-Wolfe ascent in a ball: iterates that share a function and a radius."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.flatness.geometry import Geometry

# How often a step is halved before its iterate counts as stationary: 1/256 of the way.
_HALVINGS = 8


@dataclass(frozen=True)
class FunctionValues:
    """A function at K points u [K, P], which are given once more where more of it is asked.

    Attributes:
        values: of the function, float64 [K].
        ascents: returns its gradients [K, P] with respect to u; computed when called.
        secants: returns what these are nearly, from a step of the length h back to where the
            function was lower, at the cost of a value; None where ascents cost nothing anyway.
    """

    values: Tensor
    ascents: Callable[[Tensor], Tensor]
    secants: Callable[[Tensor, float], Tensor] | None = None


class BallFunction(Protocol):
    """A function φ(u) on a ball, in the coordinates of its geometry.

    Its gradient is called the ascent here, as φ itself may be the norm of a gradient.

    Attributes:
        geometry: of the ball.
        value_cost: of a value, and of a secant, in gradients of the loss.
        ascent_cost: of a gradient of φ where the value is known, in gradients of the loss.
    """

    geometry: Geometry
    value_cost: int
    ascent_cost: int

    @property
    def rows(self) -> int:
        """How many points are best evaluated at once."""
        ...

    def __call__(self, u: Tensor) -> FunctionValues:
        """Evaluate φ at the rows of u [K, P]."""
        ...


@dataclass(frozen=True)
class Precision:
    """How exactly an ascent goes on.

    Attributes:
        secant: length of the step, in radii, whose secant is the ascent; None for the gradient.
        gain: that ends it, relative to the value.
    """

    secant: float | None = None
    gain: float = 0.0


EXACT = Precision()


class Point:
    """A point [P] of a search: what makes it anew, always the same, need not be kept beside it.

    Args:
        u: the point, or what makes it.

    >>> point = Point(lambda: torch.ones(2))
    >>> point.rest()
    >>> point.u
    tensor([1., 1.])
    """

    def __init__(self, u: Tensor | Callable[[], Tensor]) -> None:
        self._make, self._u = (u, None) if callable(u) else (None, u)

    @property
    def u(self) -> Tensor:
        """The point, kept from now on."""
        if self._u is None:
            assert self._make is not None
            self._u = self._make()
        return self._u

    def rest(self) -> None:
        """Keep no vector that can be made anew."""
        if self._make is not None:
            self._u = None


@dataclass(eq=False)
class Iterate:
    """The current point of one ascent, which way is up there, and the values on the way."""

    name: str
    point: Point
    value: float = -math.inf
    ascent: Tensor = field(default_factory=lambda: torch.empty(0))
    trail: list[float] = field(default_factory=list[float])
    done: bool = False
    at: FunctionValues | None = None

    @property
    def u(self) -> Tensor:
        """The point [P]."""
        return self.point.u

    def move(self, u: Tensor, at: FunctionValues, least_gain: float = -math.inf) -> None:
        """Go to a higher point; a gain of no more than the least ends the ascent."""
        value = float(at.values[0])
        self.done = value - self.value <= least_gain
        self.point, self.value, self.at = Point(u), value, at
        self.trail.append(value)

    def follow(self, other: "Iterate") -> None:
        """Go to where a higher iterate is."""
        if other.value > self.value:
            self.point, self.value, self.ascent = other.point, other.value, other.ascent
            self.at, self.done = other.at, other.done

    def rest(self) -> None:
        """Keep no vector where it began; its next ascent costs a value."""
        self.at, self.ascent = None, torch.empty(0)
        self.point.rest()

    def forget(self) -> None:
        """Give up the point and what is kept for going on; its value stays."""
        self.point = Point(torch.empty(0))
        self.rest()


class BallSearch:
    """What the ascents of one search share: a function, a radius, and what was spent.

    Args:
        function: φ.
        radius: ρ.
        tolerance: gain, relative to the value, that ends an ascent.
        noise: by how much rounding may change a value.

    Attributes:
        iterates: the ascents so far.
        evaluations: of φ so far.
        ascents: of its gradient so far.
        secants: instead of its gradient.
        trial: the point that is tried now, if one is.
        explored: gradients of the loss that starts and directions to walk in took.
        size: P, once a point was evaluated.
    """

    def __init__(
        self,
        function: BallFunction,
        radius: float,
        *,
        tolerance: float,
        noise: float = 0.0,
    ) -> None:
        self.function, self.radius, self.noise = function, radius, noise
        self.tolerance = tolerance
        self.iterates: list[Iterate] = []
        self.evaluations = self.ascents = self.secants = self.explored = 0
        self.trial: Point | None = None
        self.size = 0

    def least_gain(self, value: float, precision: Precision) -> float:
        """Return the gain over a value that is none: within the tolerance, or the rounding."""
        return max(max(self.tolerance, precision.gain) * abs(value), self.noise)

    @property
    def spent(self) -> int:
        """Gradients of the loss so far."""
        values = (self.evaluations + self.secants) * self.function.value_cost
        return values + self.ascents * self.function.ascent_cost + self.explored

    @property
    def best(self) -> Iterate:
        """The highest iterate."""
        return max(self.iterates, key=lambda iterate: iterate.value)

    def evaluate(self, u: Tensor) -> FunctionValues:
        """Evaluate the function at the rows of u [K, P].

        Raises:
            NonFiniteError: it is NaN or infinite there.
        """
        found = self.function(u)
        self.evaluations += len(u)
        self.size = u.shape[1]
        if not bool(found.values.isfinite().all()):
            raise NonFiniteError(
                f"the loss or its gradient is NaN or infinite within rho = {self.radius:g} of "
                "the checkpoint; choose a smaller rho, or dtype=float64"
            )
        return found

    def ascents_of(self, u: Tensor, found: FunctionValues, precision: Precision = EXACT) -> Tensor:
        """Return the ascents [K, P] at the rows of u [K, P], which were evaluated."""
        if found.secants is None or precision.secant is None:
            self.ascents += len(u)
            return found.ascents(u)
        self.secants += len(u)
        return found.secants(u, precision.secant * self.radius)

    def attempt(self, make: Callable[[], Tensor]) -> tuple[Point, FunctionValues]:
        """Evaluate the function at a point that may become that of an iterate. Cost: a value."""
        self.trial = trial = Point(make)
        return trial, self.evaluate(trial.u[None])

    def rest(self) -> None:
        """Keep no point that can be made anew."""
        for iterate in self.iterates:
            iterate.point.rest()
        if self.trial is not None:
            self.trial.rest()

    def begin(self, name: str, make: Callable[[], Tensor]) -> Iterate:
        """Return a new ascent from a point [P], whose value is known. Cost: a value."""
        iterate = Iterate(name, begun := Point(make))
        iterate.move(begun.u, self.evaluate(begun.u[None]))
        iterate.point = begun
        self.iterates.append(iterate)
        return iterate

    def aim(self, iterate: Iterate, precision: Precision) -> None:
        """Find which way is up. Cost: an ascent, or a value for a secant."""
        at = iterate.at or self.evaluate(iterate.u[None])
        # `at` holds the gradient at the point: the next secant or ascent starts from it.
        iterate.at, iterate.ascent = at, self.ascents_of(iterate.u[None], at, precision)[0]

    def step(self, iterate: Iterate, precision: Precision) -> Iterator[None]:
        """Move an iterate to the maximiser of the linearised function, or part of the way.

        For a convex function the whole step never descends; otherwise it is halved until it
        ascends. The segment lies within the ball, so a part of it does too.
        """
        if not bool(iterate.ascent.any()):
            iterate.done = True
            return
        for halving in range(_HALVINGS):
            geometry, part = self.function.geometry, 0.5**halving
            trial, at = self.attempt(partial(_towards, geometry, self.radius, iterate, part))
            yield
            if float(at.values[0]) > iterate.value:
                iterate.move(trial.u, at, self.least_gain(float(at.values[0]), precision))
                del trial, at  # from now on the iterate alone has them
                self.trial = None
                self.aim(iterate, precision)
                yield
                return
        iterate.done = True


def _towards(geometry: Geometry, radius: float, iterate: Iterate, part: float) -> Tensor:
    """Return the point [P] that lies a part of the way to the maximiser of the linearised φ."""
    return torch.lerp(iterate.u, geometry.maximiser(iterate.ascent, radius), part)
