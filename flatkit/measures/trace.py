"""Trace of the Hessian, with its standard error."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from flatkit.checks import check_positive
from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.hessian.operator import HessianOperator
    from flatkit.measures.session import Session
    from flatkit.spectrum.estimate import Estimate

TraceMethod: TypeAlias = Literal["auto", "hutchinson", "hutch++", "xtrace"]


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """How the trace is estimated; of the Frobenius norm and the layers, how well."""

    trace_method: TraceMethod = setting("auto", "How to estimate the trace.", group="Curvature")
    trace_tolerance: float = setting(
        0.02, "Relative standard error of the trace.", check=check_positive, group="Curvature"
    )


def run(session: "Session") -> list[Result]:
    """Return the trace, and how it spreads over draws of the samples."""
    from flatkit.spectrum.xtrace import trace

    own, budget = session.own(TraceSettings), session.own(CurvatureSettings).max_matvecs

    def measure(hessian: "HessianOperator") -> "Estimate":
        return trace(
            hessian,
            method=own.trace_method,
            tolerance=own.trace_tolerance,
            max_matvecs=budget,
            generator=session.generator("trace"),
        )

    with session.meter() as cost:
        found = measure(session.curvature)
        settings = {
            "method": own.trace_method,
            "tolerance": own.trace_tolerance,
            "max_matvecs": budget,
            **session.over_draws(found, measure),
        }
        return [session.estimated("trace", found, settings, cost())]


def read(result: Result) -> list[Reading]:
    """Return the trace."""
    return [number(result, "trace", "trace tr H", role="flatness", better="lower", drawn=True)]


MEASURE = Measure(
    "trace",
    "trace of the Hessian",
    run,
    read,
    settings=(CurvatureSettings, TraceSettings),
    passes=lambda session: 60.0 * session.product_price,
)
