"""What a study will take: an epoch of every arm is trained, and its analysis planned."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatkit.checkpoints.parts import Parts
from flatkit.comparison.workers import usable_cores
from flatkit.devices import free_bytes
from flatkit.measures.effort import EffortSettings
from flatkit.studies.runs import study_runs, tuning_runs
from flatkit.studies.settings import Study

if TYPE_CHECKING:
    from flatkit.measures.schedule import Schedule
    from flatkit.objective.task import Task


_LONG = 2.0
"""Seconds of an epoch that is timed as it is."""


@dataclass(frozen=True)
class StudyForecast:
    """What a study will take.

    Attributes:
        runs: that are trained and measured.
        tuning: runs beside them that only choose values.
        seconds: in all, by `jobs` at once.
        training: seconds of one process for all trainings.
        analysis: seconds of one process for all analyses.
        jobs: how many runs at once.
        memory: bytes that the largest analysis holds, of each of the jobs.
    """

    runs: int
    tuning: int
    seconds: float
    training: float
    analysis: float
    jobs: int
    memory: int


def forecast(
    study: Study, *, jobs: int | None = None, progress: Callable[[str], object] | None = None
) -> StudyForecast:
    """Return what a study will take. Cost: an epoch of every arm in every condition.

    Args:
        study: what is asked; trained by flatkit, as nothing is known of the functions of others.
        jobs: how many runs at once; by default as there are cores.
        progress: told the name of every arm that is timed.

    Raises:
        InvalidArgumentError: as `study`.
    """
    from flatkit.measures.report import plan

    jobs = jobs or usable_cores()
    training = analysis = 0.0
    largest = 0
    for condition, arm in product(study.conditions, study.arms):
        if progress is not None:
            progress(arm.name)
        # One seed and one variant stand for all: they differ in values, and hardly in time.
        settings = study.training(condition, arm, study.seeds[0], arm.variants()[0])
        epochs, every = settings["epochs"], settings["save_every"]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, trained = _timed(settings, Path(folder) / "run")
            subject = _subject(checkpoint, study.task_of(settings))
            whole = plan(subject, **study.analysis)
            seconds = _seconds(whole)
            if study.pictures:
                first = plan(subject, **study.analysis_of(study.seeds[0]))
                # Pictures are drawn of the first seed alone,
                # and forecasts of two plans differ by noise.
                analysis += max(0.0, _seconds(first) - seconds)
            largest = max(largest, whole.forecast.memory)
            if study.matched and every:
                measures = ["loss", *(name for name in study.matched if name != "loss")]
                fewer: dict[str, Any] = {**study.analysis, "measures": measures}
                part = plan(subject, **fewer)
                seconds += _seconds(part) * (epochs // every)
        tuned = len(arm.variants()) * study.tuning_seeds if arm.tune else 0
        training += trained * (len(study.seeds) + tuned)
        analysis += seconds * len(study.seeds)
    runs = len(study_runs(study, {}))
    tuning = len(tuning_runs(study))
    # No more processes than runs are at work.
    together = (training + analysis) / min(jobs, max(1, runs))
    return StudyForecast(runs, tuning, together, training, analysis, jobs, largest)


def _timed(settings: Mapping[str, Any], folder: Path) -> tuple[Path, float]:
    """Return a checkpoint of few epochs, and the seconds that all of them will take."""
    from flatkit.training.config import TrainingConfig
    from flatkit.training.run import train

    few: dict[str, Any] = {**settings, "epochs": 1, "save_every": 0, "log": (), "warmup": 0}
    steps: list[float] = []
    outcome = train(
        TrainingConfig(**few), folder, on_step=lambda *_: steps.append(time.perf_counter())
    )
    epoch = last = outcome.history[0].seconds
    if epoch < _LONG:  # the first epoch of all wakes many things up
        few |= {"epochs": 4, "evaluate_every": 4}
        outcome = train(TrainingConfig(**few), folder, overwrite=True)
        *seconds, last = (row.seconds for row in outcome.history)
        # The median, without the first: what wakes up late, or another program, moves no median.
        epoch = statistics.median(seconds[1:])
    elif len(steps) > 1:  # what is left of the epoch is its evaluation
        epoch = (steps[-1] - steps[0]) * len(steps) / (len(steps) - 1)
    evaluations = math.ceil(settings["epochs"] / settings["evaluate_every"])
    evaluation = max(0.0, last - epoch)
    return outcome.checkpoint, epoch * settings["epochs"] + evaluation * evaluations


def _subject(checkpoint: Path, task: str) -> "Path | Task":
    from flatkit.checkpoints.loading import load
    from flatkit.checkpoints.task_file import assemble

    return assemble(load(checkpoint), Parts(task=task)) if task else checkpoint


def _seconds(schedule: "Schedule") -> float:
    """Return how long an analysis takes, its examination included."""
    effort = schedule.session.own(EffortSettings)
    found = schedule.forecast
    spent = found.within(schedule.limit.gradients, effort.seconds)
    return schedule.session.seconds_of_setup + found.seconds(spent)


def jobs_that_fit(found: StudyForecast) -> int:
    """Return how many runs at once memory allows, at most as many as were asked for.

    >>> jobs_that_fit(StudyForecast(9, 0, 1.0, 1.0, 1.0, 2, 1_000_000))
    2
    """
    import torch

    free = free_bytes(torch.device("cpu"))
    # A fifth is left to what else runs.
    return max(1, min(found.jobs, int(0.8 * free / max(1, found.memory)))) if free else found.jobs
