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
_FEWEST = 2
"""Pairs that show a spread: one alone has none, and so no error."""


def run(session: "Session") -> "Iterator[Draft]":
    """Draw for all radii in turn, once each has the fewest pairs."""
    from flatkit.flatness.average import average_steps

    base, geometry = session.evaluations["train"][0].loss, session.geometry
    searches: dict[float, Steps[AverageIncrease]] = {}
    known: dict[float, tuple[Callable[[], AverageIncrease], Cost]] = {}
    for rho in session.own(BallSettings).rho:
        # The same draws for every radius, scaled: how the values grow with ρ is no noise.
        generator = session.generator("average")
        given: dict[str, Any] = {"rho": rho, "geometry": geometry, "samples": _PAIRS}
        searches[rho] = average_steps(session.objective, base, **given, generator=generator)

    def results() -> list[Result]:
        found = {rho: (ask(), cost) for rho, (ask, cost) in known.items()}
        each = [(rho, *one) for rho, one in found.items() if one[0].samples >= _FEWEST]
        return [_result(session, *one) for one in each]

    spent = dict.fromkeys(searches, Cost())
    # All radii first: one sharp value and two missing ones would compare with nothing.
    first = [rho for rho in searches for _ in range(_FEWEST)]
    later = [rho for _ in range(_FEWEST, _PAIRS) for rho in searches]
    for done, rho in enumerate([*first, *later], start=1):
        with session.meter() as cost:
            ask = next(searches[rho])
            spent[rho] += cost()
            known[rho] = ask, spent[rho]
        yield Draft(results, _PAIRS * len(searches) / done if done >= _FEWEST else math.inf)


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
    # A pair is two values of the loss, each about a third of a gradient.
    passes=lambda session: len(session.own(BallSettings).rho) * 2 * _PAIRS / 3,
    first=lambda session: 2 * _FEWEST / 3,
    about="How much the loss rises on average under Gaussian noise of length about ρ. It sees all "
    "directions, where R0 sees the worst one: about ρ²·tr H/(2P) while the loss is "
    "quadratic. Lower is flatter.",
)
