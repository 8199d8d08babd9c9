"""Over which samples numbers hold, in words: in the head of a table and below a figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flatkit.landscape.surface import Surface
from flatkit.results.comparison import Comparison
from flatkit.results.status import Status

_KINDS = {"train": "training samples", "test": "test samples"}


def samples_text(described: Mapping[str, Any], split: str = "train") -> str:
    """Return how many samples of how many.

    Args:
        described: what an objective says of its samples.
        split: `train` or `test`.

    >>> samples_text({"samples": 500, "samples_available": 50_000})
    '500 of 50,000 training samples'
    """
    available = described.get("samples_available")
    of = f" of {available:,}" if isinstance(available, int) else ""
    return f"{count_text(described.get('samples'))}{of} {_KINDS[split]}"


def count_text(number: Any) -> str:
    """Return a number of things in groups of three digits.

    >>> count_text(50_000), count_text(None)
    ('50,000', '?')
    """
    return f"{number:,}" if isinstance(number, int) else "?"


def subsets(objective: Mapping[str, Any]) -> list[str]:
    """Return in words which samples stand for all; none where all are used.

    >>> subsets({"samples": 5, "samples_available": 9, "drawn": "random"})
    ['5 of 9 training samples, drawn at random']
    """
    parts: list[str] = []
    for split, described in _by_split(objective).items():
        used, available = described.get("samples"), described.get("samples_available")
        # Whatever their number: the first ones may all be of one class.
        if described.get("drawn") == "first":
            parts.append(f"the first {samples_text(described, split)}")
        elif isinstance(used, int) and isinstance(available, int) and used < available:
            parts.append(f"{samples_text(described, split)}, drawn at random")
    return parts


def over_runs(comparison: Comparison, *, test: bool = False) -> str:
    """Return the end of a footnote: over which samples the runs were measured.

    Args:
        comparison: the runs; of those that recorded no samples nothing is said.
        test: whether numbers of the test data are shown too.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> report = Report([], objective={"samples": 500, "samples_available": 50_000})
    >>> over_runs(Comparison([Entry("sgd", "sgd", report)]))
    '; over 500 of 50,000 training samples'
    """
    splits = _KINDS if test else ("train",)
    return _over(
        {split: found[split] for split in splits if split in found}
        for found in (_by_split(entry.report.objective) for entry in comparison.entries)
    )


def coarse(statuses: Iterable[Status | str]) -> str:
    """Return the part of a footnote that says that curves or maps lack points for want of work.

    >>> coarse(["converged", "budget"]), coarse(["converged"])
    ('; coarse: the work ended before all points were measured', '')
    """
    ended = any(status in (Status.BUDGET, Status.INTERRUPTED) for status in statuses)
    return "; coarse: the work ended before all points were measured" if ended else ""


def over_surfaces(surfaces: Sequence[Surface]) -> str:
    """Return the same of surfaces.

    >>> said = {"test": {"samples": 1000, "samples_available": 10_000}}
    >>> over_surfaces([Surface({"t": [0.0, 1.0]}, {}, {"objective": said})])
    '; over 1,000 of 10,000 test samples'
    """
    return _over(surface.header.get("objective") or {} for surface in surfaces)


def _by_split(objective: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a report says of its samples, by split, where it says it."""
    found = {"train": objective, "test": objective.get("test") or {}}
    return {split: said for split, said in found.items() if "samples" in said}


def _over(objectives: Iterable[Mapping[str, Mapping[str, Any]]]) -> str:
    texts: dict[str, dict[str, None]] = {split: {} for split in _KINDS}
    for found in objectives:
        for split in _KINDS:
            if "samples" in found.get(split, {}):
                texts[split][samples_text(found[split], split)] = None
    parts = [" or ".join(different) for different in texts.values() if different]
    return f"; over {' and '.join(parts)}" if parts else ""
