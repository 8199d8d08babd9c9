"""How well balls were searched, by where their independent searches ended.

No search of a maximum proves that there is no higher one. What it found says two things. How often
independent searches led to the same height tells how likely a further one finds more (Good, 1953):
n of them that never exceeded the best leave a chance of at most 1 − 0.05^(1/n), at 95 %, and the
share of heights that were seen once estimates it. And how close to each other the highest ends lie
tells by how much more. Let X₁ ≥ X₂ ≥ ... be the logarithms of the ends, of a distribution that does
not vanish before its upper end. Near it the gaps are those of a Poisson process: X₁ − X_k is a sum
of k − 1 of them, the sum S of such of several balls is of K = Σ (k − 1), and of the gap from an X₁
to its upper end

    P(gap > c S) = (1 + c)^(−K),

which is Robson and Whitlock's bound (1964) for K = 1, and c = 1.71 for one ball with k = 4 at 5 %.

What searches leave open adds both up: c S, with 1 % in the place of each X₁ − X_k at least, as ends
that close count as one, and twice the chance of more. That part is for maxima that nothing hints
at: a basin of that chance is taken to be e² times as high. Balls of one radius of the runs that are
compared count together, as if their maxima were caught alike; one ball with its 150 gradients has
two or three independent searches, which alone would say nothing.

`tests/measures/test_catchment.py` holds the rule against planted maxima: of two functions, or
groups of three, the lower is named wrongly in at most 4 % of the cases, the most where the highest
maxima have the smallest catchments, or few maxima catch most.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WITHIN = 0.01
"""Relative difference of two ends that count as one."""
_RISK = 0.05
_ENDS = 4
"""X_k: more ends say more, but fewer lie near the upper end."""
_UNSEEN = 2.0
"""Logarithm of how much higher a maximum may be that no search hints at."""
_MOST = 50.0
"""Logarithm of what is no limit any more."""


@dataclass(frozen=True)
class Catchment:
    """How well a ball was searched.

    Attributes:
        searches: independent ones that came to an end, or led to where another had been.
        near_best: of these, those within `within` of the best point that is known.
        within: 1 %.
        chance_of_more: of a further search that ends more than 1 % above the best, by Good and
            Turing: the share of heights that were seen once; None without a search.
        chance_at_most: what it is at most, at 95 %.
        gap: the logarithm of the best over the fourth of the ends, or the last; None of one.
        gaps: of how many single gaps that is the sum.

    >>> found = Catchment.of([1.0, 1.0, 0.998, 0.7], best=1.0)
    >>> found.near_best, found.chance_of_more, round(found.chance_at_most, 3), found.gaps
    (3, 0.25, 0.527, 3)
    """

    searches: int
    near_best: int
    within: float = WITHIN
    chance_of_more: float | None = None
    chance_at_most: float | None = None
    gap: float | None = None
    gaps: int = 0

    @classmethod
    def of(cls, ends: Sequence[float], best: float) -> "Catchment":
        """Return how well a ball was searched.

        Args:
            ends: the values at which independent searches ended.
            best: the highest value that is known, which other ways may have found.
        """
        # An end is above the best that is known by another rounding alone.
        values = sorted((min(value, best) for value in ends), reverse=True)
        if not values:
            return cls(0, 0)
        # Where another way found the best, no independent search ended there: it leads the ranking.
        ranked = values if _same(values[0], best) else [best, *values]
        ranked = ranked[:_ENDS]
        # Logarithms of a decrease, or of nothing, do not exist.
        several = len(ranked) > 1 and ranked[-1] > 0
        return cls(
            searches=len(values),
            near_best=sum(_same(value, best) for value in values),
            chance_of_more=_seen_once(values) / len(values),
            chance_at_most=_chance(len(values)),
            gap=math.log(ranked[0] / ranked[-1]) if several else None,
            gaps=len(ranked) - 1 if several else 0,
        )

    @classmethod
    def read(cls, data: Any) -> "Catchment | None":
        """Return what a result says of it, if that is one."""
        if not isinstance(data, Mapping) or not {"searches", "near_best"} <= set(data):
            return None
        return cls(**{key: data[key] for key in asdict(cls(0, 0)) if key in data})

    def describe(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def left_open(searched: Iterable[Catchment]) -> float | None:
    """Return by what part of a value the maximum over its ball may exceed it.

    Args:
        searched: the balls of one kind, whose searches count together.

    Returns:
        The part; None where no ball has two ends to compare.

    >>> one = Catchment.of([1.0, 0.95, 0.9, 0.9], best=1.0)
    >>> round(left_open([one]), 2), round(left_open([one] * 5), 2)
    (2.44, 0.48)
    """
    known = list(searched)
    gaps, searches = sum(one.gaps for one in known), sum(one.searches for one in known)
    if gaps == 0:
        return None
    # Ends that count as one are at least that far apart: else two of them would leave nothing open.
    least = math.log1p(WITHIN)
    total = math.fsum(max(one.gap, least) for one in known if one.gap is not None)
    # c of P(gap > c S) = (1 + c)^(−K) = 5 %.
    factor = _RISK ** (-1 / gaps) - 1
    return math.expm1(min(factor * total + _UNSEEN * _chance(searches), _MOST))


def _chance(searches: int) -> float:
    """Return how likely a further search exceeds the best of some, at most at 95 %."""
    return 1 - _RISK ** (1 / searches)


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
