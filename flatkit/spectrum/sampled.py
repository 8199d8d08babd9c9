"""A number from random draws: how far off it may be, and whether more draws are worth it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from flatkit.results.status import Status
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.standard_error import EXACT, WIDENED, next_look


class Sampled(NamedTuple):
    """A mean over random draws.

    Attributes:
        value: the mean, and what was known before.
        error: its standard error.
        rounding: how far the rounding of the products may have moved it, beside that. It does not
            average out.
        matvecs: products.
        by_part: whether the parts of the vector were probed one by one.
        exact: whether products with the unit vectors took the place of random ones.
    """

    value: float
    error: float
    rounding: float
    matvecs: int
    by_part: bool = False
    exact: bool = False

    def target(self, tolerance: float) -> float:
        """Return the standard error with which the tolerance, relative to the value, is met.

        No less than the rounding, below which draws are wasted.

        >>> round(Sampled(10.0, 1.0, rounding=0.03, matvecs=8).target(0.005), 12)
        0.04
        """
        allowed = tolerance * abs(self.value)
        if self.rounding >= allowed:
            return self.rounding
        return max(self.rounding, allowed * math.sqrt(1 - (self.rounding / allowed) ** 2))

    def meets(self, tolerance: float) -> bool:
        """Whether the standard error needs no further draws."""
        return self.error <= self.target(tolerance)

    def share_needed(self, tolerance: float) -> float:
        """Return how many times the draws it takes, the error falling as their root."""
        target = self.target(tolerance)
        return (self.error / target) * (self.error / target) if target > 0 else math.inf

    def next_look(self, draws: int, tolerance: float, most: int) -> int:
        """Return at how many draws the error should be looked at again, there being so many."""
        return next_look(draws, draws * self.share_needed(tolerance), most)

    def to_estimate(
        self, tolerance: float, notes: Mapping[str, Any], *, ended: bool = True
    ) -> Estimate:
        """Return the number as an estimate.

        Args:
            tolerance: on its error, relative to it.
            notes: what is to be said, beside what the error is.
            ended: whether no more draws are wanted; before that the status is `budget`.

        The seconds are 0: whoever makes the draws knows them (`steps.timed`).
        """
        error = math.hypot(self.error, self.rounding)
        status = Status.BUDGET
        if ended and (self.exact or error <= tolerance * abs(self.value)):
            status = Status.CONVERGED
        elif ended and self.error <= max(self.rounding, tolerance * abs(self.value)):
            status = Status.ROUNDING
        return Estimate(
            value=torch.tensor(self.value, dtype=torch.float64),
            error=torch.tensor(error, dtype=torch.float64),
            error_kind="standard_error",
            status=status,
            matvecs=self.matvecs,
            seconds=0.0,
            notes={"error_is": EXACT if self.exact else WIDENED, **notes},
        )
