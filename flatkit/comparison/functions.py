"""Whether runs measured one function: else their numbers do not compare."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report

_TEST = "which test samples (sha256)"
_SAMPLES = "which samples (sha256)"


def objective_differences(comparison: Comparison) -> list[str]:
    """Return a line for each respect in which the runs measured different functions.

    Values of curvature and flatness compare only if loss, samples, data, BatchNorm mode, dtype
    and number of parameters agree.

    >>> from flatkit.results.comparison import Entry
    >>> reports = [Report([], objective={"loss": loss}) for loss in ("mse", "cross_entropy")]
    >>> entries = [Entry(name, name, report) for name, report in zip("ab", reports)]
    >>> objective_differences(Comparison(entries))
    ['loss: mse (a), cross_entropy (b)']
    """
    functions = [(entry.name, _function(entry.report)) for entry in comparison.entries]
    if not all(_TEST in function for _, function in functions):  # some read no test data
        for _, function in functions:
            function.pop(_TEST, None)
    lines: list[str] = []
    for aspect in dict.fromkeys(key for _, function in functions for key in function):
        names: dict[str, list[str]] = {}
        for name, function in functions:
            names.setdefault(function.get(aspect, "not recorded"), []).append(name)
        if len(names) > 1:
            values = (f"{value} ({some(who)})" for value, who in names.items())
            lines.append(f"{aspect}: {', '.join(values)}")
    return lines


def _function(report: Report) -> dict[str, str]:
    """Return what identifies the measured function, as text."""
    objective = report.objective
    aspects = ["loss", "samples", "batchnorm", "dropout", "weight_decay", "dtype", "parameters"]
    if objective.get("batchnorm") == "train":
        aspects.append("chunk_size")  # batch statistics depend on the batches
    found = {key: str(objective[key]) for key in aspects if key in objective}
    if "indices_sha256" in objective:
        # Twelve digits, as tables show them: enough to tell any two selections apart.
        found[_SAMPLES] = str(objective["indices_sha256"])[:12]
    if objective.get("test"):
        found[_TEST] = str(objective["test"].get("indices_sha256"))[:12]
    data = report.checkpoint.get("data")
    if data:
        found["data"] = _data_text(data)
    return found


def _data_text(data: Any) -> str:
    if not isinstance(data, Mapping) or "sha256" not in data:
        return str(data)
    return f"{data.get('name', 'data')}, sha256 {str(data['sha256'])[:12]}"


def some(names: Sequence[str]) -> str:
    """Return names in words, of four and more the first.

    >>> some(["a", "b"]), some(list("abcde"))
    ('a, b', 'a and 4 more')
    """
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def grouped(comparison: Comparison) -> bool:
    """Return whether a group has several runs."""
    return len(comparison.groups) < len(comparison.entries)


def rows_of(comparison: Comparison) -> list[tuple[str, list[Entry]]]:
    """Return the rows of a table: groups with their runs if one has several, else the runs."""
    if grouped(comparison):
        return [(group, comparison.in_group(group)) for group in comparison.groups]
    return [(entry.name, [entry]) for entry in comparison.entries]


def trainings(
    entries: Sequence[Entry], values: Sequence[float]
) -> dict[tuple[Literal["seed", "file", "name"], str], float]:
    """Return the mean of the values of each training.

    Runs of one seed are one training, whose checkpoints have it in common, and so are copies of one
    file: none of them says what another training would have given.

    Args:
        entries: of one group.
        values: of each.

    >>> from flatkit.results.report import Report
    >>> entries = [Entry(f"epoch {n}", "sgd", Report([]), seed="0") for n in (1, 2)]
    >>> trainings(entries, [1.0, 3.0])
    {('seed', '0'): 2.0}
    """
    found: dict[tuple[Literal["seed", "file", "name"], str], list[float]] = {}
    for entry, value in zip(entries, values, strict=True):
        digest = str(entry.report.checkpoint.get("sha256", ""))
        alone = ("file", digest) if digest else ("name", entry.name)
        found.setdefault(("seed", entry.seed) if entry.seed else alone, []).append(value)
    return {training: fmean(own) for training, own in found.items()}
