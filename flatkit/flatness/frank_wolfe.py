"""Linearised ascent in a ball: climbs that share a function, a radius and a budget."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.flatness.functions import Field, Landing

_HALVINGS = 8
"""How often a step is shortened before a climb counts as stationary."""


@dataclass(eq=False)
class Climb:
    """One ascent: where it is, which way is up, what it has seen."""

    name: str
    u: Tensor
    value: float = -math.inf
    ascent: Tensor = field(default_factory=lambda: torch.empty(0))
    trail: list[float] = field(default_factory=list)
    done: bool = False

    def move(self, u: Tensor, value: float, ascent: Tensor, least: float) -> None:
        """Go to a higher point; a gain of no more than the least ends the climb."""
        self.done = value - self.value <= least
        self.u, self.value, self.ascent = u, value, ascent
        self.trail.append(value)


class Ascents:
    """The climbs of one search: a function, a radius, and what was spent.

    Args:
        function: φ.
        radius: ρ.
        tolerance: gain, relative to the value, that ends a climb.
        budget: in gradients of the loss.
        noise: by how much rounding may change a value.
    """

    def __init__(
        self, function: Field, radius: float, *, tolerance: float, budget: int, noise: float = 0.0
    ) -> None:
        self.function, self.radius, self.noise = function, radius, noise
        self.tolerance, self.budget = tolerance, budget
        self.evaluations = self.ascents = self.drawn = 0  # the last: directions, a gradient each

    def least_gain(self, value: float) -> float:
        """Return the gain over a value that is none: within the tolerance, or the rounding."""
        return max(self.tolerance * abs(value), self.noise)

    @property
    def spent(self) -> int:
        """Gradients of the loss so far."""
        cost = self.function
        climbing = self.evaluations * cost.value_cost + self.ascents * cost.ascent_cost
        return climbing + self.drawn

    def land(self, u: Tensor) -> Landing:
        """Evaluate the function at the rows of u [K, P].

        Raises:
            NonFiniteError: it is NaN or infinite there.
        """
        landing = self.function(u)
        self.evaluations += len(u)
        if not bool(landing.values.isfinite().all()):
            raise NonFiniteError(
                f"the loss or its gradient is NaN or infinite within rho = {self.radius:g} of "
                "the checkpoint; choose a smaller rho, or dtype=float64"
            )
        return landing

    def ascents_of(self, landing: Landing) -> Tensor:
        """Return the gradients [K, P] at points that were evaluated."""
        self.ascents += len(landing.values)
        return landing.ascents()

    def blocks(self, climbs: list[Climb]) -> list[list[Climb]]:
        """Return the climbs in the parts that are evaluated at once."""
        size = self.function.rows
        return [climbs[first : first + size] for first in range(0, len(climbs), size)]

    def begin(self, climbs: list[Climb]) -> None:
        """Evaluate the starts."""
        for block in self.blocks(climbs):
            landing = self.land(torch.stack([climb.u for climb in block]))
            ascents = self.ascents_of(landing)
            for row, climb in enumerate(block):
                climb.move(climb.u, float(landing.values[row]), ascents[row], 0.0)
                climb.done = False

    def step(self, block: list[Climb]) -> None:
        """Move each climb to the maximiser of the linearised function, or part of the way.

        For a convex function the whole step never descends; otherwise it is halved until it
        ascends. The segment lies within the ball, so a part of it does too.
        """
        targets = {
            climb: self.function.geometry.maximiser(climb.ascent, self.radius)
            for climb in block
            if bool(climb.ascent.any())
        }
        for climb in block:
            climb.done = climb not in targets
        pending, fraction = list(targets), 1.0
        for _ in range(_HALVINGS):
            if not pending:
                return
            points = torch.stack([torch.lerp(c.u, targets[c], fraction) for c in pending])
            landing = self.land(points)
            better = [row for row, climb in enumerate(pending) if landing.values[row] > climb.value]
            if better:
                ascents = self.ascents_of(landing)
                for row in better:
                    value = float(landing.values[row])
                    pending[row].move(points[row], value, ascents[row], self.least_gain(value))
            pending = [climb for row, climb in enumerate(pending) if row not in set(better)]
            fraction /= 2
        for climb in pending:
            climb.done = True

    def advance(self, climbs: list[Climb], until: int) -> None:
        """Step every climb in turn until all are done or so much is spent."""
        while self.spent < until:
            active = [climb for climb in climbs if not climb.done]
            if not active:
                return
            for block in self.blocks(active):
                if self.spent < until:
                    self.step(block)
