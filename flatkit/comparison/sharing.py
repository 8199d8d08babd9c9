"""What analyses of several checkpoints share: model and data, and the cores of the machine.

Each checkpoint is examined, and its engine chosen, anew: both are held against other computations
at its own weights, and each report says so for itself. That takes 3 and 8 % of an analysis (CPU
time; a CNN of 4,538 weights; loss, gradient, eigenvalue and trace). Nor does a search start from
the vectors of the checkpoint before: its numbers would depend on the order of the files, and what
it may have missed is bounded for a random start alone.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch

from flatkit.checkpoints.as_built import AsBuilt
from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.checkpoints.parts import Parts
from flatkit.checkpoints.task_file import build_task, fitted, refuse_without_model
from flatkit.comparison.workers import in_processes, usable_cores
from flatkit.data.dataset import Dataset
from flatkit.errors import InvalidArgumentError, TaskError
from flatkit.measures.registry import MEASURES
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.task import Task
from flatkit.results.report import Report

Build: TypeAlias = Callable[[], Task] | Task
"""A task whose model takes the weights of one checkpoint after the other, or what returns it."""

_SMALL = 8_000_000
"""Bytes of a checkpoint up to which a second thread makes a pass little faster: a pass of a CNN of
9,098 weights over 500 images takes 0.8 of the time, two processes half of it."""
_FEW = 4
"""Checkpoints from which on it pays to start processes, which takes some seconds."""


@dataclass
class Completion:
    """What completes checkpoints that do not name their model, and what is shared between them.

    The task is built once, so that its data are read once; its model takes the weights of one
    checkpoint after the other, each as if the model were fresh.

    Attributes:
        parts: the task by its file, or by names.
        entry: of the files, with the weights.
        build: the task in memory, instead of that of `parts`.
    """

    parts: Parts = field(default_factory=Parts)
    entry: str | None = None
    build: Build | None = None
    _recipe: str = ""
    _dataset: Dataset | None = None
    _built: "tuple[Task, Mapping[str, Any], AsBuilt] | None" = None

    @property
    def complete(self) -> bool:
        """Whether there is a model that takes the weights."""
        return self.build is not None or self.parts.complete

    def task(self, subject: Any) -> Task:
        """Return the task of a checkpoint or its path, and a task as it is.

        Raises:
            CheckpointError: it cannot be read, does not fit, or names no model where none is given.
            InvalidArgumentError: it is nothing that can be measured.
        """
        if isinstance(subject, Task):
            return subject
        if not isinstance(subject, Checkpoint | str | Path):
            raise InvalidArgumentError(
                "compare takes checkpoints or their paths, tasks, reports and comparisons, got a "
                f"{type(subject).__name__}; a model is measured as flatkit.Task(model, loss, data)"
            )
        checkpoint = subject if isinstance(subject, Checkpoint) else load(subject, entry=self.entry)
        if self.complete:
            return self._fitted(checkpoint)
        refuse_without_model(checkpoint, self.parts)
        return self._native(checkpoint)

    def restore(self) -> None:
        """Give the model of a task in memory its own weights back."""
        if self._built is not None:
            self._built[2].restore()

    def _native(self, checkpoint: Checkpoint) -> Task:
        """Return the task that a checkpoint of flatkit names, with the data of the last one."""
        # The data of two checkpoints are the same where their recipes are.
        recipe = json.dumps(checkpoint.data, sort_keys=True, default=str)
        known = self._dataset if recipe == self._recipe else None
        self._dataset = None  # the tensors of two data sets are never held at once
        root = self.parts.data_root
        task, self._dataset = checkpoint.task_with_data(known, data_root=root)
        self._recipe = recipe
        return task

    def _fitted(self, checkpoint: Checkpoint) -> Task:
        """Return the shared task with the weights of a checkpoint."""
        if self._built is None or not self._built[2].restore():
            task, origin = self._build(checkpoint)
            self._built = task, origin, AsBuilt(task.model)
        task, origin, fresh = self._built
        found = fitted(checkpoint, task, origin, self.parts)
        # Other state than tensors (what modules save of themselves, an adapter) stays.
        fresh.usable = fresh.usable and not (checkpoint.extra or checkpoint.adapter)
        return found

    def _build(self, checkpoint: Checkpoint) -> tuple[Task, Mapping[str, Any]]:
        build = self.build
        if build is None:
            return build_task(self.parts, checkpoint.path)
        if isinstance(build, Task):
            return build, {}
        task: Any = build()
        name = getattr(build, "__qualname__", type(build).__name__)
        if not isinstance(task, Task):
            raise TaskError(
                f"task ({name}) must return a flatkit.Task(model, loss, data), "
                f"got {type(task).__name__}"
            )
        return task, {"task": name}


def jobs_for(
    subjects: Sequence[Any], settings: AnalysisSettings, completion: Completion, *, quiet: bool
) -> int:
    """Return how many checkpoints to measure at once: a rule, and no clock.

    As many as there are cores, where that can be and pays: at least four files of small networks
    on a CPU, more than loss, accuracy and gradient asked, and nobody who watches each measure.

    Args:
        subjects: what is measured.
        settings: of the analyses.
        completion: of the checkpoints.
        quiet: whether nobody is told of each measure.
    """
    if not quiet or completion.build is not None or len(subjects) < _FEW:
        return 1
    # Processes on one GPU take turns, and each takes memory of its own.
    if settings.device == "cuda" or (
        settings.device in ("auto", None) and torch.cuda.is_available()
    ):
        return 1
    # What has no settings is losses and a gradient: sooner done than a process is started.
    if not any(MEASURES[name].settings for name in settings.measures):
        return 1
    if settings.device == "mps" or any(_outside(name) for name in settings.measures):
        return 1
    for subject in subjects:
        path = Path(subject) if isinstance(subject, str | Path) else None
        if path is None or not path.is_file() or path.stat().st_size > _SMALL:
            return 1
    try:
        # What no other process can be given is measured here, one after the other.
        _portable(settings, ())
    except InvalidArgumentError:
        return 1
    return min(usable_cores(), len(subjects))


def at_once(
    analyze_file: Callable[..., str],
    subjects: Mapping[int, Any],
    settings: Mapping[int, AnalysisSettings],
    jobs: int,
    journals: Mapping[int, str | None],
    *,
    completion: Completion | None = None,
    command: Sequence[str] = (),
    fresh: bool = False,
) -> Generator[tuple[int, Report], None, None]:
    """Analyze several checkpoints at once, each in a process that has its share of the cores.

    Args:
        analyze_file: takes path, settings, command, completion, journal and `fresh`, and returns a
            report as JSON.
        subjects: paths, by number.
        settings: of the analysis of each.
        jobs: how many at once.
        journals: of each, if any.
        completion: of the checkpoints.
        command: kept in the reports.
        fresh: forget what the journals hold.

    Raises:
        InvalidArgumentError: something cannot be given to another process.
    """
    completion = completion or Completion()
    if completion.build is not None:
        raise InvalidArgumentError(
            "jobs > 1 needs `task` as FILE.py:FUNCTION, which other processes can run; got a "
            f"{type(completion.build).__name__}"
        )
    numbers = list(subjects)
    completing = {"entry": completion.entry, **_changes(completion.parts)}
    calls = [
        (_path(subject), *_portable(settings[number], command), completing, journals[number], fresh)
        for number, subject in subjects.items()
    ]
    threads = max(1, usable_cores() // jobs)
    for place, report in in_processes(analyze_file, calls, jobs=jobs, threads=threads):
        yield numbers[place], Report.from_json(report)


def _path(subject: Any) -> str:
    if not isinstance(subject, str | Path):
        raise InvalidArgumentError(
            "jobs > 1 needs paths of checkpoints, as other processes read them; "
            f"got a {type(subject).__name__}"
        )
    return str(subject)


def _portable(
    settings: AnalysisSettings, command: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return settings and command as another process can be given them.

    Raises:
        InvalidArgumentError: a measure, a setting or another argument is of this process alone.
    """
    for name in settings.measures:
        if _outside(name):
            raise InvalidArgumentError(
                f"jobs > 1 needs measures that other processes know, and {name} was registered in "
                "this one alone; leave out `jobs`"
            )
    try:
        return json.loads(json.dumps(_changes(settings))), list(command)
    except TypeError as error:
        raise InvalidArgumentError(
            f"jobs > 1 needs settings that JSON holds ({error}); leave out `jobs`"
        ) from error


def _outside(measure: str) -> bool:
    """Whether a measure is known in this process alone."""
    return MEASURES.outsider(measure) == f"the measure {measure}"


def _changes(settings: Any) -> dict[str, Any]:
    """Return the settings that are not the usual ones."""
    usual = type(settings)()
    found = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {name: value for name, value in found.items() if value != getattr(usual, name)}
