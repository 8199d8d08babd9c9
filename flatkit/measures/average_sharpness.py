"""Mean increase of the loss under Gaussian noise of length ρ."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, in_ball
from flatkit.measures.shared_settings import BallSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.cost import Cost
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.flatness.average import AverageIncrease
    from flatkit.measures.session import Session
    from flatkit.spectrum.steps import Steps


_PAIRS = 32
"""Pairs of draws, in the end."""


def run(session: "Session") -> "Iterator[Draft]":
    """Draw for all radii in turn."""
    from flatkit.flatness.average import average_steps

    base, geometry = session.evaluations["train"][0].loss, session.geometry
    searches: dict[float, Steps[AverageIncrease]] = {}
    known: dict[float, tuple[Callable[[], AverageIncrease], Cost]] = {}
    for rho in session.own(BallSettings).rho:
        generator = session.generator("average")
        given: dict[str, Any] = {"rho": rho, "geometry": geometry, "samples": _PAIRS}
        searches[rho] = average_steps(session.objective, base, **given, generator=generator)

    def results() -> list[Result]:
        found = {rho: (ask(), cost) for rho, (ask, cost) in known.items()}
        # One pair alone has no spread, and so no error.
        return [_result(session, rho, *each) for rho, each in found.items() if each[0].samples > 1]

    spent = dict.fromkeys(searches, Cost())
    for pairs in range(1, _PAIRS + 1):
        for rho, search in searches.items():
            with session.meter() as cost:
                ask = next(search)
                spent[rho] += cost()
                known[rho] = ask, spent[rho]
            enough = pairs > 1 and len(known) == len(searches)
            yield Draft(results, _PAIRS / pairs if enough else math.inf)


def _result(session: "Session", rho: float, found: "AverageIncrease", cost: Cost) -> Result:
    """Return the mean increase for one radius, with its standard error."""
    return Result(
        "average_sharpness",
        found.value,
        found.error,
        error_kind="standard_error",
        settings={
            "rho": rho,
            "geometry": session.geometry.name,
            "sigma": found.sigma,
            "pairs": found.samples,
            "seed": session.own(ObjectiveSettings).seed,
        },
        cost=cost,
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
    passes=lambda session: len(session.own(BallSettings).rho) * 2 * _PAIRS / 3,
)
