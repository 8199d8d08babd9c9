"""From checkpoints to surfaces: objectives, directions, ranges, and files that resume."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from flatkit.checkpoints import Checkpoint
from flatkit.devices import resolve_device
from flatkit.errors import CheckpointError, InvalidArgumentError, ResultError
from flatkit.files import sole_writer
from flatkit.hessian import HessianOperator
from flatkit.landscape.frames import Frame, eigen_frame, given_frame, random_frame
from flatkit.landscape.measure import Preview, Progress, Survey
from flatkit.landscape.settings import LandscapeSettings
from flatkit.landscape.through import Stop, line_between, pca_frame, plane_through
from flatkit.objective import Objective
from flatkit.surfaces import Surface, axis_steps, load_surface
from flatkit.task import Task

_MARGIN = 0.2
"""Of the extent of the checkpoints, added on every side."""


def surveys(checkpoints: Sequence[Checkpoint], settings: LandscapeSettings) -> Iterator[Survey]:
    """Yield what is to be measured: one surface through all checkpoints, or one at each.

    Several checkpoints with random directions are looked at along the same random draws, each
    scaled like its own weights.

    Raises:
        InvalidArgumentError: the settings do not fit the checkpoints.
        CheckpointError: checkpoints of different architectures, or with weights that are not
            finite.
    """
    if settings.directions in ("pca", "checkpoints"):
        yield _through(checkpoints, settings)
        return
    names = _distinct([checkpoint.name for checkpoint in checkpoints])
    for name, checkpoint in zip(names, checkpoints, strict=True):
        yield _at(name, checkpoint, settings)


def survey(
    checkpoints: Sequence[Checkpoint], *, progress: Progress | None = None, **settings: Any
) -> list[Surface]:
    """Return the surfaces of checkpoints; the keyword arguments are those of `LandscapeSettings`.

    Raises:
        InvalidArgumentError: the settings do not fit together or the checkpoints.
        CheckpointError: see `surveys`.
    """
    jobs = surveys(checkpoints, LandscapeSettings(**settings))
    return [job.measure(progress=progress) for job in jobs]


def measure_into(
    path: str | Path,
    job: Survey,
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
        job: one of `surveys`.
        overwrite: forget what is there.
        progress: called after every pass.
        preview: called after every level with what is known so far.

    Raises:
        ResultError: the file, or the journal beside it, is of another job.
        OutputError: another process measures into this file, or it cannot be written.
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


def _finished(path: Path, job: Survey) -> Surface | None:
    """Return the whole surface of a job that is there already, or None."""
    if not path.exists():
        return None
    found = load_surface(path)
    if not found.header.get("complete", True):
        return None
    if found.header.get("fingerprint") != job.fingerprint:
        raise ResultError(
            f"{path} holds a surface that was measured otherwise; pass --overwrite to "
            "replace it, or choose another --out"
        )
    return found


def _measured(
    path: Path,
    journal: Path,
    job: Survey,
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


def _at(name: str, checkpoint: Checkpoint, settings: LandscapeSettings) -> Survey:
    """Return the job of one checkpoint."""
    objectives = _objectives(checkpoint.task(), settings)
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
        hessian = HessianOperator(objective, engine="double_backward")
        frame = eigen_frame(hessian, theta, dimensions=settings.dimensions, seed=settings.seed)
    else:
        frame = given_frame(space, theta, _read_vectors(settings), **chosen)
    return _job(name, [checkpoint], objectives, frame, settings)


def _through(checkpoints: Sequence[Checkpoint], settings: LandscapeSettings) -> Survey:
    """Return the job of a trajectory, or of the line or plane through checkpoints."""
    trajectory = settings.directions == "pca"
    if not trajectory and len(checkpoints) not in (2, 3):
        raise InvalidArgumentError(
            "directions 'checkpoints' go through two (a line) or three (a plane) of them, got "
            f"{len(checkpoints)}; use pca for a trajectory"
        )
    if trajectory and len(checkpoints) < settings.dimensions + 1:
        raise InvalidArgumentError(
            f"directions 'pca' need at least {settings.dimensions + 1} checkpoints of a "
            f"trajectory in {settings.dimensions} dimension(s), got {len(checkpoints)}"
        )
    names = _distinct([checkpoint.name for checkpoint in checkpoints])
    centre = checkpoints[-1] if trajectory else checkpoints[0]
    objectives = _objectives(centre.task(), settings)
    stops = [
        _stop(name, checkpoint, _any(objectives), buffers=not trajectory)
        for name, checkpoint in zip(names, checkpoints, strict=True)
    ]
    if trajectory:
        frame = pca_frame(stops, dimensions=settings.dimensions)
        path = {**(frame.path or {}), "epochs": [checkpoint.epoch for checkpoint in checkpoints]}
        frame = replace(frame, path=path)
        name = Path(centre.path).absolute().parent.name or centre.name
    else:
        frame = line_between(*stops) if len(stops) == 2 else plane_through(*stops)
        name = " – ".join(names)
    return _job(name, checkpoints, objectives, frame, settings)


def _job(
    name: str,
    checkpoints: Sequence[Checkpoint],
    objectives: dict[str, Objective],
    frame: Frame,
    settings: LandscapeSettings,
) -> Survey:
    moving = any(bool((moves[1:] != 0).any()) for moves in (frame.buffers or {}).values())
    usual = "interpolate" if moving else "fixed"
    return Survey(
        objectives,
        frame,
        _axes(frame, settings),
        quantities=_applicable(objectives, settings),
        statistics=settings.statistics or usual,
        refine=settings.refine,
        about={
            "name": name,
            "checkpoints": [
                {"name": c.name, "sha256": c.sha256, "epoch": c.epoch} for c in checkpoints
            ],
        },
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
    found = {}
    for split in settings.splits:
        data = task.data if split == "train" else task.test_data
        if data is None:
            raise InvalidArgumentError("the checkpoint has no test data; leave out the split test")
        samples = settings.samples
        if samples is not None and split == "test":
            samples = min(samples, len(data[0]))
        found[split] = Objective(
            task.model,
            task.loss,
            data,
            samples=samples,
            seed=settings.seed,
            chunk_size=settings.chunk_size,
            dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
            device=resolve_device(settings.device),
        )
    return found


def _applicable(objectives: dict[str, Objective], settings: LandscapeSettings) -> list[Any]:
    """Return the quantities without the accuracy of what is no classifier."""
    objective = _any(objectives)
    chunk = next(objective.chunks())
    with torch.no_grad():
        right = objective.part(objective.outputs(objective.theta, chunk), chunk)[1]
    return [name for name in settings.quantities if name != "accuracy" or right is not None]


def _stop(name: str, checkpoint: Checkpoint, objective: Objective, *, buffers: bool) -> Stop:
    """Return a checkpoint as a point of the objective's space."""
    for tensor, count in checkpoint.non_finite().items():
        raise CheckpointError(
            f"{checkpoint.path} cannot be used: {count} values of {tensor} are NaN or infinite; "
            "leave this checkpoint out"
        )
    model = checkpoint.build_model()
    own = {n: p.detach().to(objective.theta) for n, p in model.named_parameters()}
    wanted = {n: p.shape for n, p in objective.model.named_parameters()}
    for parameter in sorted(own.keys() ^ wanted.keys()):
        where = "has no" if parameter in wanted else "has another"
        raise CheckpointError(
            f"{checkpoint.path} {where} parameter {parameter}: the checkpoints are of different "
            "architectures"
        )
    for parameter, shape in wanted.items():
        if own[parameter].shape != shape:
            raise CheckpointError(
                f"{checkpoint.path} is of another architecture: {parameter} has the shape "
                f"{list(own[parameter].shape)} there and {list(shape)} in the others"
            )
    kept = {
        n: b.detach().to(objective.theta) for n, b in model.named_buffers() if b.is_floating_point()
    }
    return Stop(name, objective.space.flatten(own), kept if buffers else {})


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


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that are used before with a number."""
    found: list[str] = []
    for name in names:
        used = found.count(name) or sum(other.startswith(f"{name} (") for other in found)
        found.append(name if not used else f"{name} ({used + 1})")
    return found
