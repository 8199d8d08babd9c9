"""R1 of the quadratic model at the checkpoint, a second estimate beside the search."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_ROUGH = 10.0
"""How far off the model of the Krylov space alone counts as."""


def run(session: "Session") -> "Iterator[Draft]":
    """Find the maximum for every radius; none in a ball that is not round.

    At the smallest first on the Krylov space alone, which products from the gradient on sharpen.
    """
    ball, found = session.ball, list[Result]()
    if not ball.geometry.is_round:
        return
    while not ball.has_space:
        ball.step_space()
        yield Draft(lambda: ())
    # Where the searches have made the model already, no rough value is needed.
    if not ball.is_modelled:
        found.append(at(session, session.own(BallSettings).rho[0], rough=True))
        rough = tuple(found)
        yield Draft(lambda: rough, _ROUGH)
        for _ in ball.model_steps():
            yield Draft(lambda: rough, _ROUGH)
        # The rough value goes: what is told from here on stands on the whole model.
        found.clear()
    for rho in session.radii("quadratic_model_maximum"):
        found.append(at(session, rho))
        yield Draft(lambda: tuple(found), 1.5)


def at(session: "Session", rho: float, *, rough: bool = False) -> Result:
    """Return the maximum for one radius, with how far the model's maximum may lie above it.

    Args:
        session: at whose point.
        rho: the radius.
        rough: of the model as it is now.
    """
    ball = session.ball
    with session.meter() as cost:
        maximum = ball.rough_model_maximum if rough else ball.model_maximum
        found = maximum("gradient_norm", rho)
        rounding = ball.model_rounding("gradient_norm", found)
        return Result(
            "quadratic_model_maximum",
            rho * found.value,
            rho * (found.shortfall + rounding),
            error_kind="residual",
            settings={
                "rho": rho,
                "geometry": ball.geometry.name,
                "is": "rho max |g + H u| over the ball; the maximum of this model lies at most the "
                "error above the value",
                "basis": ball.basis,
                "rounding": rho * rounding,
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
    derivatives=2,
    settings=(BallSettings,),
    passes=lambda session: float(len(session.own(BallSettings).rho) * session.product_price),
    first=lambda session: float(session.product_price),
    on_space=True,
    in_bfloat16=True,
    absent="the ball is not round",
    about="What R1 would be if the loss were exactly quadratic around the checkpoint. Near the "
    "value of the search it says that two ways of computing agree; far from it, that the "
    "loss is not quadratic within ρ.",
)
