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
    """Return the mean increase for every radius, with its standard error."""
    from flatkit.flatness.average import average_loss_increase
    from flatkit.measures.ball import ball_geometry

    geometry, results = ball_geometry(session), list[Result]()
    for rho in session.own(BallSettings).rho:
        with session.meter() as cost:
            found = average_loss_increase(
                session.objective,
                rho=rho,
                geometry=geometry,
                generator=session.generator("average"),
            )
            settings = {
                "rho": rho,
                "geometry": geometry.name,
                "sigma": found.sigma,
                "pairs": found.samples,
                "seed": session.own(ObjectiveSettings).seed,
            }
            results.append(
                Result(
                    "average_sharpness",
                    found.value,
                    found.error,
                    error_kind="standard_error",
                    settings=settings,
                    cost=cost(),
                )
            )
    return results


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
