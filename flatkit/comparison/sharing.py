"""What analyses of several checkpoints share: data, and the cores of the machine."""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.comparison.workers import in_processes, usable_cores
from flatkit.data.dataset import Dataset
from flatkit.errors import InvalidArgumentError
from flatkit.measures.registry import MEASURES
from flatkit.measures.settings import AnalysisSettings
from flatkit.results.report import Report


class SharedData:
    """Tasks of checkpoints, those of one data set with the same tensors of it."""

    def __init__(self) -> None:
        self._recipe, self._dataset = "", None

    def task(self, subject: Any) -> Any:
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


def at_once(
    analyze_file: Callable[..., str],
    subjects: Mapping[int, Any],
    settings: Mapping[str, Any],
    jobs: int,
    journals: Mapping[int, str | None],
    *,
    fresh: bool = False,
) -> Generator[tuple[int, Report], None, None]:
    """Analyze several checkpoints at once, each in a process that has its share of the cores.

    Args:
        analyze_file: takes path, settings, command, journal and `fresh`, and returns a report as
            JSON.
        subjects: paths, by number.
        settings: the arguments of `analyze`; `progress` is told how many are done.
        jobs: how many at once.
        journals: of each, if any.
        fresh: forget what these hold.

    Raises:
        InvalidArgumentError: something cannot be given to another process.
    """
    numbers, progress = list(subjects), settings.get("progress")
    calls = [
        (_path(subject), *_portable(settings), journals[number], fresh)
        for number, subject in subjects.items()
    ]
    threads = max(1, usable_cores() // jobs)
    tell: Callable[[str, int, int], object] = progress if callable(progress) else lambda *_: None
    done = in_processes(analyze_file, calls, jobs=jobs, threads=threads)
    for count, (place, report) in enumerate(done, start=1):
        tell("checkpoints", count, len(calls))
        yield numbers[place], Report.from_json(report)


def _path(subject: Any) -> str:
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
