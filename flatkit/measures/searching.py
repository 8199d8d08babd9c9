"""Searches in the balls of all radii, piece by piece: what R0, R1 and the largest norm share."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flatkit.flatness.quadratic_model import Quantity
from flatkit.measures.base import Draft
from flatkit.measures.effort import EffortSettings
from flatkit.measures.shared_settings import BallSettings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_NAMES = {"loss": "zeroth_order_sharpness", "gradient_norm": "first_order_flatness"}
_FIRST = 16
"""Gradients of the first round for each radius; every later round has twice as many."""
_LEAST_GAIN = 0.005
"""Part of the value by which a round must raise it if there is to be another one. Half the work,
and at least 99 % of what 600 gradients find (`python -m benchmarks.flatness settled`)."""


def searched(
    session: "Session", which: Quantity, at: "Callable[[Session, float], Result]"
) -> Iterator[Draft]:
    """Search the balls in rounds, the smallest first, each of twice the work of the one before.

    Every radius has a value before any is searched further, and then goes on from a point that the
    smaller one has found. Where nothing else was asked for, a radius has no further round after one
    that gained next to nothing.

    Args:
        session: whose function is searched.
        which: of its functions.
        at: makes the result of a radius of what is known.
    """
    ball, budget, patient = session.ball, session.search_budget, _is_patient(session)
    radii = session.own(BallSettings).rho
    # The round of 1 gives each radius a value: that of the first start.
    rounds = [1, min(_FIRST, budget)]
    # Doubled, so that there are few rounds however large the budget is.
    while rounds[-1] < budget:
        rounds.append(min(2 * rounds[-1], budget))

    def results() -> list[Result]:
        return [at(session, rho) for rho in radii if ball.has_begun(which, rho)]

    for limit in rounds:
        # The smallest first: its best point is a start for the next one.
        for done, rho in enumerate(radii):
            process = ball.process(which, rho)
            session.report(_NAMES[which], done, len(radii))
            while not process.settled and (process.spent < limit or not process.begun):
                if not process.step():
                    break
                known = ball.has_begun(which, radii[0])
                # How far off it counts as: 2 at the end of the last round, and more before.
                yield Draft(results, max(1.5, 2 * budget / limit) if known else math.inf)
            if limit > 1 and not patient:
                process.end_round(limit, _LEAST_GAIN)
    if which == "gradient_norm":
        yield from _settled(session, results)
    # For the upper estimate beside R1, also where all searches ended before they used it.
    ball.make_model()
    yield Draft(results, 1.0)


def _is_patient(session: "Session") -> bool:
    """Whether a search takes all of its gradients, as was asked for."""
    return session.own(BallSettings).search_budget is not None or session.own(EffortSettings).full


def _settled(session: "Session", results: "Callable[[], list[Result]]") -> Iterator[Draft]:
    """Look where the searches of the loss ended, and how far rounding and kinks reach."""
    ball = session.ball
    for rho in session.own(BallSettings).rho:
        while ball.is_searching("loss", rho):
            yield Draft(results, 1.0)  # the mean value theorem bounds R0 by R1, once it is there
        ball.look_at_loss_maximiser(rho)
        yield Draft(results, 1.5)
    ball.look_for_kinks()
    yield Draft(results, 1.5)
