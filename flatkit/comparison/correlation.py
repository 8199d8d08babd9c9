"""Whether flat networks generalise, over the runs at hand: rank correlations.

Kendall's τ (τ_b, which counts ties) over all runs may come from one setting that moves both
quantities. Granulated (Jiang et al., Fantastic Generalization Measures, 2020, eq. 5 to 8): τ among
runs that differ in one setting alone, averaged over all such sets of a setting, then over settings.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison, Entry

ENOUGH_RUNS = 8
"""With fewer, the interval covers nearly all that is possible."""
# Of three runs, most samples drawn with repetition hold two of them or one.
_LEAST_RUNS = 4
_RESAMPLED = 2000
_FEWEST_RESAMPLED, _PAIRS_RESAMPLED = 300, 8_000_000
"""Of many runs fewer samples are drawn, at least so many, and so many pairs in all."""
_NO_SETTINGS = ("seed", "device", "log", "evaluate_every", "save_every", "deterministic", "out")
"""Of a training, what does not shape the network, and the seed, which is an axis of its own."""
_TARGETS = ("loss_gap", "accuracy_gap", "test_accuracy", "test_loss")
_ROUNDED = "rounding["
"""What the keys of losses after rounding begin with, which flatness should predict as well."""
_AXES = {"lr": "learning rate", "ema": "weight average"}
_NAMED = 4
"""Settings that a title names."""
_AT_ONCE = 2_000_000
"""Pairs of runs whose order is held in memory at once."""


@dataclass(frozen=True)
class Correlation:
    """Kendall's τ of a measure of flatness with what it should predict, over the runs.

    Attributes:
        key: of the two quantities, e.g. `trace ~ loss_gap`; ends in `, granulated` if it is.
        title: for readers.
        tau: 1 where the sharper of two runs is always the worse one.
        low: of its 95 % interval, by resampling the runs; None if these are too few.
        high: of its interval.
        runs: how many.
        warning: why to mistrust it; empty if there is no reason.
    """

    key: str
    title: str
    tau: float
    low: float | None
    high: float | None
    runs: int
    warning: str = ""


def correlations(
    comparison: Comparison, runs: Mapping[str, Mapping[str, Reading]]
) -> list[Correlation]:
    """Return the correlations of each measure of flatness that all runs have.

    Args:
        comparison: the runs.
        runs: name -> key -> what is compared.

    >>> values = zip("abcd", [1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.2, 0.4])
    >>> known = {
    ...     name: {
    ...         "trace": Reading("trace", "trace", sharp, 0.1, "standard_error", "converged",
    ...                          role="flatness", better="lower"),
    ...         "loss_gap": Reading("loss_gap", "gap", gap, 0.0, "exact", "converged",
    ...                             role="fit", better="lower"),
    ...     }
    ...     for name, sharp, gap in values
    ... }
    >>> from flatkit.results.report import Report
    >>> entries = [Entry(name, name, Report([])) for name in known]
    >>> round(correlations(Comparison(entries), known)[0].tau, 3)
    0.667
    """
    shared = set[str].intersection(*(set(run) for run in runs.values()))
    first = next(iter(runs.values()))
    flat = [key for key in first if key in shared and first[key].role == "flatness"]
    rounded = [key for key in first if key in shared and key.startswith(_ROUNDED)]
    targets = [*(key for key in _TARGETS if key in shared), *rounded]
    axes = _axes(comparison.entries)
    found: list[Correlation] = []
    for key, target in product(flat, targets):
        values = [_badness([run[name] for run in runs.values()]) for name in (key, target)]
        title = f"{first[key].title} with {first[target].title}"
        plain = _plain(f"{key} ~ {target}", title, *values)
        if plain is not None:
            found += [plain, *_granulated(plain, axes, *values)]
    return found


def kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Kendall's τ_b; None where all values of one are equal.

    >>> kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    0.3333333333333333
    """
    found = float(rank_correlations(np.asarray([one]), np.asarray([other]))[0])
    return None if np.isnan(found) else found


def _badness(readings: Sequence[Reading]) -> list[float]:
    """Return values that grow with what is sharp, or bad."""
    sign = -1.0 if readings[0].better == "higher" else 1.0
    return [sign * reading.value for reading in readings]


def _plain(key: str, title: str, one: list[float], other: list[float]) -> Correlation | None:
    tau, runs = kendall(one, other), len(one)
    if tau is None:
        return None
    # Each sample compares all pairs of runs, so that the work grows with their square.
    times = max(_FEWEST_RESAMPLED, min(_RESAMPLED, _PAIRS_RESAMPLED // runs**2))
    # A fixed seed: the same runs have the same interval each time.
    draws = np.random.default_rng(0).integers(runs, size=(times, runs))
    taus = rank_correlations(np.asarray(one)[draws], np.asarray(other)[draws])
    low, high = _interval(taus) if runs >= _LEAST_RUNS else (None, None)
    few = f"{runs} runs say little of a correlation, {ENOUGH_RUNS} are the least"
    return Correlation(key, title, tau, low, high, runs, few if runs < ENOUGH_RUNS else "")


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return τ_b of each row [R, N] with the same row of another; memory for some rows at once.

    >>> rank_correlations(np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 2.0, 1.0]]))
    array([-1.])
    """
    some = max(1, _AT_ONCE // one.shape[1] ** 2)
    parts = range(0, len(one), some)
    return np.concatenate([_taus_at_once(one[i : i + some], other[i : i + some]) for i in parts])


def _taus_at_once(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    pairs = ((x[:, :, None], x[:, None, :]) for x in (one, other))
    # No difference, as that of two infinities is no number.
    signs = [(left > right).astype(float) - (left < right) for left, right in pairs]
    both = (signs[0] * signs[1]).sum((1, 2))
    sizes = [np.abs(sign).sum((1, 2)) for sign in signs]
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt(sizes[0] * sizes[1])


def _interval(taus: np.ndarray) -> tuple[float, float]:
    # Where a sample holds one run alone, or ties only, it has no τ.
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return float(low), float(high)


def _granulated(
    plain: Correlation, axes: Mapping[str, Sequence[str]], one: list[float], other: list[float]
) -> list[Correlation]:
    """Return τ granulated, if there are runs that differ in one setting alone."""
    cells = [_cells(axis, axes, one, other) for axis in axes]
    # A setting that never changes alone has no set of runs, and no part in the mean (eq. 8).
    cells = [taus for taus in cells if taus]
    if not cells:
        return []
    tau, random = fmean(fmean(taus) for taus in cells), np.random.default_rng(0)
    drawn = [random.choice(taus, (_RESAMPLED, len(taus))).mean(1) for taus in cells]
    several = all(len(taus) > 2 for taus in cells)
    low, high = _interval(np.mean(drawn, axis=0)) if several else (None, None)
    title = f"{plain.title}, among runs that differ in one setting alone ({_in_words(axes)})"
    return [
        Correlation(f"{plain.key}, granulated", title, tau, low, high, plain.runs, plain.warning)
    ]


def _in_words(axes: Iterable[str]) -> str:
    """Return the names of settings for readers, the first of many."""
    names = [_AXES.get(name, name.replace("_", " ")) for name in axes]
    if len(names) > _NAMED:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return ", ".join(names)


def _cells(
    axis: str, axes: Mapping[str, Sequence[str]], one: list[float], other: list[float]
) -> list[float]:
    """Return τ of each set of runs that agree in all settings but one."""
    sets: dict[tuple[str, ...], list[int]] = {}
    for run in range(len(one)):
        rest = tuple(values[run] for name, values in axes.items() if name != axis)
        sets.setdefault(rest, []).append(run)
    taus = (kendall([one[n] for n in runs], [other[n] for n in runs]) for runs in sets.values())
    return [tau for tau in taus if tau is not None]


def _axes(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the settings in which the runs differ, each with its value in every run.

    Settings that change together are one axis. Where a file does not say how it was trained, the
    groups are the only setting that is known.
    """
    found: dict[str, list[str]] = {}
    settings = [_training(entry) for entry in entries]
    named = dict.fromkeys(name for one in settings for name in one)
    found |= {name: [str(one.get(name)) for one in settings] for name in named}
    found["group"] = [entry.group for entry in entries]
    found["seed"] = [_seed(entry) for entry in entries]
    found["epoch"] = ["" if entry.epoch is None else f"{entry.epoch:g}" for entry in entries]
    apart: dict[tuple[int, ...], str] = {}
    for name, values in found.items():
        # Values are numbered as they first come: settings that
        # change together get the same numbers.
        order = {value: place for place, value in enumerate(dict.fromkeys(values))}
        if len(order) > 1:
            apart.setdefault(tuple(order[value] for value in values), name)
    return {name: found[name] for name in apart.values()}


def _seed(entry: Entry) -> str:
    return entry.seed or str(entry.report.checkpoint.get("training", {}).get("seed", ""))


def _training(entry: Entry) -> dict[str, str]:
    training: Any = entry.report.checkpoint.get("training")
    if not isinstance(training, Mapping):
        return {}
    return {
        str(name): json.dumps(value, sort_keys=True, default=str)
        for name, value in training.items()
        if name not in _NO_SETTINGS
    }
