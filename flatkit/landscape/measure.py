"""From checkpoints and tasks to surfaces: objectives, directions, ranges, and files that resume."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.files.atomic import sole_writer
from flatkit.hessian import HessianOperator
from flatkit.landscape.grids import axis_steps
from flatkit.landscape.job import LandscapeJob, Preview, Progress
from flatkit.landscape.settings import LandscapeSettings
from flatkit.landscape.subspaces import Frame, eigen_frame, given_frame, random_frame
from flatkit.landscape.surface import Surface, load_surface
from flatkit.landscape.trajectories import line_between, pca_frame, plane_through
from flatkit.landscape.waypoints import (
    LoadedWeights,
    Subject,
    distinct,
    folder_of,
    origin_of,
    task_of,
)
from flatkit.objective.function import Objective
from flatkit.objective.task import Task

_MARGIN = 0.2
"""Of the extent of the checkpoints, added on every side."""


def plan_landscapes(
    subjects: Sequence[Subject], settings: LandscapeSettings
) -> Iterator[LandscapeJob]:
    """Yield what is to be measured: one surface through all subjects, or one at each.

    Several subjects with random directions are looked at along the same random draws, each scaled
    like its own weights.

    Args:
        subjects: checkpoints that name their model and data, tasks, or functions that make tasks.
            Through several, the data and loss are those of the last of a trajectory, else of the
            first.
        settings: what to measure.

    Raises:
        InvalidArgumentError: the settings do not fit the subjects.
        CheckpointError: subjects of different architectures, or with weights that are not finite.

    >>> from torch import nn
    >>> task = Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)), name="line")
    >>> settings = LandscapeSettings(dimensions=1, points=3)
    >>> [(job.name, job.kind, job.dimensions) for job in plan_landscapes([task, task], settings)]
    [('line', 'random', 1), ('line (2)', 'random', 1)]
    """
    if settings.directions in ("pca", "checkpoints"):
        yield _through(subjects, settings)
        return
    names: list[str] = []
    for subject in subjects:
        task = task_of(subject)
        names.append(origin_of(task)["name"])
        yield _at(distinct(names)[-1], task, settings)


def measure_landscape(
    subjects: Sequence[Subject], *, progress: Progress | None = None, **settings: Any
) -> list[Surface]:
    """Return the surfaces of subjects; the keyword arguments are those of `LandscapeSettings`.

    Raises:
        InvalidArgumentError: the settings do not fit together or the subjects.
        CheckpointError: see `plan_landscapes`.

    >>> from torch import nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)  # L(w) = w², and the direction is as long as w
    >>> task = Task(model, "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> (line,) = measure_landscape([task], dimensions=1, points=3)
    >>> sorted(line.quantities["loss"].tolist()), sorted(line.quantities["gradient_norm"].tolist())
    ([0.0, 1.0, 4.0], [0.0, 2.0, 4.0])
    """
    jobs = plan_landscapes(subjects, LandscapeSettings(**settings))
    return [job.measure(progress=progress) for job in jobs]


def measure_into(
    path: str | Path,
    job: LandscapeJob,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    preview: Preview | None = None,
) -> Surface:
    """Return a surface and keep it in a file; a run that was killed goes on where it was.

    While it is measured, a journal lies beside the file and holds every finished point; previews
    are written into the file itself. A surface that is there already is not measured again.

    Args:
        path: of the `.npz`.
        job: one of `plan_landscapes`.
        overwrite: forget what is there.
        progress: called after every pass.
        preview: called after every level with what is known so far.

    Raises:
        ResultError: the file, or the journal beside it, is of another job.
        OutputError: another process measures into this file, or it cannot be written.

    >>> import tempfile
    >>> from torch import nn
    >>> task = Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    >>> (job,) = plan_landscapes([task], LandscapeSettings(dimensions=1, points=3))
    >>> path = Path(tempfile.mkdtemp()) / "line.npz"
    >>> surface = measure_into(path, job, progress=lambda done, total: print(done, "of", total))
    1 of 3
    2 of 3
    3 of 3
    >>> again = measure_into(path, job, progress=print)  # nothing is left to measure
    >>> numpy.array_equal(again.quantities["loss"], surface.quantities["loss"])
    True
    """
    path = Path(path)
    journal = path.with_name(path.name + ".journal")
    if not overwrite and not journal.exists():
        found = _finished(path, job)
        if found is not None:
            return found
    with sole_writer(path):
        if overwrite:
            for old in (path, journal):
                old.unlink(missing_ok=True)
        surface = _finished(path, job)  # the other process may have ended just now
        if surface is None:
            surface = _measured(path, journal, job, progress, preview)
        journal.unlink(missing_ok=True)
    return surface


def _finished(path: Path, job: LandscapeJob) -> Surface | None:
    """Return the whole surface of a job that is there already, or None."""
    if not path.exists():
        return None
    found = load_surface(path)
    if not found.header.get("complete", True):
        return None
    if found.header.get("fingerprint") != job.fingerprint:
        raise ResultError(
            f"{path} holds a surface that was measured otherwise; pass `overwrite` to "
            "replace it, or choose another `out`"
        )
    return found


def _measured(
    path: Path,
    journal: Path,
    job: LandscapeJob,
    progress: Progress | None,
    preview: Preview | None,
) -> Surface:
    """Measure a surface, save it and its previews."""

    def show(surface: Surface) -> None:
        surface.save(path)
        if preview is not None:
            preview(surface)

    surface = job.measure(journal=journal, progress=progress, preview=show)
    surface.save(path)
    return surface


def _at(name: str, task: Task, settings: LandscapeSettings) -> LandscapeJob:
    """Return the job of one task."""
    objectives = _objectives(task, settings)
    objective = _any(objectives)
    space, theta = objective.space, objective.theta
    scaling = {"normalization": settings.normalization, "one_dimensional": settings.one_dimensional}
    chosen: dict[str, Any] = {key: value for key, value in scaling.items() if value is not None}
    if settings.directions == "random":
        frame = random_frame(
            space, theta, dimensions=settings.dimensions, seed=settings.seed, **chosen
        )
    elif settings.directions == "eigenvectors":
        # By name: `auto` looks at the clock, and a job that goes on must find the same vectors.
        hessian = HessianOperator(objective, engine="double_backward", memory=settings.memory)
        frame = eigen_frame(hessian, theta, dimensions=settings.dimensions, seed=settings.seed)
    else:
        frame = given_frame(space, theta, _read_vectors(settings), **chosen)
    return _job(name, [origin_of(task)], objectives, frame, settings)


def _through(subjects: Sequence[Subject], settings: LandscapeSettings) -> LandscapeJob:
    """Return the job of a trajectory, or of the line or plane through subjects."""
    trajectory = settings.directions == "pca"
    _check_number(len(subjects), settings)
    at = len(subjects) - 1 if trajectory else 0
    centre = task_of(subjects[at])
    objectives = _objectives(centre, settings)
    stops, origins = [], []
    for number, subject in enumerate(subjects):
        place = LoadedWeights.of(centre if number == at else subject)
        origins.append(place.origin)
        name = distinct([origin["name"] for origin in origins])[-1]
        stops.append(place.stop(name, _any(objectives), buffers=not trajectory))
    if trajectory:
        frame = pca_frame(stops, dimensions=settings.dimensions)
        epochs = [origin["epoch"] for origin in origins]
        known = {} if None in epochs else {"epochs": epochs}
        frame = replace(frame, path={**(frame.path or {}), **known})
        name = folder_of(centre)
    else:
        frame = line_between(*stops) if len(stops) == 2 else plane_through(*stops)
        name = " – ".join(stop.name for stop in stops)
    return _job(name, origins, objectives, frame, settings)


def _check_number(count: int, settings: LandscapeSettings) -> None:
    """Refuse too few or too many subjects for a trajectory, line or plane."""
    if settings.directions != "pca" and count not in (2, 3):
        raise InvalidArgumentError(
            "directions 'checkpoints' go through two (a line) or three (a plane) of them, got "
            f"{count}; use pca for a trajectory"
        )
    if settings.directions == "pca" and count < settings.dimensions + 1:
        raise InvalidArgumentError(
            f"directions 'pca' need at least {settings.dimensions + 1} checkpoints of a "
            f"trajectory in {settings.dimensions} dimension(s), got {count}"
        )


def _job(
    name: str,
    origins: Sequence[Mapping[str, Any]],
    objectives: dict[str, Objective],
    frame: Frame,
    settings: LandscapeSettings,
) -> LandscapeJob:
    moving = any(bool((moves[1:] != 0).any()) for moves in (frame.buffers or {}).values())
    usual = "interpolate" if moving else "fixed"
    return LandscapeJob(
        objectives,
        frame,
        _axes(frame, settings),
        quantities=_applicable(objectives, settings),
        statistics=settings.statistics or usual,
        refine=settings.refine,
        memory=settings.memory,
        about={"name": name, "checkpoints": list(origins)},
    )


def _axes(frame: Frame, settings: LandscapeSettings) -> dict[str, numpy.ndarray]:
    """Return the steps of each axis; checkpoints in the range are among them."""
    assert settings.points is not None
    points = settings.points
    names = ("t",) if len(frame.vectors) == 1 else ("x", "y")
    if len(names) == 1 and settings.y_range is not None:
        raise InvalidArgumentError("y_range does not apply to a line; give x_range alone")
    if len(names) == 1 and settings.dimensions == 2:
        points = 51 if points == 21 else points  # two checkpoints make a line
    given = (settings.x_range, settings.y_range or settings.x_range)
    axes = {}
    for number, name in enumerate(names):
        low, high = given[number] or _usual_range(frame, number)
        exact = sorted({0.0, *(marker["at"][number] for marker in frame.markers)})
        axes[name] = axis_steps(low, high, points, exact=exact)
    return axes


def _usual_range(frame: Frame, number: int) -> tuple[float, float]:
    if frame.kind == "eigenvectors":
        largest = max(abs(value) for value in frame.settings["eigenvalues"])
        reach = math.sqrt(2 / largest) if largest > 0 else 1.0
        return -reach, reach
    if frame.kind in ("random", "given"):
        return -1.0, 1.0
    places = [marker["at"] for marker in frame.markers] if frame.path is None else frame.path["at"]
    all_places = numpy.array(places)
    low, high = all_places[:, number].min(), all_places[:, number].max()
    # One margin for all axes: a flat trajectory still shows what lies beside it.
    margin = _MARGIN * float(numpy.ptp(all_places, axis=0).max())
    return float(low) - margin, float(high) + margin


def _objectives(task: Task, settings: LandscapeSettings) -> dict[str, Objective]:
    return {split: task.objective(settings, split=split) for split in settings.splits}


def _applicable(objectives: dict[str, Objective], settings: LandscapeSettings) -> list[Any]:
    """Return the quantities without the accuracy of what is no classifier."""
    objective = _any(objectives)
    chunk = next(objective.chunks())
    with torch.no_grad():
        right = objective.part(objective.outputs(objective.theta, chunk), chunk)[1]
    return [name for name in settings.quantities if name != "accuracy" or right is not None]


def _read_vectors(settings: LandscapeSettings) -> torch.Tensor:
    path = settings.vectors
    assert path is not None
    try:
        array = numpy.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InvalidArgumentError(f"cannot read {path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InvalidArgumentError(f"{path} is no .npy file of numbers ({error})") from error
    if not isinstance(array, numpy.ndarray) or array.dtype.kind not in "fiu":
        raise InvalidArgumentError(f"{path} must hold one array of real numbers, see numpy.save")
    return torch.from_numpy(array.astype(numpy.float64))


def _any(objectives: dict[str, Objective]) -> Objective:
    return next(iter(objectives.values()))
