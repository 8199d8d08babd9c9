"""Flatness at equal training loss: where the loss vanishes, the curvature of a loss does too.

Along a training the loss falls and the curvature with it, so that a network that was trained
longer can look flatter. Runs are held against each other where they passed the same training loss
first, between the two checkpoints around it, along a straight line of logarithms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Curve: TypeAlias = Sequence[tuple[float, T]]
"""Training loss and a number, checkpoint by checkpoint."""

_LEVELS = 3


def at_loss(curve: Curve[T], loss: float, between: Callable[[T, T, float], T]) -> T | None:
    """Return the number where a run first passed a training loss, or None if it never did.

    Args:
        curve: of the run.
        loss: the training loss, positive.
        between: returns what lies between two numbers, so far from the first.

    >>> curve = [(1.0, 8.0), (0.25, 2.0), (0.5, 9.0)]
    >>> at_loss(curve, 0.5, lambda one, other, share: one + share * (other - one))
    5.0
    >>> at_loss(curve, 0.1, lambda one, other, share: one) is None
    True
    """
    # A loss of 0 has no logarithm, along which the line is drawn.
    positive = [point for point in curve if point[0] > 0]
    for (before, first), (after, second) in pairwise(positive):
        # The first time that it came down through this
        # loss: later ones, after a rise, are another phase.
        if after <= loss <= before and after < before:
            return between(first, second, math.log(before / loss) / math.log(before / after))
    return None


def common_losses(curves: Mapping[str, Curve[Any]], levels: int = _LEVELS) -> list[float]:
    """Return losses that all runs passed, from the largest to the smallest, evenly in logarithms.

    Args:
        curves: by run.
        levels: how many.

    Returns:
        None of them, if there is no loss that all passed.

    >>> curves = {"sgd": [(2.0, 5.0), (0.1, 1.0)], "gam": [(1.6, 5.0), (0.4, 1.0)]}
    >>> [round(loss, 3) for loss in common_losses(curves)]
    [1.6, 0.8, 0.4]
    """
    losses = [[loss for loss, _ in curve if loss > 0] for curve in curves.values()]
    if not losses or not all(losses):
        return []
    # What all runs have passed lies below the lowest start and above the highest end.
    high, low = min(max(own) for own in losses), max(min(own) for own in losses)
    if low >= high:
        return []
    step = math.log(high / low) / (levels - 1)
    between = [low * math.exp(step * (levels - 1 - number)) for number in range(1, levels - 1)]
    return [high, *between, low]  # the ends without rounding, or a run did not pass them


def laggards(curves: Mapping[str, Curve[Any]], loss: float) -> list[str]:
    """Return the runs that never came down to a training loss.

    >>> laggards({"sgd": [(2.0, 5.0), (0.1, 1.0)], "gam": [(1.6, 5.0), (0.4, 1.0)]}, 0.2)
    ['gam']
    """
    return [name for name, curve in curves.items() if min(own for own, _ in curve) > loss]
