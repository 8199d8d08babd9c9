"""Searches in 16 bits: the best point has the value that the same function has in float32."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from flatkit.checks import check_count
from flatkit.flatness.ball import BallMaximum, Search
from flatkit.spectrum.steps import Steps

_GAIN = 0.005
"""Part by which a search must find more, in its own numbers, for a further value in float32."""


def widened(
    steps: Steps[BallMaximum], value: Callable[[Tensor], float] | None
) -> Steps[BallMaximum]:
    """Search as steps do, and yield the highest value in float32 at points that they found.

    So it is a lower bound, whatever 16 bits do to the search: they choose where to look. When there
    is a value is a matter of the search alone, and not of who asks.

    Args:
        steps: of a search in 16 bits.
        value: the function at a displacement δ [P] in float32; None leaves the steps as they are.
    """
    if value is None:
        yield from steps
        return
    best: BallMaximum | None = None
    seen = 0.0
    for ask in steps:
        found = ask()
        # A value in float32 costs a pass: not at each of the many small gains.
        if best is None or found.value > seen + _GAIN * abs(seen):
            seen = found.value
            exact = replace(found, value=value(found.displacement))
            if best is None or exact.value > best.value:
                best = exact
        yield lambda found=found, best=best: replace(
            found,
            value=best.value,
            displacement=best.displacement,
            coordinates=best.coordinates,
            start=best.start,
            stationarity=best.stationarity,
            linear_gap=best.linear_gap,
            ends={},  # values of the search, which are not comparable
        )


def within(search: Search, value: Callable[[Tensor], float] | None, budget: int) -> BallMaximum:
    """Return what a search finds, `widened`, until it has spent a budget of gradients."""
    if value is None:
        return search.within(budget)
    check_count("budget", budget)
    found: BallMaximum | None = None
    for ask in widened(search.steps(), value):
        found = ask()
        if found.gradients >= budget:
            break
    assert found is not None  # the first start always has a value
    return found
