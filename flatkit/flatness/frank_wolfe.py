"""Frank-Wolfe ascent in a ball: iterates that share a function, a radius and a budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.flatness.geometry import Geometry

# How often a step is halved before its iterate counts as stationary: 1/256 of the way.
_HALVINGS = 8


@dataclass(frozen=True)
class FunctionValues:
    """A function at K points.

    Attributes:
        values: of the function, float64 [K].
        ascents: returns its gradients [K, P] with respect to u; computed when called.
    """

    values: Tensor
    ascents: Callable[[], Tensor]


class BallFunction(Protocol):
    """A function φ(u) on a ball, in the coordinates of its geometry.

    Its gradient is called the ascent here, as φ itself may be the norm of a gradient.

    Attributes:
        geometry: of the ball.
        rows: how many points are best evaluated at once.
        value_cost: of a value, in gradients of the loss.
        ascent_cost: of a gradient of φ where the value is known, in gradients of the loss.
    """

    geometry: Geometry
    rows: int
    value_cost: int
    ascent_cost: int

    def __call__(self, u: Tensor) -> FunctionValues:
        """Evaluate φ at the rows of u [K, P]."""
        ...


@dataclass(eq=False)
class Iterate:
    """The current point of one ascent, which way is up there, and the values on the way."""

    name: str
    u: Tensor
    value: float = -math.inf
    ascent: Tensor = field(default_factory=lambda: torch.empty(0))
    trail: list[float] = field(default_factory=list[float])
    done: bool = False

    def move(self, u: Tensor, value: float, ascent: Tensor, least_gain: float) -> None:
        """Go to a higher point; a gain of no more than the least ends the ascent."""
        self.done = value - self.value <= least_gain
        self.u, self.value, self.ascent = u, value, ascent
        self.trail.append(value)


class BallSearch:
    """What the ascents of one search share: a function, a radius, and what was spent.

    Args:
        function: φ.
        radius: ρ.
        tolerance: gain, relative to the value, that ends an ascent.
        budget: in gradients of the loss.
        noise: by how much rounding may change a value.

    Attributes:
        evaluations: of φ so far.
        ascents: of its gradient so far.
        explored: directions that were drawn at a gradient of the loss each.
    """

    def __init__(
        self,
        function: BallFunction,
        radius: float,
        *,
        tolerance: float,
        budget: int,
        noise: float = 0.0,
    ) -> None:
        self.function, self.radius, self.noise = function, radius, noise
        self.tolerance, self.budget = tolerance, budget
        self.evaluations = self.ascents = self.explored = 0

    def least_gain(self, value: float) -> float:
        """Return the gain over a value that is none: within the tolerance, or the rounding."""
        return max(self.tolerance * abs(value), self.noise)

    @property
    def step_cost(self) -> int:
        """Gradients of the loss that a value and an ascent take."""
        return self.function.value_cost + self.function.ascent_cost

    @property
    def spent(self) -> int:
        """Gradients of the loss so far."""
        function = self.function
        steps = self.evaluations * function.value_cost + self.ascents * function.ascent_cost
        return steps + self.explored

    def evaluate(self, u: Tensor) -> FunctionValues:
        """Evaluate the function at the rows of u [K, P].

        Raises:
            NonFiniteError: it is NaN or infinite there.
        """
        found = self.function(u)
        self.evaluations += len(u)
        if not bool(found.values.isfinite().all()):
            raise NonFiniteError(
                f"the loss or its gradient is NaN or infinite within rho = {self.radius:g} of "
                "the checkpoint; choose a smaller rho, or dtype=float64"
            )
        return found

    def ascents_of(self, found: FunctionValues) -> Tensor:
        """Return the ascents [K, P] at points that were evaluated."""
        self.ascents += len(found.values)
        return found.ascents()

    def batches(self, iterates: list[Iterate]) -> list[list[Iterate]]:
        """Return the iterates in the parts that are evaluated at once."""
        size = self.function.rows
        return [iterates[first : first + size] for first in range(0, len(iterates), size)]

    def start(self, iterates: list[Iterate]) -> None:
        """Evaluate the initial points."""
        for batch in self.batches(iterates):
            found = self.evaluate(torch.stack([iterate.u for iterate in batch]))
            ascents = self.ascents_of(found)
            for row, iterate in enumerate(batch):
                iterate.move(iterate.u, float(found.values[row]), ascents[row], 0.0)
                iterate.done = False

    def step(self, batch: list[Iterate]) -> None:
        """Move each iterate to the maximiser of the linearised function, or part of the way.

        For a convex function the whole step never descends; otherwise it is halved until it
        ascends. The segment lies within the ball, so a part of it does too.
        """
        targets = {
            iterate: self.function.geometry.maximiser(iterate.ascent, self.radius)
            for iterate in batch
            if bool(iterate.ascent.any())
        }
        for iterate in batch:
            iterate.done = iterate not in targets
        pending, fraction = list(targets), 1.0
        for _ in range(_HALVINGS):
            if not pending:
                return
            points = torch.stack([torch.lerp(it.u, targets[it], fraction) for it in pending])
            found = self.evaluate(points)
            better = [row for row, it in enumerate(pending) if found.values[row] > it.value]
            if better:
                ascents = self.ascents_of(found)
                for row in better:
                    value = float(found.values[row])
                    pending[row].move(points[row], value, ascents[row], self.least_gain(value))
            pending = [iterate for row, iterate in enumerate(pending) if row not in set(better)]
            fraction /= 2
        for iterate in pending:
            iterate.done = True

    def advance(self, iterates: list[Iterate], until: int) -> None:
        """Step the iterates one after the other until all are done or `until` is spent."""
        while self.spent < until:
            active = [iterate for iterate in iterates if not iterate.done]
            if not active:
                return
            for batch in self.batches(active):
                if self.spent < until:
                    self.step(batch)
