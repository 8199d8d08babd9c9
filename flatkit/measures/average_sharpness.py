"""Mean increase of the loss under Gaussian noise of length ρ."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return the mean increase for every radius."""
    return [_at(session, rho) for rho in session.radii("average_sharpness")]


def _at(session: "Session", rho: float) -> Result:
    """Return the mean increase for one radius, with its standard error."""
    from flatkit.flatness.average import average_loss_increase

    geometry = session.geometry
    with session.meter() as cost:
        found = average_loss_increase(
            session.objective, rho=rho, geometry=geometry, generator=session.generator("average")
        )
        return Result(
            "average_sharpness",
            found.value,
            found.error,
            error_kind="standard_error",
            settings={
                "rho": rho,
                "geometry": geometry.name,
                "sigma": found.sigma,
                "pairs": found.samples,
                "seed": session.own(ObjectiveSettings).seed,
            },
            cost=cost(),
        )


def read(result: Result) -> list[Reading]:
    """Return the mean increase."""
    return [in_ball(result, "average ΔL")]


MEASURE = Measure(
    "average_sharpness",
    "mean increase of the loss under Gaussian noise of length rho",
    run,
    read,
    settings=(BallSettings,),
)
