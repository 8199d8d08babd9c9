"""What searches in balls leave open of the maxima that they bound from below."""

from collections.abc import Sequence

from flatkit.measures.catchment import left_open
from flatkit.measures.reading import Reading
from flatkit.results.status import Status

SEARCH_HOLDS = (Status.CONVERGED, Status.BUDGET, Status.INTERRUPTED, Status.KINKS)
"""How a search may have ended whose bound holds, with what it leaves open."""


def left_open_of(readings: Sequence[Reading]) -> float | None:
    """Return what the searches of all runs, taken together, leave open of each.

    Returns:
        By what part of a value the maximum may exceed it; None if that is not known of all.

    >>> left_open_of([Reading("R1", "R1", 1.0, None, "lower_bound", "budget")]) is None
    True
    """
    searched = [r.searched for r in readings if r.searched is not None]
    return left_open(searched) if len(searched) == len(readings) else None
