"""R1 of the quadratic model at the checkpoint, a second estimate beside the search."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> "Iterator[Draft]":
    """Find the maximum for every radius; none in a ball that is not round."""
    ball, found = session.ball, list[Result]()
    if not ball.geometry.is_round:
        return
    for _ in ball.model_steps():
        yield Draft(lambda: ())
    for rho in session.radii("quadratic_model_maximum"):
        found.append(at(session, rho))
        yield Draft(lambda: tuple(found), 1.5)


def at(session: "Session", rho: float) -> Result:
    """Return the maximum for one radius, with how far the model's maximum may lie above it."""
    ball = session.ball
    with session.meter() as cost:
        found = ball.model_maximum("gradient_norm", rho)
        return Result(
            "quadratic_model_maximum",
            rho * found.value,
            rho * found.shortfall,
            error_kind="residual",
            settings={
                "rho": rho,
                "geometry": ball.geometry.name,
                "is": "rho max |g + H u| over the ball; the maximum of this model lies at most the "
                "error above the value",
                "basis": len(ball.model.basis),
            },
            cost=cost(),
        )


def read(result: Result) -> list[Reading]:
    """Return the maximum."""
    return [in_ball(result, "model R1")]


MEASURE = Measure(
    "quadratic_model_maximum",
    "R1 of the quadratic model, a second estimate beside the search",
    run,
    read,
    settings=(BallSettings,),
    passes=lambda session: float(len(session.own(BallSettings).rho) * session.product_price),
)
