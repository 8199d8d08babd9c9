"""`analyze` and `plan`: measures run on a checkpoint, and what that will take."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.task_file import as_task
from flatkit.devices import ordinary_torch
from flatkit.errors import InterruptedAnalysis, InvalidArgumentError
from flatkit.files.store import Store
from flatkit.measures.effort import EffortSettings
from flatkit.measures.journal import kept
from flatkit.measures.registry import MEASURES
from flatkit.measures.rescaling import rescalable
from flatkit.measures.schedule import Limit, Schedule
from flatkit.measures.session import Session
from flatkit.measures.settings import DEFAULT_MEASURES, AnalysisSettings, chosen
from flatkit.measures.watching import Progress, Watcher, watcher_of
from flatkit.objective.losses import LossFunction
from flatkit.objective.narrowing import name_of_dtype
from flatkit.objective.task import Task
from flatkit.results.report import Report

_SHORT = 60.0
"""Seconds up to which a finished analysis is repeated sooner than its journal is worth keeping."""

Subject: TypeAlias = Task | Checkpoint | str | Path


@ordinary_torch()
def analyze(
    subject: Subject | nn.Module,
    loss: LossFunction | str | None = None,
    data: Any = None,
    *,
    test_data: Any = None,
    settings: AnalysisSettings | None = None,
    progress: Progress | Watcher | bool | None = None,
    command: Sequence[str] = (),
    journal: str | Path | None = None,
    fresh: bool = False,
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
        progress: called as the measures advance, with name, steps done and steps in all; by default
            a live table in a terminal and a notebook; False for none.
        command: kept in the report.
        journal: a file in which passes that take long are kept, so that the same call goes on after
            it was stopped, with more budget, or for other measures. It is removed where all was
            done within a minute, and where no pass took long, also after a failure.
        fresh: forget what the journal holds.
        **changes: single settings by name, e.g. `rho=[0.05], dtype="float64"`.

    Returns:
        Report with a `Result` per measure (and radius, and split).

    Raises:
        CheckpointError: the file cannot be read.
        InvalidArgumentError: a setting is out of range.
        NonFiniteError: weights, loss or gradient are NaN or infinite.
        NonDeterministicError: the model gives different values at one point.
        PluginError: a measure of another package fails.
        InterruptedAnalysis: Ctrl-C; what was measured until then is its `report`.

    >>> import torch
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> model = nn.Linear(1, 1, bias=False)
    >>> report = analyze(model, "mse", data, measures=["top_eigenvalues"])
    >>> [round(value, 4) for value in report.result("top_eigenvalues").value]
    [5.0]
    """
    settings = chosen(settings, changes)
    effort, started = settings.of(EffortSettings), time.monotonic()
    task = as_task(subject, loss, data, test_data)
    session = Session(task, settings, progress if callable(progress) else None)
    limit = Limit(effort.budget or math.inf, started + effort.seconds)
    schedule, ranks = Schedule(session, limit), session.objective.ranks
    watcher = watcher_of(progress if ranks.is_first else False)
    # A pass that one rank alone begins would never end.
    if ranks.count > 1:  # it makes what all share, and a watcher of the first would ask for it
        _ = schedule.forecast
    if effort.time is not None:
        ranks.decided(lambda: _check_time(schedule, effort.seconds))
    with nullcontext() if journal is None else kept(session, journal, fresh=fresh) as store:
        try:
            watcher.begin(schedule)
            schedule.run(watcher.look)
        except KeyboardInterrupt:
            schedule.interrupt()
            raise InterruptedAnalysis(_report(schedule, command, store)) from None
        finally:
            watcher.end(schedule)
        # What is not done is kept however short it was: the next call goes on.
        if store is not None and schedule.ended == "done" and _is_short(schedule):
            store.remove()
        return _report(schedule, command, store)


@ordinary_torch()
def plan(
    subject: Subject | nn.Module,
    loss: LossFunction | str | None = None,
    data: Any = None,
    *,
    settings: AnalysisSettings | None = None,
    **changes: Any,
) -> Schedule:
    """Return what `analyze` would do, with the `forecast` of its time and memory.

    Cost: the examination, and the gradients of about 50 samples.

    Args:
        subject: a model, a task or a checkpoint, as of `analyze`.
        loss: the loss of a model.
        data: the training data of a model.
        settings: what would be measured and how.
        **changes: single settings by name.

    Raises:
        InvalidArgumentError: as `analyze`.

    >>> import torch
    >>> data = (torch.ones(8, 1), torch.zeros(8, 1))
    >>> schedule = plan(nn.Linear(1, 1), "mse", data, measures=["loss", "gradient_norm"])
    >>> round(schedule.forecast.gradients, 2)
    1.33
    """
    settings = chosen(settings, changes)
    effort, started = settings.of(EffortSettings), time.monotonic()
    session = Session(as_task(subject, loss, data), settings)
    return Schedule(session, Limit(effort.budget or math.inf, started + effort.seconds))


def _report(schedule: Schedule, command: Sequence[str], store: Store | None) -> Report:
    failed = {"journal_failed": store.failed} if store is not None and store.failed else {}
    count = schedule.session.objective.ranks.count
    sent = schedule.session.objective.ranks.sent
    shared = {"processes": count, "bytes_sent": sent} if count > 1 else {}
    about = {**schedule.describe(), **shared, **failed, **_left_out(schedule.session)}
    results, objective = schedule.results(), schedule.session.objective
    if objective.by_itself:  # a number that is taken out of its report is to say so too
        own = {"computed_in": name_of_dtype(objective)}
        results = [replace(result, settings={**result.settings, **own}) for result in results]
    report = schedule.session.make_report(results, command, about)
    kinds = rescalable(objective)
    return replace(report, objective={**report.objective, "rescalable": kinds}) if kinds else report


def _left_out(session: Session) -> dict[str, Any]:
    """Return which of the usual measures were not asked for, as they have no bar for 16 bits."""
    able = tuple(name for name in DEFAULT_MEASURES if MEASURES[name].in_bfloat16)
    if session.objective.narrow is None or session.settings.measures != able:
        return {}
    return {"not_in_bfloat16": [name for name in DEFAULT_MEASURES if name not in able]}


def _is_short(schedule: Schedule) -> bool:
    return time.monotonic() - schedule.started < _SHORT


def _check_time(schedule: Schedule, seconds: float) -> None:
    """Refuse a time in which not even the first numbers are there."""
    forecast, begun = schedule.forecast, schedule.session.seconds_of_setup
    needed = begun + forecast.loss + forecast.gradient
    if seconds < needed:
        raise InvalidArgumentError(
            f"time must be at least {math.ceil(needed)}s here, got {seconds:g}s: so long take the "
            f"examination and the first numbers ({forecast.gradient:.2g} s a gradient over "
            f"{forecast.samples:,} samples; fewer `samples` take less)"
        )
