"""Loss, accuracy and gradient norm along random directions through the checkpoint."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy

from flatkit.checks import check_count, check_odd, check_positive
from flatkit.landscape.surface import Surface
from flatkit.measures.base import Draft, Measure
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.cost import Cost
from flatkit.results.result import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from torch import Generator

    from flatkit.landscape.job import GrowingSurface, LandscapeJob
    from flatkit.landscape.settings import Quantity
    from flatkit.landscape.subspaces import Subspace
    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class ExtentSettings:
    """How far slices and planes reach."""

    extent: float = setting(
        1.0,
        "Slices and planes reach this many lengths of the weights to each side.",
        check=check_positive,
        group="Landscape",
    )


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """The points of the slice."""

    slice_points: int = setting(31, "Steps of a slice, odd.", check=check_odd, group="Landscape")
    slice_directions: int = setting(
        5,
        "Random directions of the slice.",
        check=partial(check_count, minimum=2),
        group="Landscape",
    )


_Rows: TypeAlias = list[list[float | None]]
"""Of each direction the values at the steps."""

_FEWEST = 2
"""Directions that show a spread, and those of the first look."""
_QUANTITIES: "tuple[Quantity, ...]" = ("loss", "accuracy", "gradient_norm")
_CHEAP: "tuple[Quantity, ...]" = ("loss", "accuracy")
"""What the first look shows."""
_COARSEST = 2
"""Intervals of the first look to each side, about."""
_LARGE = 2**20
"""Parameters from which on directions are drawn again for each pass: they have no room beside the
searches, and a draw takes far less than a value of the loss."""


def run(session: "Session") -> Iterator[Draft]:
    """Measure along filter-normalised directions from coarse to fine, with errors over them.

    A first look at few points of two directions leaves out the gradient norm, which takes three
    times as long.
    """
    own, generator = session.own(SliceSettings), session.generator("slice")
    number, points = own.slice_directions, own.slice_points
    with session.meter() as cost:
        # In the order of the draws, so that more directions later leave the first ones as they are.
        drawn = [drawn_directions(session, generator, dimensions=1) for _ in range(_FEWEST)]

        def results(lines: "Sequence[GrowingSurface]", level: int) -> list[Result]:
            found = [line.at(level) for line in lines]
            return [_result(session, found, cost())] if found else []

        look = Draft(lambda: ())
        looks = [
            around_checkpoint(session, line, points, _CHEAP).growing(coarsest=_COARSEST)
            for line in drawn
        ]
        for line in looks:
            for _ in line.measure(0):
                if all(each.known == 0 for each in looks):
                    look = Draft(partial(results, looks, 0), number * points)
                yield look
        # Only now: of a large network the look is often all that there is time for.
        for _ in range(_FEWEST, number):
            drawn.append(drawn_directions(session, generator, dimensions=1))
        lines = [around_checkpoint(session, line, points, _QUANTITIES).growing() for line in drawn]
        done = 0
        for level in range(lines[0].num_levels):
            for line in lines:
                for new in line.measure(level):
                    done += new
                    session.report("loss_slice", done, number * points)
                    known = _finest(lines, level)
                    draft = Draft(partial(results, *known), number * points / done)
                    yield draft if known[0] else look


def _finest(lines: "Sequence[GrowingSurface]", level: int) -> "tuple[list[GrowingSurface], int]":
    """Return the lines to be shown, and their level: the one under way, or the one before it."""
    whole = [line for line in lines if line.known == level]
    # One direction alone has no spread: what all have of the level before says more.
    if len(whole) >= _FEWEST and (level or len(whole) == len(lines)):
        return whole, level
    return list(lines) if level else [], level - 1


def _result(session: "Session", lines: "Sequence[Surface]", cost: Cost) -> Result:
    """Return what was found along some directions."""
    rows = {
        name: [as_json(line.quantities[name]) for line in lines] for name in lines[0].quantities
    }
    errors = {
        name: _errors(found, rows.get(f"{name}_rounding"))
        for name, found in rows.items()
        if not name.endswith("_rounding")
    }
    return Result(
        "loss_slice",
        {"coordinate": lines[0].axes["t"].tolist(), **rows},
        errors,
        error_kind="standard_error",
        settings=about_directions(session, lines),
        cost=cost,
    )


def random_directions(session: "Session", generator: "Generator", *, dimensions: int) -> "Subspace":
    """Return a random line or plane through the checkpoint."""
    from flatkit.landscape.directions.random import random_subspace

    objective = session.objective
    return random_subspace(
        objective.space,
        objective.theta,
        dimensions=dimensions,
        seed=session.own(ObjectiveSettings).seed,
        generator=generator,
        may_be_flat=True,  # a model without matrices must not stop the other measures
    )


def drawn_directions(
    session: "Session", generator: "Generator", *, dimensions: int
) -> "Subspace | Callable[[], Subspace]":
    """Return a random line or plane through the checkpoint; of a large network what draws it."""
    import torch

    state = generator.get_state()
    drawn = random_directions(session, generator, dimensions=dimensions)
    if session.objective.num_parameters < _LARGE:
        return drawn

    def draw() -> "Subspace":
        # The state of then: the line is drawn anew for every level, and must be the same.
        again = torch.Generator().set_state(state)
        return random_directions(session, again, dimensions=dimensions)

    return draw


def around_checkpoint(
    session: "Session",
    subspace: "Subspace | Callable[[], Subspace]",
    points: int,
    quantities: "Sequence[Quantity]",
    *,
    dimensions: int = 1,
) -> "LandscapeJob":
    """Return the job of a line or plane that reaches as far to each side of the checkpoint."""
    from flatkit.landscape.job import LandscapeJob

    extent, half = session.own(ExtentSettings).extent, points // 2
    steps = numpy.array([extent * (i / half) for i in range(-half, half + 1)])  # 0 in the middle
    axes = {"t": steps} if dimensions == 1 else {"x": steps, "y": steps}
    return LandscapeJob({"train": session.objective}, subspace, axes, quantities=quantities)


def about_directions(session: "Session", surfaces: "Sequence[Surface]") -> dict[str, Any]:
    """Return how random directions were made and looked at, ready for JSON."""
    said = [surface.header["directions"] for surface in surfaces]
    norms = [norm for each in said for norm in each["norms"]]
    return {
        "normalization": said[0]["normalization"],
        "one_dimensional": said[0]["one_dimensional"],
        "num_directions": len(norms),
        "direction_norms": norms,
        "weight_norm": said[0]["weight_norm"],
        "seed": session.own(ObjectiveSettings).seed,
        "evaluation": dict(surfaces[0].header["evaluation"]["train"]),
    }


def price_of_points(session: "Session", gradients: float) -> float:
    """Return what points take, in gradients, with what their noise takes in 16 bits.

    Args:
        session: at whose checkpoint.
        gradients: what they take by themselves.
    """
    from flatkit.objective.noise import passes_of_point

    return gradients * passes_of_point(session.objective)


def as_json(values: numpy.ndarray) -> Any:
    """Return values as lists, with None where one is no number; infinity stays.

    >>> as_json(numpy.array([[1.0, math.nan], [math.inf, 0.0]]))
    [[1.0, None], [inf, 0.0]]
    """
    found = values.astype(object)
    # A hole in a curve is None: NaN is never a result.
    found[numpy.isnan(values)] = None
    return found.tolist()


def _errors(rows: _Rows, roundings: "_Rows | None") -> "list[float | None]":
    """Return, for each step, the standard error of the mean over the directions.

    Where single values are off by the rounding to 16 bits, the mean of that adds to it in squares.
    """
    import torch

    errors: list[float | None] = []
    for step, column in enumerate(zip(*rows, strict=True)):
        numbers = [x for x in column if x is not None and math.isfinite(x)]
        # Where the loss of one direction is no number, there is no error of the mean.
        if len(numbers) < max(_FEWEST, len(column)):
            errors.append(None)
            continue
        spread = torch.tensor(numbers, dtype=torch.float64).std()
        off = 0.0 if roundings is None else statistics.fmean(row[step] or 0.0 for row in roundings)
        errors.append(math.hypot(float(spread) / math.sqrt(len(numbers)), off))
    return errors


def size(result: Result) -> str:
    """Return directions × steps."""
    return f"{len(result.value['loss'])} × {len(result.value['coordinate'])}"


MEASURE = Measure(
    "loss_slice",
    "loss, accuracy and gradient norm along random directions",
    run,
    settings=(SliceSettings, ExtentSettings),
    in_bfloat16=True,
    figures={"slice": "flatkit.render.figures.slices:slice_figure"},
    size=size,
    first=lambda session: price_of_points(session, 5 * _FEWEST / 3),
    passes=lambda session: price_of_points(
        session,
        session.own(SliceSettings).slice_directions * session.own(SliceSettings).slice_points,
    ),
    about="The loss along random lines through the weights, in steps measured by the size of each "
    "filter, so that networks of different weight norms compare. The band is the standard "
    "error over the lines, with the rounding of every value where the model computes in 16 bits. "
    "Wider valleys are flatter along the directions drawn, which are not the sharpest ones.",
)
