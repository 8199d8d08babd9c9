"""Whether flat networks generalise, over the runs at hand: rank correlations."""

from collections.abc import Mapping
from dataclasses import dataclass

from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison


@dataclass(frozen=True)
class Correlation:
    """Kendall's τ of a measure of flatness with what it should predict, over the runs.

    Attributes:
        key: of the two quantities, e.g. `trace ~ loss_gap`.
        title: for readers.
        tau: 1 where sharper runs are always the worse ones.
        low: of its 95 % interval; None if that is not known.
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
    """Return the correlations of each measure of flatness that all runs have."""
    return []
