"""The series among compared reports: checkpoints of one folder, in the order of their epochs."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

from flatkit.errors import NothingToDrawError
from flatkit.render.curvature_scale import FIRST_ORDER
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report

Series: TypeAlias = Mapping[str, Sequence[Report]]
"""The reports of each folder."""

_MOST_RADII = 3


def series_of(comparison: Comparison) -> Series:
    """Return by folder the reports of checkpoints of two or more epochs, in the order of these.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.result import Result
    >>> flat = Result(FIRST_ORDER, 0.1, error_kind="lower_bound", settings={"rho": 0.1})
    >>> reports = [Report([flat], checkpoint={"path": f"gam/{n}.pt", "epoch": n}) for n in (2, 1)]
    >>> entries = [Entry(str(number), "gam", r) for number, r in enumerate(reports)]
    >>> {run: epochs(found) for run, found in series_of(Comparison(entries)).items()}
    {'gam': [1, 2]}
    """
    runs: dict[str, dict[int, Report]] = {}
    for entry in comparison.entries:
        epoch, path = (entry.report.checkpoint.get(key) for key in ("epoch", "path"))
        # The folder stands for the training; without R1 there is no flatness over its epochs.
        if isinstance(epoch, int) and isinstance(path, str) and entry.report.find(FIRST_ORDER):
            runs.setdefault(str(PurePath(path).parent), {})[epoch] = entry.report
    return {
        run: [found[epoch] for epoch in sorted(found)]
        for run, found in runs.items()
        if len(found) > 1
    }


def required_series(comparison: Comparison) -> Series:
    """Return what `series_of` returns.

    Raises:
        NothingToDrawError: no folder has checkpoints of two epochs.
    """
    runs = series_of(comparison)
    if not runs:
        raise NothingToDrawError(
            "a series needs checkpoints of two epochs at least in one folder; train with "
            "`save_every` and verify the epoch-*.pt files"
        )
    return runs


def epochs(reports: Sequence[Report]) -> list[int]:
    """Return the epochs of a series.

    >>> epochs([Report([], checkpoint={"epoch": 3})])
    [3]
    """
    return [report.checkpoint["epoch"] for report in reports]


def shared_radii(runs: Series) -> list[float]:
    """Return radii that all reports have: the smallest, one between and the largest.

    >>> from flatkit.results.result import Result
    >>> radii = (0.1, 0.2, 0.3, 0.4)
    >>> found = [Result(FIRST_ORDER, 1.0, None, "lower_bound", settings={"rho": r}) for r in radii]
    >>> shared_radii({"gam": [Report(found)]})
    [0.1, 0.3, 0.4]
    """
    found = sorted(
        set.intersection(
            *(
                {result.settings["rho"] for result in report.all(FIRST_ORDER)}
                for reports in runs.values()
                for report in reports
            )
        )
    )
    if len(found) <= _MOST_RADII:
        return found
    return [found[0], found[len(found) // 2], found[-1]]


def value_of(report: Report, measure: str) -> Any:
    """Return the value of a measure, or None where it was not measured.

    >>> value_of(Report([]), "loss") is None
    True
    """
    found = report.find(measure)
    return None if found is None else found.value
