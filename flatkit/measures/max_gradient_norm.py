"""The largest gradient norm within ρ itself, a lower bound; R1 is ρ times it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.first_order_flatness import search_status
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> "Iterator[Draft]":
    """Search the norm for every radius; the search is that of R1, and its cost stands at both."""
    from flatkit.measures.searching import searched

    return searched(session, "gradient_norm", _at)


def _at(session: "Session", rho: float) -> Result:
    found, cost = session.ball.answer("gradient_norm", rho)
    return Result(
        "max_gradient_norm",
        found.value,
        error_kind="lower_bound",
        status=search_status(session, rho),
        settings=session.ball.settings(rho, found),
        cost=cost,
    )


def read(result: Result) -> list[Reading]:
    """Return the norm."""
    return [in_ball(result, "max ‖∇L‖")]


MEASURE = Measure(
    "max_gradient_norm",
    "the largest gradient norm within rho itself",
    run,
    read,
    settings=(BallSettings,),
    on_request=True,
    # The search is that of R1, at which its gradients are forecast.
    passes=lambda session: 0.0,
    first=lambda session: 1.0,
    in_bfloat16=True,
    influence=lambda samples, result: samples.largest_gradient_norm(result),
    about="The largest ‖∇L‖ within distance ρ itself, R1/ρ. Lower is flatter; a lower bound.",
)
