"""What weakens a comparison, in sentences."""

from collections.abc import Mapping, Sequence

from flatkit.comparison.functions import some
from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison

_FAR_APART = 2.0
"""Ratio of two training losses beyond which curvature differs for that alone."""
_VANISHING = 1e-3
"""A cross-entropy below which all curvature vanishes with it."""
_MOSTLY = 0.5
"""The part of R1 from which on the gradient at the checkpoint, and not its growth, decides it."""


def caveats(
    comparison: Comparison, runs: Mapping[str, Mapping[str, Reading]], differences: Sequence[str]
) -> list[str]:
    """Return what weakens a comparison.

    Args:
        comparison: the runs.
        runs: name -> key -> what is compared.
        differences: how the measured functions differ.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> loss = lambda value: Reading("train_loss", "train loss", value, 0.0, "exact", "converged")
    >>> trace = Reading("trace", "tr H", 9.0, 0.1, "standard_error", "converged", role="flatness")
    >>> runs = {name: {"train_loss": loss(value), "trace": trace}
    ...         for name, value in {"sgd": 0.1, "gam": 0.5}.items()}
    >>> entries = [Entry(name, name, Report([])) for name in runs]
    >>> caveats(Comparison(entries), runs, [])
    ['the training losses differ 5-fold (sgd 0.1, gam 0.5): curvature falls with the loss itself,
    so compare at equal loss before calling a method flat']
    """
    flat = [reading for run in runs.values() for reading in run.values() if _is_flat(reading)]
    found = [f"different functions were measured: {line}" for line in differences]
    if not flat:
        return found
    losses = {name: run["train_loss"].value for name, run in runs.items() if "train_loss" in run}
    return [
        *found,
        *_unequal(losses),
        *_vanishing(comparison, losses),
        *_sloping(runs),
        *_free(comparison, flat),
    ]


def _is_flat(reading: Reading) -> bool:
    return reading.role == "flatness"


def _unequal(losses: Mapping[str, float]) -> list[str]:
    if len(losses) < 2:
        return []
    low, high = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    # Losses may be zero or below, as those of densities: then there is no ratio.
    if losses[low] <= 0 or losses[high] / losses[low] < _FAR_APART:
        return []
    return [
        f"the training losses differ {losses[high] / losses[low]:.2g}-fold ({low} "
        f"{losses[low]:.3g}, {high} {losses[high]:.3g}): curvature falls with the loss itself, so "
        "compare at equal loss before calling a method flat"
    ]


def _vanishing(comparison: Comparison, losses: Mapping[str, float]) -> list[str]:
    names = [
        entry.name
        for entry in comparison.entries
        if "cross_entropy" in str(entry.report.objective.get("loss", "")).lower()
        and losses.get(entry.name, 1.0) < _VANISHING
    ]
    if not names:
        return []
    return [
        f"the training loss of {some(names)} nearly vanishes: all derivatives of a cross-entropy "
        "vanish with it, whatever the shape of the minimum, and larger weights do the same"
    ]


def _sloping(runs: Mapping[str, Mapping[str, Reading]]) -> list[str]:
    """Say where R1/ρ² shows the gradient that is left, as max ‖∇L‖ over the ball is at least it."""
    found: dict[str, tuple[float, float]] = {}  # the largest part in each run, and its radius
    for name, run in runs.items():
        # R1/ρ² is max ‖∇L‖ / ρ, and the centre is a point of the ball: the part is 1 at most. In
        # balls of other shapes the gradient has another norm, and the part could be 3.
        gradient = run.get("gradient_norm")
        parts = [
            (gradient.value / (reading.value * reading.rho), reading.rho)
            for reading in run.values()
            if reading.measure == "first_order_flatness" and reading.role == "flatness"
            if reading.is_round
            if gradient is not None and reading.rho and reading.value > 0
        ]
        if parts and max(parts)[0] >= _MOSTLY:
            found[name] = max(parts)
    if not found:
        return []
    name = max(found, key=found.__getitem__)
    part, rho = found[name]
    return [
        f"the gradient of {some(list(found))} is not near zero: ‖∇L‖/ρ is up to {part:.0%} of "
        f"R1/ρ² ({name}, ρ = {rho:g}), which there tells how far the training was from a "
        "minimum of this function rather than how curved it is; take larger radii, or λmax"
    ]


def _free(comparison: Comparison, flat: Sequence[Reading]) -> list[str]:
    """Say that weights can be rescaled, unless a measure that does not see it stands beside."""
    if any(", adaptive" in reading.key or ", filter" in reading.key for reading in flat):
        return []
    kinds = [
        str(kind)
        for entry in comparison.entries
        for kind in entry.report.objective.get("rescalable", ())
    ]
    if not kinds:
        return []
    return [
        f"weights before {' and '.join(dict.fromkeys(kinds))} can be rescaled so that the network "
        "stays the same and these numbers change (Dinh et al., 2017): measure R1 or R0 with "
        "geometry='adaptive' beside them"
    ]
