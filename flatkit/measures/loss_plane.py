"""Loss and accuracy on the plane of two random directions through the checkpoint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatkit.checks import check_odd
from flatkit.measures.base import Measure
from flatkit.measures.loss_slice import (
    ExtentSettings,
    about_directions,
    around_checkpoint,
    as_json,
    random_directions,
)
from flatkit.results import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class PlaneSettings:
    """The points of the plane."""

    plane_points: int = setting(
        21, "Steps of the plane along each axis, odd.", check=check_odd, group="Landscape"
    )


def run(session: "Session") -> list[Result]:
    """Return what was found on the plane of two filter-normalised directions."""
    subspace = random_directions(session, session.generator("plane"), dimensions=2)
    points = session.own(PlaneSettings).plane_points
    with session.meter() as cost:
        plane = around_checkpoint(session, subspace, points, ("loss", "accuracy")).measure(
            progress=lambda done, total: session.report("loss_plane", done, total)
        )
        spent = cost()
    value = {name: steps.tolist() for name, steps in plane.axes.items()}
    value |= {name: as_json(found) for name, found in plane.quantities.items()}
    used = {**about_directions(session, [subspace], plane), "cosine": subspace.cosine}
    return [Result("loss_plane", value, 0.0, settings=used, cost=spent)]


def size(result: Result) -> str:
    """Return the points along both axes."""
    return f"{len(result.value['x'])} × {len(result.value['y'])}"


MEASURE = Measure(
    "loss_plane",
    "loss and accuracy on a random plane",
    run,
    settings=(PlaneSettings, ExtentSettings),
    figures={"plane": "flatkit.render.figures.planes:plane_figure"},
    size=size,
)
