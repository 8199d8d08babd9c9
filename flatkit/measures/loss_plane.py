"""Loss and accuracy on the plane of two random directions through the checkpoint."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flatkit.checks import check_odd
from flatkit.measures.base import Draft, Measure
from flatkit.measures.loss_slice import (
    ExtentSettings,
    about_directions,
    around_checkpoint,
    as_json,
    drawn_directions,
    price_of_points,
)
from flatkit.results.cost import Cost
from flatkit.results.result import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.landscape.settings import Quantity
    from flatkit.landscape.surface import Surface
    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class PlaneSettings:
    """The points of the plane."""

    plane_points: int = setting(
        21, "Steps of the plane along each axis, odd.", check=check_odd, group="Landscape"
    )


_QUANTITIES: "tuple[Quantity, ...]" = ("loss", "accuracy")


def run(session: "Session") -> Iterator[Draft]:
    """Measure the plane of two filter-normalised directions, from coarse to fine."""
    subspace = drawn_directions(session, session.generator("plane"), dimensions=2)
    points = session.own(PlaneSettings).plane_points
    with session.meter() as cost:
        job = around_checkpoint(session, subspace, points, _QUANTITIES, dimensions=2)
        plane = job.growing()
        done = 0

        def results(level: int) -> list[Result]:
            return [_result(session, plane.at(level), cost())] if level >= 0 else []

        for level in range(plane.num_levels):
            for new in plane.measure(level):
                done += new
                session.report("loss_plane", done, points**2)
                # Told by the points that are missing: a picture has no error bar to go by.
                wanting = points**2 / done if plane.known >= 0 else math.inf
                yield Draft(partial(results, plane.known), wanting)


def _result(session: "Session", plane: "Surface", cost: Cost) -> Result:
    """Return what was found on the plane."""
    value = {name: steps.tolist() for name, steps in plane.axes.items()}
    found = {name: as_json(values) for name, values in plane.quantities.items()}
    # Of 16 bits each number has what it may be off.
    off = {
        name: found.pop(f"{name}_rounding") for name in _QUANTITIES if f"{name}_rounding" in found
    }
    value |= found
    used = {**about_directions(session, [plane]), "cosine": plane.header["directions"]["cosine"]}
    if off:
        return Result("loss_plane", value, off, "rounding", settings=used, cost=cost)
    return Result("loss_plane", value, 0.0, settings=used, cost=cost)


def size(result: Result) -> str:
    """Return the points along both axes."""
    return f"{len(result.value['x'])} × {len(result.value['y'])}"


MEASURE = Measure(
    "loss_plane",
    "loss and accuracy on a random plane",
    run,
    settings=(PlaneSettings, ExtentSettings),
    in_bfloat16=True,
    figures={"plane": "flatkit.render.figures.planes:plane_figure"},
    size=size,
    passes=lambda session: price_of_points(
        session, session.own(PlaneSettings).plane_points ** 2 / 3
    ),
    first=lambda session: price_of_points(session, 3.0),  # three points along each axis
    about="The loss on the plane of two such random directions. A random plane hardly meets the "
    "few sharp directions of a network: planes are for seeing, λmax and R1 for comparing.",
)
