"""`analyze` and `compare`: measures run on one or many checkpoints."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.task_file import as_task
from flatkit.devices import ordinary_torch
from flatkit.errors import FlatkitError, InvalidArgumentError, PluginError
from flatkit.measures.registry import MEASURES
from flatkit.measures.session import Progress, Session
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.losses import LossFunction
from flatkit.objective.task import Task
from flatkit.results import Comparison, Entry, Report, Result

Subject: TypeAlias = Task | Checkpoint | str | Path


@ordinary_torch()
def analyze(
    subject: Subject | nn.Module,
    loss: LossFunction | str | None = None,
    data: Any = None,
    *,
    test_data: Any = None,
    settings: AnalysisSettings | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **changes: Any,
) -> Report:
    """Measure curvature, flatness and landscape of a model, a task or a checkpoint.

    Args:
        subject: a model, with loss and data; or a `Task`, a `Checkpoint`, or the path of a
            checkpoint that flatkit wrote, which have their own.
        loss: the loss of a model: a name, or a function of (outputs, targets).
        data: the training data of a model: tensors, a data set or a DataLoader.
        test_data: the test data of a model, for its loss and accuracy there.
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
        PluginError: a measure of another package fails.

    >>> import torch
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> model = nn.Linear(1, 1, bias=False)
    >>> report = analyze(model, "mse", data, measures=["top_eigenvalues"])
    >>> [round(value, 4) for value in report.result("top_eigenvalues").value]
    [5.0]
    """
    settings = (settings or AnalysisSettings()).changed(changes)
    task = as_task(subject, loss, data, test_data)
    session = Session(task, settings, progress)
    results: list[Result] = []
    for done, name in enumerate(settings.measures):
        session.report("analysis", done, len(settings.measures))
        with _named(name):
            results += MEASURES[name].run(session)
    session.report("analysis", len(settings.measures), len(settings.measures))
    return session.make_report(results, command)


@contextmanager
def _named(name: str) -> Generator[None, None, None]:
    """Let an error of a measure from outside name it; flatkit's own stay as they are."""
    try:
        yield
    except Exception as error:  # the code of others may raise anything
        outsider = MEASURES.outsider(name)
        if not outsider or isinstance(error, FlatkitError):
            raise
        raise PluginError(f"{outsider} failed: {type(error).__name__}: {error}") from error


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
        **settings: further arguments of `analyze`.

    Raises:
        InvalidArgumentError: there is none. Further as `analyze`.
    """
    if not subjects:
        raise InvalidArgumentError("compare needs at least one checkpoint, task or report")
    named = subjects.items() if isinstance(subjects, Mapping) else enumerate(subjects, start=1)
    entries: list[Entry] = []
    for key, subject in named:
        report = subject if isinstance(subject, Report) else analyze(subject, **settings)
        name = key if isinstance(key, str) else report.checkpoint.get("name") or f"run {key}"
        entries.append(Entry(name, (groups or {}).get(name, name), report))
    return Comparison(entries)
