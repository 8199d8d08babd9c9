"""R1: ρ times the largest gradient norm within ρ (Zhang et al., 2023), a lower bound."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from flatkit.flatness.ball import BallMaximum
    from flatkit.measures.session import Session


def run(session: "Session") -> "Iterator[Draft]":
    """Search R1 for every radius."""
    from flatkit.measures.searching import searched

    return searched(session, "gradient_norm", at)


def at(session: "Session", rho: float) -> Result:
    """Return what is known of R1 for one radius, beside an estimate of how large it may be."""
    ball = session.ball
    found, cost = ball.answer("gradient_norm", rho)
    # What GAM itself sees of R1: the point that one step of its ascent reaches.
    one_step = found.trails.get("gradient-norm ascent", [None])[0]
    return Result(
        "first_order_flatness",
        rho * found.value,
        error_kind="lower_bound",
        status=search_status(session, rho),
        settings={
            **ball.settings(rho, found),
            "one_step": None if one_step is None else rho * one_step,
            "value_over_rho_squared": found.value / rho,
            "ratio_to_top_eigenvalue": _ratio_to_top(session, found.value / rho),
            "rounding_radius": ball.rounding_radius if ball.is_modelled else None,
            "rounding_from": session.noise_from,
            "gradient_jump": ball.jump.size if ball.has_kink else None,
            "upper_estimate": _upper_estimate(session, rho, found),
            "upper_estimate_is": "an estimate, no bound: rho (|g| + rho K), K the largest slope of "
            "the gradient that was seen, at the checkpoint or on the way to the best point",
        },
        cost=cost,
    )


def search_status(session: "Session", rho: float) -> Status | str:
    """Return how the search of the largest gradient norm ended, the worst first."""
    ball = session.ball
    found = ball.answer("gradient_norm", rho).found
    # L(θ+δ) − L(θ) ≤ ρ max ‖∇L‖ by the mean value theorem: a larger R0 proves a larger R1.
    losses = ball.processes.get(("loss", rho))
    increase = 0.0 if losses is None or losses.found is None else losses.found.value
    # Beyond the rounding of both.
    if increase > rho * found.value * (1 + 1e-6):
        return Status.SEARCH_MISSED_MAXIMUM
    # Before the model there is no |λ|max, and so no radius to compare with.
    if ball.is_modelled and rho < ball.rounding_radius:
        return Status.ROUNDING
    return Status.KINKS if ball.has_kink else found.status


def _upper_estimate(session: "Session", rho: float, found: "BallMaximum") -> float | None:
    """Return ρ(‖g‖ + ρK), at least the value found, where the ball is round."""
    ball = session.ball
    if not (ball.geometry.is_round and ball.is_modelled):
        return None
    norm = float(ball.geometry.dual_norm(ball.model.gradient))
    return rho * (norm + rho * max(ball.slope, (found.value - norm) / rho))


def _ratio_to_top(session: "Session", value: float) -> float | None:
    """Return the value over λmax, if that was measured, is positive and belongs to the geometry."""
    measured = "top_eigenvalues" in session.settings.measures
    if not measured or session.ball.geometry.name != "l2" or not session.knows_top:
        return None
    largest = float(session.top_so_far.value[0])
    return value / largest if largest > 0 else None


def read(result: Result) -> list[Reading]:
    """Return R1 and R1/ρ².

    R1, R1/ρ² and the largest norm say the same at one ρ. R1/ρ² is on the scale of λmax, so it is
    the one that is compared.
    """
    ratio = result.settings.get("ratio_to_top_eigenvalue")
    over = in_ball(
        result,
        "R1/ρ²",
        "_over_rho_squared",
        scale=result.settings["rho"] ** -2,
        role="flatness",
        better="lower",
        drawn=True,
        remark=f"{ratio:.2f} × λmax" if isinstance(ratio, float) else "",
    )
    return [in_ball(result, "R1"), over]


MEASURE = Measure(
    "first_order_flatness",
    "R1: rho times the largest gradient norm within rho",
    run,
    read,
    settings=(BallSettings,),
    figures={"flatness": "flatkit.render.figures.flatness:flatness_figure"},
    passes=lambda session: float(len(session.own(BallSettings).rho) * session.search_budget),
    first=lambda session: 1.0,
    in_bfloat16=True,
    influence=lambda samples, result: samples.largest_gradient_norm(result),
    about="R1, ρ times the largest gradient norm within distance ρ: the first-order flatness that "
    "GAM minimises. Lower is flatter. It is a lower bound, the best point that a search "
    "found. R0 ≤ R1 always, and at a minimum R1/ρ² tends to λmax as ρ shrinks; a ratio far "
    "from 1 says that the ball reaches beyond the quadratic part, or that ‖∇L‖ is not "
    "small.",
)
