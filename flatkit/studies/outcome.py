"""What came out of a study: comparisons, choices, claims; in JSON and out, no torch."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from flatkit.comparison.readings import compared
from flatkit.files.atomic import write_text_atomically
from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison, Entry
from flatkit.studies.claims import Asked, Claim, both, decide
from flatkit.studies.matched import Curve, at_loss, common_losses, laggards
from flatkit.studies.settings import Study

_ACCURACY, _LOSS = "test_accuracy", "train_loss"
_LOWER = 0.9
"""Share of a training loss below which a run went on further."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a study.

    Attributes:
        study: its settings.
        comparisons: by condition; groups are arms, runs are seeds.
        along: by condition; groups are arms, runs are seeds and epochs.
        claims: with their verdicts.
        choices: condition -> arm -> the values that the validation split chose.
        diverged: condition -> run -> why.
        gradients: condition -> arm -> gradients of batches, mean over the seeds.
    """

    study: Study
    comparisons: Mapping[str, Comparison]
    along: Mapping[str, Comparison]
    claims: Sequence[Claim]
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    diverged: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gradients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what it says as plain data, without the reports."""
        return {
            "study": self.study.to_dict(),
            "claims": [claim.to_dict() for claim in self.claims],
            "choices": self.choices,
            "diverged": self.diverged,
            "gradients": self.gradients,
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write `claims.json` and a comparison for each condition into a folder."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        written = [write_text_atomically(Path(folder) / "claims.json", text)]
        for condition, comparison in self.comparisons.items():
            written.append(comparison.save(Path(folder) / condition / "report.json"))
        for condition, comparison in self.along.items():
            written.append(comparison.save(Path(folder) / condition / "along.json"))
        return written


def judged(
    study: Study,
    comparisons: Mapping[str, Comparison],
    along: Mapping[str, Comparison],
    diverged: Mapping[str, Mapping[str, str]],
) -> list[Claim]:
    """Return the verdict on every claim: each arm against the base and the controls.

    Args:
        study: what is asked.
        comparisons: by condition.
        along: by condition; measured on the way.
        diverged: condition -> run -> why.
    """
    asked: list[Asked] = []
    for condition, comparison in comparisons.items():
        lost = diverged.get(condition, {})
        for arm, against in _questions(study):
            asked += _asked(study, condition, comparison, (arm, against), lost)
        if condition in along:
            for arm, against in _questions(study):
                asked += _asked_at_loss(study, condition, along[condition], (arm, against))
    decided = decide(asked)
    claims = [*decided]
    for condition in comparisons:
        for arm in study.claimants:
            own = [
                claim
                for claim, one in zip(decided, asked, strict=True)
                if (one.condition, one.arm, one.against) == (condition, arm, study.base)
                and " at training loss " not in one.claim
            ]
            claims.append(both(condition, arm, own))
    return claims


def _questions(study: Study) -> Iterator[tuple[str, str]]:
    """Yield arm and what it is held against: the base, then the controls."""
    for arm in study.claimants:
        yield arm, study.base
        for control in dict.fromkeys(study.controls.values()):
            if control != arm:
                yield arm, control


def _asked(
    study: Study,
    condition: str,
    comparison: Comparison,
    pair: tuple[str, str],
    lost: Mapping[str, str],
) -> list[Asked]:
    arm, against = pair
    pairs = _pairs(comparison, arm, against)
    numbers = [(compared(one.report), compared(other.report)) for one, other in pairs]
    shared = _in_all([readings for both in numbers for readings in both])
    gone = [name for name in lost if name.rpartition(", seed")[0] in pair]
    note = f"diverged: {', '.join(gone)}" if gone else ""
    found: list[Asked] = []
    for key, reading in _flatness(shared).items():
        values = [(one[key].value, other[key].value) for one, other in numbers]
        claim, why = f"flatter: {reading.title}", note
        least, ratios = -math.log(study.smallest_ratio), list[float]()
        if all(0 < value < math.inf for both in values for value in both):
            ratios = [_log_ratio(*both) for both in values]
        else:
            why = "no ratio, as a value is not positive and finite" + (f"; {note}" if note else "")
        found.append(Asked(condition, arm, against, claim, "flatter", ratios, "ratio", least, why))
    if _ACCURACY in shared or not numbers:
        gains = [(one[_ACCURACY].value - other[_ACCURACY].value) / 100 for one, other in numbers]
        claim = "generalises better: test accuracy"
        least = study.smallest_gain
        found.append(
            Asked(condition, arm, against, claim, "generalises", gains, "difference", least, note)
        )
    return found


def _asked_at_loss(
    study: Study, condition: str, along: Comparison, pair: tuple[str, str]
) -> list[Asked]:
    """Ask for the flatness at training losses that the runs of both arms passed."""
    arm, against = pair
    own = [entry for entry in along.entries if entry.group in pair]
    readings = {entry.name: compared(entry.report) for entry in own}
    found: list[Asked] = []
    for key, reading in _flatness(_in_all(list(readings.values()))).items():
        curves = _curves(own, readings, key)
        names = {f"{group}, seed {seed}": curve for (group, seed), curve in curves.items()}
        seeds = [seed for group, seed in curves if group == arm and (against, seed) in curves]
        levels = common_losses(names)
        if not levels:
            claim = f"flatter: {reading.title} at training loss of both"
            note = "no training loss that all runs passed"
            least = -math.log(study.smallest_ratio)
            found.append(Asked(condition, arm, against, claim, "flatter", [], "ratio", least, note))
        for loss in levels[1:]:  # at the largest the first checkpoints stand
            values = [
                (at_loss(curves[arm, s], loss), at_loss(curves[against, s], loss)) for s in seeds
            ]
            ratios = [_log_ratio(one, other) for one, other in values if one and other]
            note = _slower(pair, names, loss) if loss == levels[-1] else ""
            claim = f"flatter: {reading.title} at training loss {loss:.3g}"
            least = -math.log(study.smallest_ratio)
            found.append(
                Asked(condition, arm, against, claim, "flatter", ratios, "ratio", least, note)
            )
    return found


def _slower(pair: tuple[str, str], curves: Mapping[str, Curve], loss: float) -> str:
    """Say which of two arms never came further down, where the other one did."""
    for arm, other in (pair, pair[::-1]):
        own = {name: curve for name, curve in curves.items() if name.startswith(f"{arm}, seed ")}
        rest = {name: curve for name, curve in curves.items() if name not in own}
        slow, ends = laggards(own, _LOWER * loss), [min(x for x, _ in c) for c in rest.values()]
        if slow and rest and not laggards(rest, _LOWER * loss):
            several = f"{len(slow)} of {len(own)} runs of {arm}"
            return f"{several} never came lower, {other} ends at {fmean(ends):.2g}"
    return ""


def _curves(
    entries: Sequence[Entry], readings: Mapping[str, Mapping[str, Reading]], key: str
) -> dict[tuple[str, str], Curve]:
    """Return for each arm and seed the training loss and a number, epoch by epoch."""
    points: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for entry in entries:
        own = readings[entry.name]
        point = (entry.epoch or 0.0, own[_LOSS].value, own[key].value)
        points.setdefault((entry.group, entry.seed), []).append(point)
    return {run: [point[1:] for point in sorted(own)] for run, own in points.items()}


def _pairs(comparison: Comparison, arm: str, against: str) -> list[tuple[Entry, Entry]]:
    others = {entry.seed: entry for entry in comparison.in_group(against)}
    own = comparison.in_group(arm)
    return [(entry, others[entry.seed]) for entry in own if entry.seed in others]


def _in_all(runs: Sequence[Mapping[str, Reading]]) -> dict[str, Reading]:
    first = runs[0] if runs else {}
    return {key: one for key, one in first.items() if all(key in run for run in runs)}


def _flatness(readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """Return the measures of flatness, those in a ball of the largest radius alone."""
    own = {key: one for key, one in readings.items() if one.role == "flatness"}
    largest: dict[str, float] = {}
    for one in own.values():
        if one.rho is not None:
            largest[one.measure] = max(one.rho, largest.get(one.measure, 0.0))
    return {key: r for key, r in own.items() if r.rho is None or r.rho == largest[r.measure]}


def _log_ratio(one: float, other: float) -> float:
    """Return how much flatter the first of two positive numbers is, as a logarithm."""
    return math.log(other) - math.log(one)
