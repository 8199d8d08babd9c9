"""What a study asks of its numbers: each claim with its effects, and what may be wrong there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from flatkit.comparison.readings import compared
from flatkit.comparison.searches import left_open_of
from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.status import in_words
from flatkit.studies.claims import Asked
from flatkit.studies.effects import Point, between, doubt, holds, logarithm, scaled
from flatkit.studies.matched import Curve, at_loss, common_losses, laggards
from flatkit.studies.settings import Study

_ACCURACY, _LOSS = "test_accuracy", "train_loss"
_LOWER = 0.9
"""Share of a training loss below which a run went on further."""
_Readings: TypeAlias = Mapping[str, Mapping[str, Reading]]


@dataclass(frozen=True)
class _Measured:
    """The runs of a condition.

    Attributes:
        entries: of the comparison.
        readings: run -> key -> reading.
        left_open: key -> by what part maxima over balls may exceed what the searches found.
    """

    entries: Sequence[Entry]
    readings: _Readings
    left_open: Mapping[str, float | None]

    @classmethod
    def of(cls, comparison: Comparison) -> "_Measured":
        readings = {entry.name: compared(entry.report) for entry in comparison.entries}
        keys = dict.fromkeys(key for own in readings.values() for key in own)
        searched = {key: [own[key] for own in readings.values() if key in own] for key in keys}
        left = {key: left_open_of(found) for key, found in searched.items()}
        return cls(comparison.entries, readings, left)

    def unusable(self, key: str, entries: Sequence[Entry]) -> str:
        """Say why a number of some runs says nothing; empty where all do."""
        for entry in entries:
            one = self.readings[entry.name][key]
            # A trace or a lowest eigenvalue may be negative, and ratios of such say nothing.
            if not 0 < one.value < math.inf:
                return "no ratio, as a value is not positive and finite"
            if not holds(one, self.left_open[key]):
                return f"it did not converge in {entry.name} ({in_words(one.status)})"
        return ""

    def logarithm(self, key: str, entry: Entry) -> Point:
        return logarithm(self.readings[entry.name][key], self.left_open[key])


def questions(
    study: Study,
    condition: str,
    comparison: Comparison,
    along: Comparison | None,
    diverged: Mapping[str, str],
) -> list[Asked]:
    """Return what is claimed in a condition: of each arm against the base and the controls.

    Args:
        study: what is asked.
        condition: its name.
        comparison: of the last checkpoints.
        along: of those that were kept on the way.
        diverged: run -> why.
    """
    last, asked = _Measured.of(comparison), list[Asked]()
    for pair in _pairs_of_arms(study):
        asked += _at_the_end(study, condition, last, pair, diverged)
    if along is not None:
        way = _Measured.of(along)
        for pair in _pairs_of_arms(study):
            asked += _at_losses(study, condition, way, pair)
    return asked


def _pairs_of_arms(study: Study) -> Iterator[tuple[str, str]]:
    """Yield arm and what it is held against: the base, then the controls."""
    for arm in study.claimants:
        yield arm, study.base
        # Each arm once, also where it is the control of two kinds.
        for control in dict.fromkeys(study.controls.values()):
            if control != arm:
                yield arm, control


def _at_the_end(
    study: Study,
    condition: str,
    measured: _Measured,
    pair: tuple[str, str],
    diverged: Mapping[str, str],
) -> list[Asked]:
    pairs = _pairs(measured.entries, *pair)
    own = [entry for both in pairs for entry in both]
    shared = _in_all([measured.readings[entry.name] for entry in own])
    gone = [name for name in diverged if name.rpartition(", seed")[0] in pair]
    # Said beside every claim: runs that diverged are missing on one side alone.
    note = f"diverged: {', '.join(gone)}" if gone else ""
    found: list[Asked] = []
    for key, reading in _flatness(shared).items():
        why = "; ".join(part for part in (measured.unusable(key, own), note) if part)
        effects = [
            measured.logarithm(key, other).minus(measured.logarithm(key, one))
            for one, other in (pairs if why == note else ())
        ]
        found.append(_flatter(study, condition, pair, reading.title, effects, why))
    if _ACCURACY in shared or not pairs:
        gains = [
            scaled(measured.readings[one.name][_ACCURACY], 0.01).minus(
                scaled(measured.readings[other.name][_ACCURACY], 0.01)
            )
            for one, other in pairs
        ]
        found.append(
            Asked(
                condition,
                *pair,
                "generalises better: test accuracy",
                "generalises",
                [gain.value for gain in gains],
                "difference",
                study.smallest_gain,
                note,
                doubt(gains),
            )
        )
    return found


def _flatter(
    study: Study,
    condition: str,
    pair: tuple[str, str],
    what: str,
    effects: Sequence[Point],
    note: str,
) -> Asked:
    return Asked(
        condition,
        *pair,
        f"flatter: {what}",
        "flatter",
        [effect.value for effect in effects],
        "ratio",
        -math.log(study.smallest_ratio),
        note,
        doubt(effects),
    )


def _at_losses(
    study: Study, condition: str, measured: _Measured, pair: tuple[str, str]
) -> list[Asked]:
    """Ask for the flatness at training losses that the runs of both arms passed."""
    arm, against = pair
    own = [entry for entry in measured.entries if entry.group in pair]
    shared = _in_all([measured.readings[entry.name] for entry in own])
    found: list[Asked] = []
    for key, reading in _flatness(shared).items():
        curves = _curves(own, measured, key)
        names = {f"{group}, seed {seed}": curve for (group, seed), curve in curves.items()}
        seeds = [seed for group, seed in curves if group == arm and (against, seed) in curves]
        levels = common_losses(names)
        if not levels:
            where = f"{reading.title} at training loss of both"
            note = measured.unusable(key, own) or "no training loss that all runs passed"
            found.append(_flatter(study, condition, pair, where, [], note))
        for loss in levels[1:]:  # at the largest the first checkpoints stand
            values = [
                (at_loss(curves[arm, s], loss, between), at_loss(curves[against, s], loss, between))
                for s in seeds
            ]
            effects = [other.minus(one) for one, other in values if one and other]
            note = _slower(pair, names, loss) if loss == levels[-1] else ""
            where = f"{reading.title} at training loss {loss:.3g}"
            found.append(_flatter(study, condition, pair, where, effects, note))
    return found


def _slower(pair: tuple[str, str], curves: Mapping[str, Curve[Point]], loss: float) -> str:
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
    entries: Sequence[Entry], measured: _Measured, key: str
) -> dict[tuple[str, str], Curve[Point]]:
    """Return for each arm and seed the training loss and a logarithm, epoch by epoch.

    What has no logarithm, or does not hold, is left out.
    """
    points: dict[tuple[str, str], list[tuple[float, float, Point]]] = {}
    for entry in entries:
        own = points.setdefault((entry.group, entry.seed), [])
        loss = measured.readings[entry.name][_LOSS].value
        if loss > 0 and not measured.unusable(key, [entry]):
            own.append((entry.epoch or 0.0, loss, measured.logarithm(key, entry)))
    ordered = {run: sorted(own, key=lambda point: point[0]) for run, own in points.items()}
    return {run: [(loss, point) for _, loss, point in own] for run, own in ordered.items()}


def _pairs(entries: Sequence[Entry], arm: str, against: str) -> list[tuple[Entry, Entry]]:
    others = {entry.seed: entry for entry in entries if entry.group == against}
    own = [entry for entry in entries if entry.group == arm]
    return [(entry, others[entry.seed]) for entry in own if entry.seed in others]


def _in_all(runs: Sequence[Mapping[str, Reading]]) -> dict[str, Reading]:
    first = runs[0] if runs else {}
    return {key: one for key, one in first.items() if all(key in run for run in runs)}


def _flatness(readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """Return the measures of flatness, those in a ball of the largest radius alone."""
    own = {key: one for key, one in readings.items() if one.role == "flatness"}
    # One radius a measure, or a study would ask three times what is nearly one question.
    largest: dict[str, float] = {}
    for one in own.values():
        if one.rho is not None:
            largest[one.measure] = max(one.rho, largest.get(one.measure, 0.0))
    return {key: r for key, r in own.items() if r.rho is None or r.rho == largest[r.measure]}
