"""Measure a surface: point by point from coarse to fine, resumable, refined where it bends."""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import warn

import numpy
import torch

from flatkit.landscape.evaluate import Evaluator, Values, batches, evaluator
from flatkit.landscape.journal import Journal, Point
from flatkit.landscape.refinement import Refinement
from flatkit.landscape.settings import Quantity, Statistics
from flatkit.landscape.subspaces import Subspace
from flatkit.landscape.surface import Surface
from flatkit.objective.function import Objective
from flatkit.objective.pytree import leaves
from flatkit.results.names import showable
from flatkit.version import __version__

PointsDone = Callable[[int, int], object]
"""Called with the points done and the points in all, as far as they are known."""

Preview = Callable[[Surface], object]
"""Called after every level but the last with what is known, the rest interpolated."""


class LandscapeJob:
    """A line or plane to be measured.

    Args:
        objectives: `train` or `test` or both; the names of quantities over the latter start with
            `test_`.
        subspace: the centre and the directions; or what makes the same ones each time, which of a
            large network are not held but while a pass is measured.
        axes: `{"t": [n]}` for one direction, `{"x": [nx], "y": [ny]}` for two.
        quantities: of `loss`, `accuracy` (of classifiers), `gradient_norm`, `top_eigenvalue`.
        statistics: of BatchNorm: `fixed`, `reestimate` (on the training samples if they are
            there) or `interpolate`.
        refine: None for every point; else the miss that `Refinement` tolerates.
        memory: bytes that a Hessian-vector product may hold.
        about: put into the header of the surface, ready for JSON.

    Attributes:
        name: what is looked at.
        kind: of the directions.
        axes: name -> steps.
        ranks: among which points are handed out.
        objectives: as given.
        quantities: as given.
        batch: points that are measured at once.

    Raises:
        InvalidArgumentError: the arguments do not fit together.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ²
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> subspace = Subspace("given", torch.zeros(1), torch.ones(1, 1))
    >>> job = LandscapeJob({"train": objective}, subspace, {"t": numpy.arange(3.0)})
    >>> job.measure().quantities["loss"]
    array([0., 1., 4.])
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        subspace: Subspace | Callable[[], Subspace],
        axes: Mapping[str, numpy.ndarray],
        *,
        quantities: Sequence[Quantity] = ("loss",),
        statistics: Statistics = "fixed",
        refine: float | None = None,
        memory: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._subspace = (lambda: subspace) if isinstance(subspace, Subspace) else subspace
        self.axes, self._refine = axes, refine
        self._statistics: Statistics = statistics
        self.ranks = next(iter(objectives.values())).ranks
        self._alone = {split: objective.alone() for split, objective in objectives.items()}
        self.objectives, self.quantities = objectives, tuple(quantities)
        self._memory, self._batched, now = memory, True, self._subspace()
        self.name, self.kind = str((about or {}).get("name", "surface")), now.kind
        self._markers, self._path = now.markers, now.path
        evaluators = self._evaluators_of(now)
        self._batched = any(each.batch > 1 for each in evaluators.values())
        # The smaller one: a point goes with the same others through both.
        self.batch = min(each.batch for each in evaluators.values())
        self._evaluation = {
            split: {"points_at_once": each.batch, "reason": each.reason}
            for split, each in evaluators.items()
        }
        self._evaluators = evaluators if isinstance(subspace, Subspace) else None
        self._header: dict[str, Any] = {
            **(about or {}),
            "directions": now.describe(),
            "objective": {split: _timeless(o.describe()) for split, o in objectives.items()},
            "statistics": statistics,
            "refine": refine,
        }

    def _evaluators_of(self, subspace: Subspace) -> dict[str, Evaluator]:
        return {
            split: evaluator(
                objective,
                subspace.centre,
                subspace.vectors,
                quantities=self.quantities,
                statistics=self._statistics,
                buffers=subspace.buffers,
                estimate_on=self._alone.get("train"),
                memory=self._memory,
                batched=self._batched,
            )
            for split, objective in self._alone.items()
        }

    @contextmanager
    def holding(self) -> Generator[None]:
        """Hold the directions meanwhile, where they are made when they are needed."""
        before, self._evaluators = self._evaluators, self._evaluators_now
        try:
            yield
        finally:
            self._evaluators = before

    @property
    def _evaluators_now(self) -> dict[str, Evaluator]:
        return self._evaluators or self._evaluators_of(self._subspace())

    @cached_property
    def job(self) -> dict[str, Any]:
        """All that the values depend on, ready for JSON."""
        found: dict[str, Any] = {
            "flatkit": __version__,
            "torch": torch.__version__,
            **self._header,
            "quantities": list(self.quantities),
            "axes": {name: steps.tolist() for name, steps in self.axes.items()},
            # Points that go through together share how sums are rounded.
            "batch": self.batch,
            "tensors": _digest(self._subspace(), self._alone),
        }
        found["objective"] = {
            split: {key: part for key, part in described.items() if key != "examination"}
            for split, described in self._header["objective"].items()
        }
        if self._memory is not None:  # it splits the products, and so changes their rounding
            found["memory"] = self._memory
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A digest of `job`."""
        return hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()

    @property
    def num_points(self) -> int:
        """How many points there are in all."""
        return math.prod(len(steps) for steps in self.axes.values())

    @property
    def dimensions(self) -> int:
        """1 or 2."""
        return len(self.axes)

    def measure(
        self,
        *,
        journal: str | Path | None = None,
        progress: PointsDone | None = None,
        preview: Preview | None = None,
        note: Callable[[str], object] = warn,
    ) -> Surface:
        """Return the surface.

        Where there is a preview or a journal, points go from coarse to fine, so that a picture of
        the whole exists early. With a journal every finished pass is kept at once: the same job
        after a kill takes finished points from it and gives the same bits. Memory beyond the
        numbers themselves does not depend on the number of points.

        Args:
            journal: a file that is made, and is left to the caller to remove.
            progress: called after every new pass.
            preview: called after every level but the last.
            note: is told once if the journal can no longer be written; the surface is measured.

        Raises:
            ResultError: the journal belongs to another job.
        """
        self.ranks.check_alike(self.job if self.ranks.count > 1 else {})
        looked_at = self.ranks.decided(lambda: preview is not None or journal is not None)
        points = Refinement(self.axes, tolerance=self._refine, coarse_first=looked_at)
        own = (
            None if journal is None or not self.ranks.is_first else Journal(journal, self.job, note)
        )
        with own or nullcontext() as kept, self.holding():
            for todo in points.levels():
                before = int(points.measured.sum())
                # Where it is refined, how many more points come is known only after this level.
                total = before + len(todo) if self._refine else points.measured.size
                parts = list(batches(todo, self.batch))
                known = self._known(parts, kept)
                new = self.values_of(
                    [p for p, found in zip(parts, known, strict=True) if not found]
                )
                for number, (part, found) in enumerate(zip(parts, known, strict=True)):
                    if found is None:
                        found = next(new)
                        if kept is not None:
                            kept.add(part, found)
                        if progress is not None:
                            progress(before + number * self.batch + len(part), total)
                    for point, values in zip(part, found, strict=True):
                        points.put(point, values)
                if preview is not None and not points.measured.all():
                    preview(self._surface(points, complete=False))
        return self._surface(points, complete=True)

    def growing(self, *, coarsest: int = 1) -> "GrowingSurface":
        """Return the surface as one that is measured from coarse to fine.

        Args:
            coarsest: the intervals of the first level to each side, about.
        """
        return GrowingSurface(self, coarsest)

    def _known(self, parts: Sequence[Any], kept: Journal | None) -> list[list[Values] | None]:
        """Return the values of passes that the journal of the first rank holds."""
        if kept is None and self.ranks.count == 1:
            return [None] * len(parts)
        return self.ranks.decided(lambda: [kept and kept.find(part) for part in parts])

    def values_of(self, parts: Sequence[Sequence[Point]]) -> Iterator[list[Values]]:
        """Yield the values of passes, in order; of several ranks each makes those that it takes."""
        if self.ranks.count == 1:
            yield from map(self.values_at, parts)
            return

        def work(number: int) -> tuple[list[Values], dict[str, dict[str, int]]]:
            before = {split: each.cost for split, each in self._alone.items()}
            values = self.values_at(parts[number])
            spent = {split: each.cost - before[split] for split, each in self._alone.items()}
            return values, {split: cost.counts() for split, cost in spent.items()}

        for values, spent in self.ranks.hand_out(len(parts), work):
            for split, counts in spent.items():
                self.objectives[split].count(**counts)
            yield values

    def values_at(self, part: Sequence[Point]) -> list[Values]:
        """Measure the points of a pass, given as indices [.., j, i]."""
        axes = list(self.axes.values())
        steps = [
            [float(axis[i]) for axis, i in zip(axes, reversed(point), strict=True)]
            for point in part
        ]
        rows: list[Values] = [{} for _ in part]
        for split, each in self._evaluators_now.items():
            prefix = "" if split == "train" else f"{split}_"
            for row, values in zip(rows, each.values(steps), strict=True):
                row |= {prefix + name: value for name, value in values.items()}
        return rows

    def _surface(self, points: Refinement, *, complete: bool) -> Surface:
        values = {name: points.filled(name) for name in points.values}
        header = self.about(points.measured, complete=complete)
        return Surface(self.axes, values, header, points.measured.copy())

    def about(self, measured: numpy.ndarray, *, complete: bool) -> dict[str, Any]:
        """Return the header of a surface."""
        return {
            "fingerprint": self.fingerprint,
            **self._header,
            "markers": [{**each, "name": showable(each["name"])} for each in self._markers],
            **({} if self._path is None else {"path": dict(self._path)}),
            "evaluation": self._evaluation,
            "complete": complete,
            "points_measured": int(measured.sum()),
        }


class GrowingSurface:
    """A surface that is measured level by level, each a part of the next, and can be had at each.

    Args:
        job: what is measured; every point of it, in the end.
        coarsest: the intervals of the first level to each side, about.

    Attributes:
        num_levels: the first has few points along an axis, the last has all.
        known: the finest level that is measured whole; -1 before the first.

    >>> from torch import nn
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", (torch.ones(1, 1),) * 2)
    >>> subspace = Subspace("given", torch.ones(1), torch.ones(1, 1))  # L = t² from there
    >>> job = LandscapeJob({"train": objective}, subspace, {"t": numpy.linspace(-1.0, 1.0, 5)})
    >>> surface = job.growing()
    >>> passes = len(list(surface.measure(0)))
    >>> surface.at(0).quantities["loss"]
    array([1., 0., 1.])
    """

    def __init__(self, job: LandscapeJob, coarsest: int = 1) -> None:
        self._job, self._points = job, Refinement(job.axes, coarsest=coarsest)
        self._parts = [list(batches(todo, job.batch)) for todo in self._points.levels()]
        self.num_levels, self.known = len(self._parts), -1

    def measure(self, level: int) -> Iterator[int]:
        """Measure what a level adds to those before; yield how many are new, pass by pass."""
        # Of several ranks each takes one, so that it can stop as soon as a single process.
        for group in batches(self._parts[level], self._job.ranks.count):
            for part, found in zip(group, self._job.values_of(group), strict=True):
                for point, values in zip(part, found, strict=True):
                    self._points.put(point, values)
                if part is self._parts[level][-1]:
                    self.known = level
                yield len(part)

    def at(self, level: int) -> Surface:
        """Return a level that was measured, as a surface of its own steps."""
        points, grid = self._points, self._points.grid(level)
        values = {name: found[numpy.ix_(*grid)] for name, found in points.values.items()}
        axes = {
            name: steps[list(indices)]
            for (name, steps), indices in zip(self._job.axes.items(), reversed(grid), strict=True)
        }
        measured = numpy.ones([len(part) for part in grid], bool)
        header = self._job.about(measured, complete=measured.shape == points.shape)
        return Surface(axes, values, header, measured)


def _timeless(described: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of an objective without times: the same job writes the same file."""
    checks = [{**check} for check in described["examination"]]
    for check in checks:
        del check["seconds"]
    return {**described, "examination": checks}


def _digest(subspace: Subspace, objectives: Mapping[str, Objective]) -> str:
    """Return a digest of the weights, directions, buffers and samples."""
    digest = hashlib.sha256()
    buffers = subspace.buffers or {}
    tensors = [subspace.centre, subspace.vectors, *(buffers[name] for name in sorted(buffers))]
    for objective in objectives.values():
        tensors += objective.model.buffers()
        for chunk in objective.chunks():
            tensors += [*leaves(chunk.inputs), *leaves(chunk.targets)]
    for tensor in tensors:
        # By way of bytes: NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
