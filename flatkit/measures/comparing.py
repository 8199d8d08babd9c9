"""`compare`: several checkpoints with the same settings side by side, one by one or at once."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.checks import check_count
from flatkit.data.dataset import Dataset
from flatkit.errors import InvalidArgumentError
from flatkit.measures.registry import MEASURES
from flatkit.measures.report import Subject, analyze
from flatkit.measures.settings import AnalysisSettings
from flatkit.measures.workers import in_processes, usable_cores
from flatkit.results import Comparison, Entry, Report


def compare(
    subjects: Mapping[str, Subject | Report] | Sequence[Subject | Report],
    *,
    groups: Mapping[str, str] | None = None,
    jobs: int = 1,
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
        **settings: further arguments of `analyze`.

    Raises:
        InvalidArgumentError: there is none; or something cannot be given to another process.
            Further as `analyze`.
        FlatkitError: a process died.
    """
    if not subjects:
        raise InvalidArgumentError("compare needs at least one checkpoint, task or report")
    named = list(subjects.items() if isinstance(subjects, Mapping) else enumerate(subjects, 1))
    reports = {number: s for number, (_, s) in enumerate(named) if isinstance(s, Report)}
    wanted = {number: s for number, (_, s) in enumerate(named) if not isinstance(s, Report)}
    run = _one_by_one if check_count("jobs", jobs) == 1 else _at_once
    reports |= dict(run(wanted, settings, jobs))
    entries: list[Entry] = []
    for number, (key, _) in enumerate(named):
        name = key if isinstance(key, str) else reports[number].checkpoint.get("name")
        name = name or f"run {key}"
        entries.append(Entry(name, (groups or {}).get(name, name), reports[number]))
    return Comparison(entries)


class SharedData:
    """Tasks of checkpoints, those of one data set with the same tensors of it."""

    def __init__(self) -> None:
        self._recipe, self._dataset = "", None

    def task(self, subject: Subject) -> Subject:
        """Return the task of a checkpoint of flatkit, and anything else as it is."""
        if not isinstance(subject, Checkpoint | str | Path):
            return subject
        checkpoint = subject if isinstance(subject, Checkpoint) else load(subject)
        recipe = json.dumps(checkpoint.data, sort_keys=True, default=str)
        known: Dataset | None = self._dataset if recipe == self._recipe else None
        self._dataset = None  # the tensors of two data sets are never held at once
        task, self._dataset = checkpoint.task_with_data(known)
        self._recipe = recipe
        return task


def _one_by_one(
    subjects: Mapping[int, Subject], settings: Mapping[str, Any], jobs: int
) -> Generator[tuple[int, Report], None, None]:
    shared = SharedData()
    for number, subject in subjects.items():
        yield number, analyze(shared.task(subject), **settings)


def _at_once(
    subjects: Mapping[int, Subject], settings: Mapping[str, Any], jobs: int
) -> Generator[tuple[int, Report], None, None]:
    """Analyze several at once; what is done is told as `analyze` tells it of measures."""
    numbers, progress = list(subjects), settings.get("progress")
    calls = [(_path(subject), *_portable(settings)) for subject in subjects.values()]
    threads = max(1, usable_cores() // jobs)
    tell: Callable[[str, int, int], object] = progress if callable(progress) else lambda *_: None
    done = in_processes(analyze_file, calls, jobs=jobs, threads=threads)
    for count, (place, report) in enumerate(done, start=1):
        tell("checkpoints", count, len(calls))
        yield numbers[place], Report.from_json(report)


_shared = SharedData()
"""Of a process that works for another one; nothing else calls `analyze_file`."""


def analyze_file(path: str, settings: Mapping[str, Any], command: Sequence[str]) -> str:
    """Return the report of a checkpoint as JSON.

    Args:
        path: of a file of flatkit.
        settings: of the analysis.
        command: kept in the report.
    """
    task, chosen = _shared.task(path), AnalysisSettings(**settings)
    return analyze(task, settings=chosen, progress=False, command=command).to_json()


def _path(subject: Subject) -> str:
    if not isinstance(subject, str | Path):
        raise InvalidArgumentError(
            "jobs > 1 needs paths of checkpoints that flatkit wrote, as other processes read them; "
            f"got a {type(subject).__name__}"
        )
    return str(subject)


def _portable(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings and command as another process can be given them.

    Raises:
        InvalidArgumentError: a measure, a setting or another argument is of this process alone.
    """
    changes = dict(given)
    settings: AnalysisSettings = changes.pop("settings", None) or AnalysisSettings()
    command, _ = changes.pop("command", ()), changes.pop("progress", None)
    for name in ("journal", "fresh"):
        if changes.pop(name, None):
            raise InvalidArgumentError(f"{name} belongs to one analysis; leave it out with `jobs`")
    settings = settings.changed(changes)
    for name in settings.measures:
        if MEASURES.outsider(name) == f"the measure {name}":
            raise InvalidArgumentError(
                f"jobs > 1 needs measures that other processes know, and {name} was registered in "
                "this one alone; leave out `jobs`"
            )
    usual = AnalysisSettings()
    found = {field.name: getattr(settings, field.name) for field in fields(settings)}
    found = {name: value for name, value in found.items() if value != getattr(usual, name)}
    try:
        return json.loads(json.dumps(found)), list(command)
    except TypeError as error:
        raise InvalidArgumentError(
            f"jobs > 1 needs settings that JSON holds ({error}); leave out `jobs`"
        ) from error
