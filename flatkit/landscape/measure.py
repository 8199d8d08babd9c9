"""From checkpoints and tasks to surfaces: objectives, directions, ranges, and files that resume."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import warn

import numpy

from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError, OutputError, ResultError
from flatkit.files.atomic import sole_writer
from flatkit.files.store import forget
from flatkit.landscape.directions import kind_named
from flatkit.landscape.directions.kind import Kind, Request, ThroughKind
from flatkit.landscape.grids import axis_steps
from flatkit.landscape.job import LandscapeJob, PointsDone, Preview
from flatkit.landscape.settings import POINTS, LandscapeSettings
from flatkit.landscape.subspaces import Subspace
from flatkit.landscape.surface import Surface, load_surface
from flatkit.landscape.waypoints import LoadedWeights, Waypoint, WeightSource, distinct, task_of
from flatkit.objective.function import Objective
from flatkit.objective.task import Task


def plan_landscapes(
    sources: Sequence[WeightSource], settings: LandscapeSettings
) -> Iterator[LandscapeJob]:
    """Yield what is to be measured: one surface through all sources, or one around each.

    Around several, random directions are the same draws, each scaled like its own weights, and
    planes of eigenvectors have one range, the widest that one of them would have alone.

    Args:
        sources: checkpoints that name their model and data, tasks, or functions that make tasks.
            Through several, the data and loss are those of the last of a trajectory, else of the
            first.
        settings: what to measure.

    Raises:
        InvalidArgumentError: the settings do not fit the sources.
        CheckpointError: sources of different architectures, or with weights that are not finite.

    >>> import torch
    >>> from torch import nn
    >>> task = Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)), name="line")
    >>> settings = LandscapeSettings(dimensions=1, points=3)
    >>> [(job.name, job.kind, job.dimensions) for job in plan_landscapes([task, task], settings)]
    [('line', 'random', 1), ('line (2)', 'random', 1)]
    """
    kind = kind_named(settings.directions)
    if isinstance(kind, ThroughKind):
        yield _through(sources, kind, settings)
        return
    if len(sources) > 1:
        settings = _with_one_range(sources, kind, settings)
    names: list[str] = []
    for source in sources:
        task = task_of(source)
        names.append(LoadedWeights.of(task).name)
        yield _around(distinct(names)[-1], task, kind, settings)


@ordinary_torch()
def measure_landscape(
    sources: Sequence[WeightSource], *, progress: PointsDone | None = None, **settings: Any
) -> list[Surface]:
    """Return the surfaces of checkpoints or tasks.

    Args:
        sources: checkpoints that name their model and data, tasks, or functions that make tasks.
        progress: called after every pass.
        **settings: those of `LandscapeSettings`.

    Raises:
        InvalidArgumentError: the settings do not fit together or the sources.
        CheckpointError: sources of different architectures, or with weights that are not finite.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)  # L(w) = w², and the direction is as long as w
    >>> task = Task(model, "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> (line,) = measure_landscape([task], dimensions=1, points=3)
    >>> sorted(line.quantities["loss"].tolist()), sorted(line.quantities["gradient_norm"].tolist())
    ([0.0, 1.0, 4.0], [0.0, 2.0, 4.0])
    """
    given: Any = sources
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InvalidArgumentError(
            f"sources must be a list of checkpoints or tasks, got a {type(given).__name__}; write "
            "[source] where there is one"
        )
    jobs = plan_landscapes(sources, LandscapeSettings(**settings))
    return [job.measure(progress=progress) for job in jobs]


@ordinary_torch()
def measure_into(
    path: str | Path,
    job: LandscapeJob,
    *,
    overwrite: bool = False,
    progress: PointsDone | None = None,
    preview: Preview | None = None,
    note: Callable[[str], object] = warn,
) -> Surface:
    """Return a surface and keep it in a file; a run that was killed goes on where it was.

    While it is measured, a journal lies beside the file and holds every finished point; previews
    are written into the file itself. A surface that is there already is not measured again. Of
    several ranks the first writes.

    Args:
        path: of the `.npz`.
        job: one of `plan_landscapes`.
        overwrite: forget what is there.
        progress: called after every pass.
        preview: called after every level with what is known so far.
        note: is told once if the journal can no longer be written; the surface is measured.

    Raises:
        ResultError: the file, or the journal beside it, is of another job.
        OutputError: another process measures into this file, or it cannot be written.

    >>> import tempfile
    >>> import torch
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
    path, ranks = Path(path), job.ranks
    if not ranks.is_first:
        return _with_the_first(path, job)
    journal = path.with_name(path.name + ".journal")
    # A whole file without a journal is the end of a job: to look at it takes no lock.
    if not overwrite and not journal.exists():
        found = _finished(path, job)
        if found is not None:
            # The others may see no such file: they get what the first one has.
            ranks.from_first(path.read_bytes)
            return found
    with sole_writer(path):
        if overwrite:
            path.unlink(missing_ok=True)
            forget(journal)
        surface = _finished(path, job)  # the other process may have ended just now
        ranks.from_first(lambda: None if surface is None else path.read_bytes())
        if surface is None:
            surface = _measured(path, journal, job, progress, preview, note)
        forget(journal)
    return surface


def _with_the_first(path: Path, job: LandscapeJob) -> Surface:
    """Return the surface that the first rank has in its file, or measure it with that."""
    data = job.ranks.from_first(lambda: None)
    if data is None:
        return job.measure()
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(data)
        return load_surface(copy)


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
    progress: PointsDone | None,
    preview: Preview | None,
    note: Callable[[str], object],
) -> Surface:
    """Measure a surface, save it and its previews; what fails meanwhile is told once."""
    told: list[str] = []

    def tell(text: str) -> None:
        if not told:
            note(text)
        told.append(text)

    def show(surface: Surface) -> None:
        try:
            surface.save(path)
        except OutputError as error:  # there may be room again in the end
            tell(f"{error}; the surface is measured all the same")
        if preview is not None:
            preview(surface)

    surface = job.measure(journal=journal, progress=progress, preview=show, note=tell)
    surface.save(path)
    return surface


def _with_one_range(
    sources: Sequence[WeightSource], kind: Kind, settings: LandscapeSettings
) -> LandscapeSettings:
    """Return settings with a range that suits all sources, so that a flatter one looks flatter.

    Only where steps are lengths and the usual range follows from the weights, which means that the
    directions of each are made once more.
    """
    if settings.x_range is not None or not kind.lengths:
        return settings
    ranges: list[tuple[float, float]] = []
    for source in sources:
        objective = _any(_objectives(task_of(source), settings))
        subspace = kind.make(Request(objective, settings))
        ranges += [kind.usual_range(subspace, n) for n in range(len(subspace.vectors))]
    widest = min(low for low, _ in ranges), max(high for _, high in ranges)
    return replace(settings, x_range=widest)


def _around(name: str, task: Task, kind: Kind, settings: LandscapeSettings) -> LandscapeJob:
    """Return the job of one task."""
    objectives = _objectives(task, settings)
    subspace = kind.make(Request(_any(objectives), settings))
    return _job(name, [LoadedWeights.of(task).origin], objectives, subspace, settings)


def _through(
    sources: Sequence[WeightSource], kind: ThroughKind, settings: LandscapeSettings
) -> LandscapeJob:
    """Return the one job of all the sources."""
    kind.check_count(len(sources), settings.dimensions)
    # -1 is the last: its data, loss and frozen parameters are those of the surface.
    at = kind.centre % len(sources)
    centre = task_of(sources[at])
    objectives = _objectives(centre, settings)
    origins: list[dict[str, Any]] = []
    waypoints: list[Waypoint] = []
    for number, source in enumerate(sources):  # one model at a time is in memory
        weights = LoadedWeights.of(centre if number == at else source)
        origins.append(weights.origin)
        name = distinct([origin["name"] for origin in origins])[-1]
        waypoints.append(weights.waypoint(name, _any(objectives), with_buffers=kind.moves_buffers))
    subspace = kind.make(Request(_any(objectives), settings, waypoints))
    name = kind.surface_name(waypoints, LoadedWeights.of(centre).run)
    return _job(name, origins, objectives, subspace, settings)


def _job(
    name: str,
    origins: Sequence[Mapping[str, Any]],
    objectives: dict[str, Objective],
    subspace: Subspace,
    settings: LandscapeSettings,
) -> LandscapeJob:
    moving = any(bool((moves[1:] != 0).any()) for moves in (subspace.buffers or {}).values())
    usual = "interpolate" if moving else "fixed"
    return LandscapeJob(
        objectives,
        subspace,
        _axes(subspace, settings),
        quantities=_applicable(objectives, settings),
        statistics=settings.statistics or usual,
        refine=settings.refine,
        memory=settings.memory,
        about={"name": name, "checkpoints": list(origins)},
    )


def _axes(subspace: Subspace, settings: LandscapeSettings) -> dict[str, numpy.ndarray]:
    """Return the steps of each axis; checkpoints in the range are among them."""
    names = ("t",) if len(subspace.vectors) == 1 else ("x", "y")
    if len(names) == 1 and settings.y_range is not None:
        raise InvalidArgumentError("y_range does not apply to a line; give `x_range` alone")
    points = settings.points or POINTS[len(names)]
    given = (settings.x_range, settings.y_range or settings.x_range)
    kind = kind_named(settings.directions)
    axes = {}
    for number, name in enumerate(names):
        low, high = given[number] or kind.usual_range(subspace, number)
        exact = sorted({0.0, *(marker["at"][number] for marker in subspace.markers)})
        axes[name] = axis_steps(low, high, points, exact=exact)
    return axes


def _objectives(task: Task, settings: LandscapeSettings) -> dict[str, Objective]:
    return {split: task.objective(settings, split=split) for split in settings.splits}


def _applicable(objectives: dict[str, Objective], settings: LandscapeSettings) -> list[Any]:
    """Return the quantities without the accuracy of what is no classifier."""
    decides = _any(objectives).decision is not None
    # It stands in the usual quantities, and a regression has none.
    return [name for name in settings.quantities if name != "accuracy" or decides]


def _any(objectives: dict[str, Objective]) -> Objective:
    return next(iter(objectives.values()))
