"""`compare`: measures run on several checkpoints, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatkit.checks import check_count
from flatkit.comparison.finished import finished
from flatkit.comparison.sharing import SharedData, at_once
from flatkit.errors import InvalidArgumentError
from flatkit.measures.report import Subject, analyze
from flatkit.measures.settings import AnalysisSettings
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report


def compare(
    subjects: Mapping[str, Subject | Report] | Sequence[Subject | Report],
    *,
    groups: Mapping[str, str] | None = None,
    jobs: int = 1,
    journal: str | Path | None = None,
    fresh: bool = False,
    **settings: Any,
) -> Comparison:
    """Analyze several subjects with the same settings and random draws, side by side.

    The data of checkpoints of one data set are read once, or once in each process.

    Args:
        subjects: by name, or a sequence, named after their checkpoints. Reports are taken as
            they are.
        groups: name -> group, for repetitions of one method; by default each is its own.
        jobs: how many checkpoints at once, each in a process that has its share of the cores; the
            subjects are then paths of files that flatkit wrote. With other threads than in one
            process sums are rounded otherwise. For small networks, which two cores serve no faster
            than one, two jobs take half the time.
        journal: a file in which finished reports of checkpoints are kept, so that the same call
            goes on after it was stopped; beside it that of each analysis under way. All is removed
            in the end.
        fresh: forget what the journal holds.
        **settings: further arguments of `analyze`.

    Raises:
        InvalidArgumentError: there is none; or something cannot be given to another process.
            Further as `analyze`.
        ResultError: the journal is of other settings.
        FlatkitError: a process died.
    """
    if not subjects:
        raise InvalidArgumentError("compare needs at least one checkpoint, task or report")
    named = list(subjects.items() if isinstance(subjects, Mapping) else enumerate(subjects, 1))
    reports = {number: s for number, (_, s) in enumerate(named) if isinstance(s, Report)}
    given = {number: s for number, (_, s) in enumerate(named) if not isinstance(s, Report)}
    check_count("jobs", jobs)
    with finished(journal, settings, fresh=fresh) as done:
        reports |= done.reports(given)
        left = {number: s for number, s in given.items() if number not in reports}
        journals = {number: done.journal(number, s) for number, s in left.items()}
        if jobs > 1:
            run = at_once(analyze_file, left, settings, jobs, journals, fresh=fresh)
        else:
            run = _one_by_one(left, settings, journals, fresh=fresh)
        for number, report in run:
            reports[number] = done.keep(number, left[number], report)
        done.remove(given)
    entries: list[Entry] = []
    for number, (key, _) in enumerate(named):
        name = key if isinstance(key, str) else reports[number].checkpoint.get("name")
        name = name or f"run {key}"
        entries.append(Entry(name, (groups or {}).get(name, name), reports[number]))
    return Comparison(entries)


def _one_by_one(
    subjects: Mapping[int, Subject],
    settings: Mapping[str, Any],
    journals: Mapping[int, str | None],
    *,
    fresh: bool,
) -> Iterator[tuple[int, Report]]:
    shared = SharedData()
    for number, subject in subjects.items():
        task, journal = shared.task(subject), journals[number]
        yield number, analyze(task, journal=journal, fresh=fresh, **settings)


_shared = SharedData()
"""Of a process that works for another one; nothing else calls `analyze_file`."""


def analyze_file(
    path: str,
    settings: Mapping[str, Any],
    command: Sequence[str],
    journal: str | None,
    fresh: bool,
) -> str:
    """Return the report of a checkpoint as JSON, for another process.

    Args:
        path: of a file of flatkit.
        settings: of the analysis.
        command: kept in the report.
        journal: as of `analyze`.
        fresh: as of `analyze`.
    """
    task, chosen = _shared.task(path), AnalysisSettings(**settings)
    return analyze(
        task, settings=chosen, progress=False, command=command, journal=journal, fresh=fresh
    ).to_json()
