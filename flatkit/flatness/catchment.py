"""How well a ball was searched, by where its independent searches ended.

No search of a maximum proves that there is no higher one. What it found says two things. How often
independent searches led to the same height tells how likely a further one finds more (Good, 1953):
n of them that never exceeded the best leave a chance of at most 1 − 0.05^(1/n), at 95 %, and the
share of heights that were seen once estimates it. And how close to each other the highest ends lie
tells by how much more. Let X₁ ≥ X₂ ≥ ... be the logarithms of the ends, of a distribution that does
not vanish before its upper end. Near it the gaps are those of a Poisson process, and for the gap
from X₁ to the upper end

    P(gap > c (X₁ − X_k)) = (1 + c)^(1 − k),

which is Robson and Whitlock's bound (1964) for k = 2, and c = 1.71 for k = 4 at 5 %.

What a search leaves open adds both up: c (X₁ − X₄), with 1 % in the place of the gap at least, as
ends that close count as one, and twice the chance of more. That part is for maxima that nothing
hints at: a basin of that chance is taken to be e² times as high. `tests/flatness/test_catchment.py`
holds the rule against planted maxima: of two functions the lower is named wrongly in at most 2 % of
the cases, and 1.6 to 4.5 % of those in which one is named, the most where the highest maxima have
the smallest catchments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WITHIN = 0.01
"""Relative difference of two ends that count as one."""
_RISK = 0.05
_GAPS = 4
"""X_k: more ends say more, but fewer lie near the upper end."""
_MOST = 50.0
"""Logarithm of what is no limit any more."""
_UNSEEN = 2.0
"""Logarithm of how much higher a maximum may be that no search hints at."""


@dataclass(frozen=True)
class Catchment:
    """How well a ball was searched.

    Attributes:
        searches: independent ones that came to an end, or led to where another had been.
        near_best: of these, those within 1 % of the best point that is known.
        chance_of_more: of a further search that ends more than 1 % above the best, by Good and
            Turing: the share of heights that were seen once; None without a search.
        chance_at_most: what it is at most, at 95 %.
        leaves_open: by what part of the value the maximum may exceed it; None after fewer than 3.

    >>> found = catchment([1.0, 1.0, 0.998, 0.7], best=1.0)
    >>> found.near_best, found.chance_of_more, round(found.chance_at_most, 3)
    (3, 0.25, 0.527)
    """

    searches: int
    near_best: int
    chance_of_more: float | None
    chance_at_most: float | None
    leaves_open: float | None

    def describe(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "searches": self.searches,
            "near_best": self.near_best,
            "within": WITHIN,
            "chance_of_more": self.chance_of_more,
            "chance_at_most": self.chance_at_most,
            "leaves_open": self.leaves_open,
        }


def catchment(ends: Sequence[float], best: float) -> Catchment:
    """Return how well a ball was searched.

    Args:
        ends: the values at which independent searches ended.
        best: the highest value that is known, which other ways may have found.

    >>> catchment([1.0, 0.9], best=1.0).leaves_open is None
    True
    """
    values = sorted((min(value, best) for value in ends), reverse=True)
    if not values:
        return Catchment(0, 0, None, None, None)
    near = sum(_same(value, best) for value in values)
    at_most = 1 - _RISK ** (1 / len(values))
    once = _seen_once(values) / len(values)
    return Catchment(len(values), near, once, at_most, _open(values, best, at_most))


def _open(values: list[float], best: float, at_most: float) -> float | None:
    """Return what is left open, from ends in falling order."""
    ranked = values if _same(values[0], best) else [best, *values]
    ranked = ranked[:_GAPS]
    if len(values) < _GAPS - 1 or ranked[-1] <= 0:
        return None
    factor = _RISK ** (1 / (1 - len(ranked))) - 1
    gap = max(math.log(ranked[0] / ranked[-1]), math.log1p(WITHIN))
    return math.expm1(min(factor * gap + _UNSEEN * at_most, _MOST))


def _same(value: float, best: float) -> bool:
    return value >= best - WITHIN * abs(best)


def _seen_once(values: Sequence[float]) -> int:
    """Return how many heights, in falling order, were seen by one search alone."""
    sizes: list[int] = []
    top = math.inf
    for value in values:
        if math.isinf(top) or not _same(value, top):
            sizes.append(0)
            top = value
        sizes[-1] += 1
    return sizes.count(1)
