"""What weakens a comparison, in sentences."""

from collections.abc import Mapping, Sequence

from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison


def caveats(
    comparison: Comparison, runs: Mapping[str, Mapping[str, Reading]], differences: Sequence[str]
) -> list[str]:
    """Return what weakens a comparison.

    Args:
        comparison: the runs.
        runs: name -> key -> what is compared.
        differences: how the measured functions differ.
    """
    return [f"different functions were measured: {line}" for line in differences]
