"""Saved reports among the runs of a comparison, and its entries; no torch."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

from flatkit.comparison.merging import merge
from flatkit.comparison.naming import Groups, Run, named, placed, runs_of, unmatched
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report


def saved(subjects: Sequence[str], *, groups: Groups = None, repeats: bool = False) -> Comparison:
    """Return saved reports and comparisons side by side.

    Args:
        subjects: paths and patterns.
        groups: as of `compare`; by default those that were saved.
        repeats: groups of one name in several files are one group.

    Raises:
        InvalidArgumentError: a file is missing or given twice, a pattern or `groups` fits nothing.
        ResultError: a file holds neither a report nor a comparison.
    """
    runs = runs_of(subjects)
    if groups is None:
        return merge([Path(run.path) for run in runs], repeats=repeats)
    runs = loaded(named(runs))
    if remark := unmatched(runs, groups):
        warn(remark, stacklevel=2)
    return Comparison(entries_of(runs, [run.subject.report for run in runs], groups))


def loaded(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with an `Entry` for every one that is measured already.

    Args:
        runs: those of one name get a number.

    Raises:
        ResultError: a file holds neither a report nor a comparison.

    >>> [(run.name, type(run.subject).__name__) for run in loaded([Run(Report([]))])]
    [('run 1', 'Entry')]
    """
    files = [Path(run.path) for run in runs if _is_saved(run)]
    merged = iter(merge(files).entries) if files else iter(())
    counts = {file: len(merge([file]).entries) for file in files}
    found: list[Run] = []
    for number, run in enumerate(runs, start=1):
        if _is_saved(run):
            entries = [next(merged) for _ in range(counts[Path(run.path)])]
            # A name that the caller gave is about one run; several of a file keep their own.
            single = len(entries) == 1 and bool(run.group)
            found += [_of_entry(run, e, named_so=single) for e in entries]
        elif isinstance(run.subject, Comparison):
            found += [_of_entry(run, e, named_so=False) for e in run.subject.entries]
        elif isinstance(run.subject, Report):
            name = run.name or run.subject.checkpoint.get("name") or f"run {number}"
            found.append(replace(run, name=name, subject=Entry(name, name, run.subject)))
        else:
            name = run.name or getattr(run.subject, "name", "") or f"run {number}"
            found.append(replace(run, name=name))
    return _told_apart(found)


def _of_entry(run: Run, entry: Entry, *, named_so: bool) -> Run:
    """Return the run of a saved one, by its own name and group unless others were given."""
    if named_so:
        return replace(run, subject=entry)
    return replace(run, subject=entry, name=entry.name, group=run.group or entry.group)


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, those of one name with a number."""
    seen: dict[str, int] = {}
    found: list[Run] = []
    for run in runs:
        seen[run.name] = count = seen.get(run.name, 0) + 1
        found.append(run if count == 1 else replace(run, name=f"{run.name} ({count})"))
    return found


def _is_saved(run: Run) -> bool:
    """Whether a run is the file of a report or a comparison."""
    path = Path(run.path)
    is_path = isinstance(run.subject, str | Path)
    # An index of shards is JSON too, and stands for a checkpoint.
    return is_path and path.suffix == ".json" and not path.name.endswith(".index.json")


def entries_of(runs: Sequence[Run], reports: Sequence[Report], groups: Groups) -> list[Entry]:
    """Return the entries of a comparison, each in its group; warn of copies.

    Args:
        runs: with names.
        reports: of each.
        groups: see `placed`.

    Raises:
        InvalidArgumentError: see `placed`.
    """
    trainings = [_training(run.subject, report) for run, report in zip(runs, reports, strict=True)]
    _warn_of_copies(runs, reports)
    return [
        Entry(run.name, place.group, report, place.seed, place.epoch)
        for run, place, report in zip(runs, placed(runs, groups, trainings), reports, strict=True)
    ]


def _training(subject: Any, report: Report) -> tuple[str, float | None]:
    """Return seed and epoch of a training, as its entry or its checkpoint tells them."""
    about = report.checkpoint
    seed, epoch = about.get("training", {}).get("seed"), about.get("epoch")
    if isinstance(subject, Entry):
        seed, epoch = subject.seed or seed, epoch if subject.epoch is None else subject.epoch
    # Of another program; it may hold anything under this name.
    with suppress(TypeError, ValueError):
        epoch = None if epoch is None else float(epoch)
    return "" if seed is None else str(seed), epoch


def _warn_of_copies(runs: Sequence[Run], reports: Sequence[Report]) -> None:
    seen: dict[str, str] = {}
    for run, report in zip(runs, reports, strict=True):
        digest = report.checkpoint.get("sha256")
        if digest and digest in seen:
            warn(
                f"{seen[digest]} and {run.name} are copies of one checkpoint, which counts twice",
                stacklevel=4,
            )
        seen.setdefault(digest or run.name, run.name)
