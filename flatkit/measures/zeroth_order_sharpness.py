"""R0: the largest increase of the loss within ρ (Foret et al., 2021, eq. 1), a lower bound."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_VISIBLE = 0.01
"""Part of R0 that rounding of the loss may be before R0 counts as rounding."""


def run(session: "Session") -> "Iterator[Draft]":
    """Search R0 for every radius."""
    from flatkit.measures.searching import searched

    return searched(session, "loss", at)


def at(session: "Session", rho: float) -> Result:
    """Return what is known of R0 for one radius, beside what the quadratic model says."""
    import torch

    ball = session.ball
    found, cost = ball.answer("loss", rho)
    loss, eps = session.loss_and_gradient[0], torch.finfo(session.objective.dtype).eps
    # Two units of rounding for each of the two.
    rounding = 4 * eps * abs(loss)  # of a difference of two losses
    hidden = rounding > _VISIBLE * abs(found.value)
    # The model of 16 bits has no bar.
    known = ball.geometry.is_round and ball.is_modelled and session.objective.narrow is None
    model = ball.model_maximum("loss", rho) if known else None
    return Result(
        "zeroth_order_sharpness",
        found.value,
        error_kind="lower_bound",
        status=Status.ROUNDING if hidden else found.status,
        settings={
            **ball.settings(rho, found),
            "one_step": found.trails["gradient"][0] if "gradient" in found.trails else None,
            "value_over_rho_squared": found.value / rho**2,
            "quadratic_model": None if model is None else model.value,
            "rounding": rounding,
        },
        cost=cost,
    )


def read(result: Result) -> list[Reading]:
    """Return R0."""
    return [in_ball(result, "R0", role="flatness", better="lower")]


MEASURE = Measure(
    "zeroth_order_sharpness",
    "R0: largest increase of the loss within rho",
    run,
    read,
    settings=(BallSettings,),
    figures={"flatness": "flatkit.render.figures.flatness:flatness_figure"},
    passes=lambda session: float(len(session.own(BallSettings).rho) * session.search_budget),
    first=lambda session: 1.0,
    in_bfloat16=True,
    influence=lambda samples, result: samples.loss_increase(result),
    about="R0, the most that the loss can rise within distance ρ of the weights: what SAM "
    "minimises. Lower is flatter. It is a lower bound, the best point that a search found. "
    "At a minimum 2 R0/ρ² tends to λmax as ρ shrinks.",
)
