"""`analyze` and `compare`: measures run on one or many checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatkit.analysis.measures import RUNNERS
from flatkit.analysis.session import Progress, Session
from flatkit.analysis.settings import AnalysisSettings
from flatkit.checkpoints import Checkpoint, load
from flatkit.errors import InvalidArgumentError
from flatkit.results import Comparison, Entry, Report, environment
from flatkit.task import Task

Subject = Task | Checkpoint | str | Path


def analyze(
    subject: Subject,
    *,
    settings: AnalysisSettings | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **changes: Any,
) -> Report:
    """Measure curvature, flatness and landscape of a task or a checkpoint.

    Args:
        subject: a `Task`, a `Checkpoint`, or the path of a checkpoint that flatkit wrote.
        settings: what to measure and how.
        progress: called as the measures advance, with name, steps done and steps in all.
        command: kept in the report.
        **changes: single settings by name, e.g. `rho=[0.05], dtype="float64"`.

    Returns:
        Report with a `Result` per measure (and radius, and split).

    Raises:
        CheckpointError: the file cannot be read.
        InvalidArgumentError: a setting is out of range.
        NonFiniteError: weights, loss or gradient are NaN or infinite.
        NonDeterministicError: the model gives different values at one point.

    >>> import torch
    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> task = Task(nn.Linear(1, 1, bias=False), "mse", data)
    >>> report = analyze(task, measures=["top_eigenvalues"])
    >>> [round(value, 4) for value in report.result("top_eigenvalues").value]
    [5.0]
    """
    settings = replace(settings or AnalysisSettings(), **changes)
    if isinstance(subject, str | Path):
        subject = load(subject)
    task = subject if isinstance(subject, Task) else subject.task()
    session = Session(task, settings, progress)
    results = []
    runners = dict.fromkeys(RUNNERS[measure] for measure in settings.measures)
    for done, runner in enumerate(runners):
        session.report("analysis", done, len(runners))
        results += [r for r in runner(session) if r.measure in settings.measures]
    session.report("analysis", len(runners), len(runners))
    return Report(
        results,
        checkpoint={"name": task.name} if isinstance(subject, Task) else subject.describe(),
        objective={**session.objective.describe(), "seed": settings.seed},
        command=command,
        environment=environment(),
    )


def compare(
    subjects: Mapping[str, Subject | Report] | Sequence[Subject | Report],
    *,
    groups: Mapping[str, str] | None = None,
    **settings: Any,
) -> Comparison:
    """Analyze several subjects with the same settings and random draws, side by side.

    Args:
        subjects: by name, or a sequence, named after their checkpoints. Reports are taken as
            they are.
        groups: name -> group, for repetitions of one method; by default each is its own.
        **settings: see `analyze`.

    Raises:
        InvalidArgumentError: there is none. Further as `analyze`.
    """
    if not subjects:
        raise InvalidArgumentError("compare needs at least one checkpoint, task or report")
    named = subjects.items() if isinstance(subjects, Mapping) else enumerate(subjects, start=1)
    entries = []
    for key, subject in named:
        report = subject if isinstance(subject, Report) else analyze(subject, **settings)
        name = key if isinstance(key, str) else report.checkpoint.get("name") or f"run {key}"
        entries.append(Entry(name, (groups or {}).get(name, name), report))
    return Comparison(entries)
