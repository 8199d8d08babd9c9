"""Verdicts on the claims of a study, by rules that are fixed before the numbers; no torch.

Every claim is about one effect, a number a pair of runs of one seed: the logarithm of the ratio of
a flatness (base over arm), or the difference of the test accuracies (arm minus base). An effect of
0 is none, one of `smallest` is the least that matters. A claim

- **holds** if a one-sided t test rejects that the mean effect is at most 0,
- **fails** if one rejects that it is at least `smallest`, and the first does not reject,
- and **cannot be told** otherwise, also where the effects of all seeds are equal: then no
  spread is known, and accuracies on few samples are equal by chance.

Both count three errors, as `flatkit.comparison.statistics` does: how the effects differ over the
seeds, alone and with those over probes and over samples of the data, in squares with their degrees
of freedom (Satterthwaite, 1946), and what the solver leaves open, by which the mean is moved to its
worst first.

Both families of tests are corrected by Holm's method (1979) over all claims of the study at 2.5 % a
side, so that of studies in which no effect exists at most one in forty holds a false claim, and as
few reject a true one. Intervals that are printed beside are of 95 %, each by itself.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

from flatkit.comparison.intervals import Part, combined, holm
from flatkit.studies.effects import Doubt

Verdict: TypeAlias = Literal["holds", "fails", "cannot tell"]
EffectIs: TypeAlias = Literal["ratio", "difference"]

_SIDE = 0.025
_ALIKE = 1e-7
"""Spread of effects that may be all rounding, of single precision."""
_MOST_SEEDS = 1000
_LARGEST = 700.0
"""Logarithm of what a float holds."""
_WITHIN = "within its measure's errors"


@dataclass(frozen=True)
class Asked:
    """A claim before its verdict.

    Attributes:
        condition: of the trainings; empty if the study has one.
        arm: of which it is claimed.
        against: the arm that it is held against.
        claim: in words, e.g. `flatter: trace tr H`.
        kind: `flatter` or `generalises`.
        effects: a number a pair of runs of one seed, positive in favour of the claim.
        effect_is: `ratio` (then the effects are logarithms of base over arm) or `difference`.
        smallest: the least effect that matters, in the unit of `effects`.
        note: what must be said beside it, e.g. of runs that diverged.
        doubt: what may be wrong with the mean of the effects, beside their spread over the seeds.
    """

    condition: str
    arm: str
    against: str
    claim: str
    kind: Literal["flatter", "generalises"]
    effects: Sequence[float]
    effect_is: EffectIs
    smallest: float
    note: str = ""
    doubt: Doubt = field(default_factory=Doubt)

    @property
    def least(self) -> float:
        """What the mean is at least, as far as the solver knows."""
        return fmean(self.effects) - self.doubt.bias - self.doubt.down

    @property
    def most(self) -> float:
        """What the mean is at most, as far as the solver knows."""
        return fmean(self.effects) - self.doubt.bias + self.doubt.up

    def errors(self, spread: float, seeds: int) -> tuple[Part, Part]:
        """Return the standard error of the mean over so many seeds that differ by a spread.

        Alone, and with the other errors. Few seeds that differ little by chance would hide how
        badly their spread is known behind the better known others, so that both must be exceeded.
        """
        own = Part(spread / math.sqrt(seeds), seeds - 1)
        return own, combined([own, *self.doubt.parts])


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict.

    Attributes:
        condition: as of `Asked`.
        arm: as of `Asked`.
        against: as of `Asked`.
        claim: in words.
        verdict: `holds`, `fails` or `cannot tell`.
        effect: the ratio arm over base, or the difference arm minus base; None without a pair.
        low: of its 95 % interval, with all errors that are known, and of the population where that
            of the samples is; None with fewer than two pairs, with equal effects, or without bound.
        high: of its interval.
        effect_is: `ratio` or `difference`.
        pairs: how many.
        reason: of the verdict.
        seeds_needed: about how many would tell if the effect stays what it is; None if it is told,
            or if no number up to 1,000 would.
    """

    condition: str
    arm: str
    against: str
    claim: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    effect_is: EffectIs
    pairs: int
    reason: str
    seeds_needed: int | None = None

    @property
    def briefly(self) -> str:
        """What told, or what would, in few words."""
        if self.verdict != "cannot tell":
            return self.reason.split(" for ")[0] if self.reason.startswith("p ") else ""
        if self.seeds_needed:
            return f"{self.seeds_needed} seeds would tell"
        short = self.pairs < 2 or self.reason.startswith(_WITHIN)
        return self.reason.split(";")[0] if short else ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dict(vars(self))


def decide(asked: Sequence[Asked]) -> list[Claim]:
    """Return the verdict on every claim of a study.

    >>> effects = [0.9, 1.1, 1.0, 0.8, 1.2]
    >>> claims = decide([
    ...     Asked("", "sam", "sgd", "flatter", "flatter", effects, "ratio", 0.1),
    ...     Asked("", "sam", "sgd", "generalises", "generalises", [0.01], "difference", 0.002),
    ... ])
    >>> [claim.verdict for claim in claims], round(claims[0].effect, 2)
    (['holds', 'cannot tell'], 0.37)
    """
    tested = [one for one in asked if len(one.effects) > 1]
    # Two families, each at 2.5 %: a claim holds by the one, and fails by the other.
    above = holm([_p(one, one.least) for one in tested])
    below = holm([_p(one, one.smallest - one.most) for one in tested])
    corrected = {id(one): p for one, p in zip(tested, zip(above, below, strict=True), strict=True)}
    return [_claim(one, corrected.get(id(one), (1.0, 1.0)), len(tested)) for one in asked]


def both(condition: str, arm: str, claims: Sequence[Claim]) -> Claim:
    """Return the claim that all of some claims hold: flatter, and generalises.

    >>> holding = decide([Asked("", "sam", "sgd", "flatter", "flatter", [1.0, 1.1, 0.9, 1.0],
    ...                         "ratio", 0.1)])
    >>> both("", "sam", holding).verdict
    'holds'
    """
    verdicts = [one.verdict for one in claims]
    verdict: Verdict = "cannot tell"
    if verdicts and all(one == "holds" for one in verdicts):
        verdict = "holds"
    elif "fails" in verdicts:
        verdict = "fails"
    against = [one for one in claims if one.verdict != "holds"]
    reason = "; ".join(f"{one.claim}: {one.verdict}" for one in against) or "each part holds"
    needed = [one.seeds_needed for one in against]
    most = max((n for n in needed if n is not None), default=None)
    return Claim(
        condition,
        arm,
        claims[0].against if claims else "",
        "flatter and generalises",
        verdict,
        None,
        None,
        None,
        "difference",
        min((one.pairs for one in claims), default=0),
        reason,
        most if verdict == "cannot tell" and None not in needed else None,
    )


def _claim(one: Asked, p: tuple[float, float], family: int) -> Claim:
    (above, below), count = p, len(one.effects)
    found = Claim(
        one.condition,
        one.arm,
        one.against,
        one.claim,
        "cannot tell",
        _shown(one, fmean(one.effects)) if count else None,
        None,
        None,
        one.effect_is,
        count,
        "",
    )
    if count < 2:
        words = "no pair of runs of one seed" if count == 0 else "one seed has no spread"
        words = "" if count == 0 and one.note else f"{words}; run more seeds"
        return replace(found, reason=_joined(words, one.note))
    if _alike(one.effects):
        words = f"the effect is the same for all {count} seeds, so that its spread is not known"
        return replace(found, reason=_joined(f"{words}; run more seeds", one.note))
    reach = _reach(one.errors(stdev(one.effects), count), _SIDE)
    low, high = one.least - reach, one.most + reach
    ends = sorted((_shown(one, low), _shown(one, high)))
    # A ratio beyond the float range has no end that a table could show.
    if all(map(math.isfinite, ends)):
        found = replace(found, low=ends[0], high=ends[1])
    # Asked first: an effect that is there but small holds, however little it matters.
    if above <= _SIDE:
        return replace(
            found, verdict="holds", reason=_joined(_p_words(above, "no effect"), one.note)
        )
    if below <= _SIDE:
        least = _shown(one, one.smallest)
        words = f"a {one.effect_is} of {least:.3g}, the least that matters"
        return replace(found, verdict="fails", reason=_joined(_p_words(below, words), one.note))
    needed = _seeds_needed(one, family)
    words = f"about {needed} seeds would tell" if needed else "no number of seeds up to 1,000 would"
    if not needed and _told_without(one, family):
        reason = f"{_WITHIN}; a larger budget or more samples would tell, not more seeds"
    elif low > 0 or high < one.smallest:
        reason = f"not beyond the correction for all claims of the study; {words} at this effect"
    else:
        reason = f"the interval holds no effect and one that matters; {words} at this effect"
    return replace(found, reason=_joined(reason, one.note), seeds_needed=needed)


def _p_words(p: float, rejected: str) -> str:
    return f"p {'< 0.001' if p < 0.001 else f'= {p:.2g}'} for {rejected}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _shown(one: Asked, effect: float) -> float:
    """Return an effect as readers know it: a ratio to the base, or a difference to it."""
    if one.effect_is == "difference":
        return effect
    return math.exp(-effect) if effect > -_LARGEST else math.inf


def _p(one: Asked, beyond: float) -> float:
    """Return how likely a mean so far beyond a level were, if the true one were at it."""
    from scipy.special import stdtr

    if _alike(one.effects):
        return 1.0
    parts = one.errors(stdev(one.effects), len(one.effects))
    # The larger p of the two: both errors must leave no doubt. Beyond 1e12 degrees t is normal.
    return max(float(stdtr(min(freedom, 1e12), -beyond / error)) for error, freedom in parts)


def _alike(effects: Sequence[float]) -> bool:
    """Whether effects are equal but for rounding: of accuracies on few samples that is chance."""
    return stdev(effects) <= _ALIKE * max(1.0, *map(abs, effects))


def _reach(parts: Sequence[Part], side: float) -> float:
    from scipy.special import stdtrit

    return max(p.error * float(stdtrit(min(p.freedom, 1e12), 1 - side)) for p in parts)


def _seeds_needed(one: Asked, family: int) -> int | None:
    """Return how many seeds would tell at this mean and spread, with the family's correction."""
    distance = max(one.least, one.smallest - one.most)  # from no effect, or from one that matters
    spread = stdev(one.effects)

    def tells(count: int) -> bool:
        return _reach(one.errors(spread, count), _SIDE / family) < distance

    counts = range(len(one.effects) + 1, _MOST_SEEDS + 1)
    # More seeds only narrow the error, so that the first that tells is found by halving.
    place = bisect_left(counts, True, key=tells)
    return counts[place] if place < len(counts) else None


def _told_without(one: Asked, family: int) -> bool:
    """Whether some number of seeds would tell, if no measure were wrong."""
    # The bias stays: it moves the mean, and no larger budget takes it away.
    certain = replace(one, doubt=Doubt(bias=one.doubt.bias))
    return bool(_seeds_needed(certain, family))
