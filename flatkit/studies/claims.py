"""Verdicts on the claims of a study, by rules that are fixed before the numbers; no torch.

Every claim is about one effect, a number a pair of runs of one seed: the logarithm of the ratio of
a flatness (base over arm), or the difference of the test accuracies (arm minus base). An effect of
0 is none, one of `smallest` is the least that matters. A claim

- **holds** if a one-sided t test over the seeds rejects that the mean effect is at most 0,
- **fails** if one rejects that it is at least `smallest`, and the first does not reject,
- and **cannot be told** otherwise, also where the effects of all seeds are equal: then no
  spread is known, and accuracies on few samples are equal by chance.

Both families of tests are corrected by Holm's method (1979) over all claims of the study at 2.5 % a
side, so that of studies in which no effect exists at most one in forty holds a false claim, and as
few reject a true one. Intervals that are printed beside are of 95 %, each by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

from flatkit.comparison.intervals import holm

Verdict: TypeAlias = Literal["holds", "fails", "cannot tell"]
EffectIs: TypeAlias = Literal["ratio", "difference"]

_SIDE = 0.025
_ALIKE = 1e-7
"""Spread of effects that may be all rounding, of single precision."""
_MOST_SEEDS = 1000


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
        low: of its 95 % interval; None with fewer than two pairs, or with equal effects.
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
        return self.reason.split(";")[0] if self.pairs < 2 else ""

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
    above = holm([_p_above(one.effects, 0.0) for one in tested])
    below = holm([_p_below(one.effects, one.smallest) for one in tested])
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
    mean, reach = fmean(one.effects), _reach(one.effects)
    ends = sorted((_shown(one, mean - reach), _shown(one, mean + reach)))
    found = replace(found, low=ends[0], high=ends[1])
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
    if mean - reach > 0 or mean + reach < one.smallest:
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
    return math.exp(-effect) if one.effect_is == "ratio" else effect


def _p_above(effects: Sequence[float], level: float) -> float:
    """Return the p of the hypothesis that the mean effect is at most `level`."""
    from scipy.special import stdtr

    mean, error = fmean(effects), stdev(effects) / math.sqrt(len(effects))
    if _alike(effects):
        return 1.0
    return float(stdtr(len(effects) - 1, (level - mean) / error))


def _alike(effects: Sequence[float]) -> bool:
    """Whether effects are equal but for rounding: of accuracies on few samples that is chance."""
    return stdev(effects) <= _ALIKE * max(1.0, *map(abs, effects))


def _p_below(effects: Sequence[float], level: float) -> float:
    """Return the p of the hypothesis that the mean effect is at least `level`."""
    return _p_above([-effect for effect in effects], -level)


def _reach(effects: Sequence[float]) -> float:
    from scipy.special import stdtrit

    error = stdev(effects) / math.sqrt(len(effects))
    return error * float(stdtrit(len(effects) - 1, 1 - _SIDE))


def _seeds_needed(one: Asked, family: int) -> int | None:
    """Return how many seeds would tell at this mean and spread, with the family's correction."""
    from scipy.special import stdtrit

    mean, spread = fmean(one.effects), stdev(one.effects)
    distance = max(mean, one.smallest - mean)  # from no effect, or from one that matters
    for count in range(len(one.effects) + 1, _MOST_SEEDS + 1):
        reach = float(stdtrit(count - 1, 1 - _SIDE / family)) * spread / math.sqrt(count)
        if reach < distance:
            return count
    return None
