"""A trace by random signs on the whole vector, or on one layer at a time where that pays."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatkit.spectrum.dot import dot_in_double
from flatkit.spectrum.hutchinson import random_signs
from flatkit.spectrum.operators import SymmetricOperator, finite_product

MIN_PROBES = 8  # probes of the whole vector before their standard error is trusted
# Probes of every part before theirs are, at least 4; parts of no more coordinates are exact.
_MIN_EACH = 5
# Probes of every part before the standard error of the sum is; at most twice the others.
_SETTLED = 10


class StratifiedProbes:
    """Values zᵀAz of random signs z, on all coordinates together or on one part of them.

    The trace is the sum of the traces of the diagonal blocks, of any partition of the coordinates.
    A probe of one part sees its block alone, so that the blocks beside the diagonal add nothing to
    the variance. Where these are large, as in networks whose curvature couples layers more than it
    acts within them, that outweighs a product for every part. With n draws of the variance s² a
    part, the variance of the sum is Σ s²/n; draws go where they lower it most (Neyman, 1934).
    With few draws, s²/n is multiplied by (n - 1)/(n - 3), the variance of Student's t.

    Args:
        operator: A, symmetric.
        parts: sizes of the parts, adding up to P.
        generator: draws the signs.

    Attributes:
        products: how many were made.
    """

    def __init__(
        self, operator: SymmetricOperator, parts: Sequence[int], generator: torch.Generator
    ) -> None:
        self._operator, self._generator = operator, generator
        ends = list(accumulate(parts))
        self._parts = [range(end - size, end) for end, size in zip(ends, parts, strict=True)]
        self._whole: list[float] = []
        self._own: list[list[float]] = [[] for _ in parts]
        self.products = 0

    def draw(self) -> None:
        """Probe all coordinates together. Cost: a product."""
        probe = random_signs(self._operator, self._generator)
        self._whole.append(dot_in_double(probe, self._multiply(probe)))

    def draw_part(self, number: int) -> None:
        """Probe one part. Cost: a product."""
        probe = self._on_part(random_signs(self._operator, self._generator), number)
        self._own[number].append(dot_in_double(probe, self._multiply(probe)))

    def draw_each(self) -> None:
        """Probe every part, which is a probe of all of them too. Cost: a product a part."""
        probe, total = random_signs(self._operator, self._generator), 0.0
        for number, own in enumerate(self._own):
            piece = self._on_part(probe, number)
            product = self._multiply(piece)
            own.append(dot_in_double(piece, product))
            total += dot_in_double(probe, product)
        self._whole.append(total)

    def settle(self) -> None:
        """Make sure of every part: the smallest exactly, `_SETTLED` probes of all others.

        Where a pair of coordinates decides, a probe gives one of two values: a few draws may all
        be the same, which is no sign of how far they are off. Cost: as much as the trial at most.
        """
        for number, part in enumerate(self._parts):
            if len(part) <= _MIN_EACH:  # draws without a spread
                self._own[number] = [self._exact_part(number)] * _SETTLED
            while len(self._own[number]) < _SETTLED:
                self.draw_part(number)

    def draw_best(self) -> None:
        """Probe the part whose next draw lowers the variance of the sum most. Cost: a product."""
        gains = [_variance(own) / (len(own) + 1) for own in self._own]
        self.draw_part(gains.index(max(gains)))

    def pooled(self) -> tuple[float, float]:
        """Return the trace and its standard error from probes of all coordinates."""
        return _mean(self._whole), math.sqrt(_variance(self._whole))

    def by_part(self) -> tuple[float, float]:
        """Return the trace and its standard error from probes of the parts."""
        return sum(map(_mean, self._own)), math.sqrt(sum(map(_variance, self._own)))

    def needed_pooled(self, error: float) -> float:
        """Return how many products in all would bring the first standard error down to this."""
        return len(self._whole) * _squared_ratio(self.pooled()[1], error)

    def needed_by_part(self, error: float) -> float:
        """Return the same for the second, draws being where they lower it most."""
        spread = sum(math.sqrt(_variance(own) * len(own)) for own in self._own)
        return _squared_ratio(spread, error)

    def _exact_part(self, number: int) -> float:
        """Return the trace of the block of a part. Cost: a product a coordinate."""
        operator, total = self._operator, 0.0
        for place in self._parts[number]:
            unit = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
            unit[place] = 1
            total += float(self._multiply(unit)[place])
        return total

    def _on_part(self, probe: Tensor, number: int) -> Tensor:
        part = slice(self._parts[number].start, self._parts[number].stop)
        piece = torch.zeros_like(probe)
        piece[part] = probe[part]
        return piece

    def _multiply(self, vector: Tensor) -> Tensor:
        self.products += 1
        return finite_product(self._operator, vector)


class ProbedTrace(NamedTuple):
    """A trace from random probes.

    Attributes:
        value: the trace, and what was known before.
        error: its standard error.
        matvecs: products.
        by_part: whether the parts were probed one by one.
    """

    value: float
    error: float
    matvecs: int
    by_part: bool


def probed_trace(
    operator: SymmetricOperator,
    *,
    parts: Sequence[int],
    known: float = 0.0,
    tolerance: float,
    budget: int,
    generator: torch.Generator,
) -> ProbedTrace:
    """Return known + tr A from probes of all coordinates, or of parts where that is cheaper.

    Probes of the whole vector come first. Where they would need more than twice what it takes to
    try the parts, these are tried, and the cheaper of the two goes on.

    Args:
        operator: A, symmetric.
        parts: sizes of the parts, adding up to P.
        known: a number to which the trace is added, exact.
        tolerance: on the standard error, relative to the sum.
        budget: products at most.
        generator: draws the probes.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0])))
    >>> given = {"tolerance": 0.01, "budget": 50, "generator": torch.Generator()}
    >>> probed_trace(operator, parts=[1, 1], known=2.0, **given)
    ProbedTrace(value=6.0, error=0.0, matvecs=8, by_part=False)
    """
    probes = StratifiedProbes(operator, parts, generator)
    trial, tried = _MIN_EACH * len(parts), len(parts) < 2
    while True:
        probes.draw()
        value, error = probes.pooled()
        allowed = tolerance * abs(known + value)
        settled = probes.products >= MIN_PROBES
        if (settled and error <= allowed) or probes.products >= budget:
            return ProbedTrace(known + value, error, probes.products, by_part=False)
        if tried or not settled:
            continue
        left = min(budget, probes.needed_pooled(allowed)) - probes.products
        if left > 2 * trial:
            tried = True
            for _ in range(_MIN_EACH):
                probes.draw_each()
            allowed = tolerance * abs(known + probes.by_part()[0])
            if probes.needed_by_part(allowed) < probes.needed_pooled(allowed):
                probes.settle()
                break
    while True:
        value, error = probes.by_part()
        if error <= tolerance * abs(known + value) or probes.products >= budget:
            return ProbedTrace(known + value, error, probes.products, by_part=True)
        probes.draw_best()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """Return the variance of the mean of draws."""
    count = len(values)
    if count < 4:
        return math.inf
    return float(np.var(values, ddof=1)) / count * (count - 1) / (count - 3)


def _squared_ratio(one: float, other: float) -> float:
    return (one / other) ** 2 if other > 0 else math.inf
