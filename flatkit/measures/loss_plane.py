"""Loss and accuracy on the plane of two random directions through the checkpoint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatkit.checks import check_odd
from flatkit.measures.base import Measure
from flatkit.measures.loss_slice import ExtentSettings, direction_settings
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
    import torch

    from flatkit.landscape.directions import random_direction
    from flatkit.landscape.old_surface import loss_plane, symmetric_grid

    objective, generator = session.objective, session.generator("plane")
    first, second = (
        random_direction(objective.space, objective.theta, generator=generator) for _ in range(2)
    )
    extent, points = session.own(ExtentSettings).extent, session.own(PlaneSettings).plane_points
    steps = symmetric_grid(extent, points)
    with session.meter() as cost:
        plane = loss_plane(
            objective,
            first=first,
            second=second,
            x=steps,
            y=steps,
            progress=lambda done, total: session.report("loss_plane", done, total),
        )
        spent = cost()
    value: dict[str, Any] = {"x": plane.x, "y": plane.y, "loss": plane.loss}
    if plane.accuracy is not None:
        value["accuracy"] = plane.accuracy
    cosine = float(first @ second) / float(first.norm() * second.norm())
    used = {**direction_settings(session, torch.stack([first, second])), "cosine": cosine}
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
