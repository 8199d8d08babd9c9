"""Trace of the Hessian, with its standard error."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flatkit.checks import check_positive
from flatkit.measures.base import Draft, Measure, sampled
from flatkit.measures.reading import Reading, number
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results.result import Result
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


def run(session: "Session") -> "Iterator[Draft]":
    """Estimate the trace, and how it spreads over draws of the samples.

    On the Krylov space of the eigenvalues it is exact, and only the rest is probed.
    """
    from flatkit.spectrum.xtrace import trace, trace_steps

    own, budget = session.own(TraceSettings), session.own(CurvatureSettings).max_matvecs
    given: dict[str, Any] = {
        "method": own.trace_method,
        "tolerance": own.trace_tolerance,
        "max_matvecs": budget,
    }
    spread: dict[str, Any] = {}

    def measure(hessian: "HessianOperator") -> "Estimate":
        return trace(hessian, **given, generator=session.generator("trace"))

    def results(ask: "Callable[[], Estimate]") -> list[Result]:
        return [session.estimated("trace", ask(), {**given, **spread}, cost())]

    with session.meter() as cost:
        while own.trace_method == "auto" and not session.has_space:
            session.step_space()
            yield Draft(lambda: ())
        # A method that was named is what it is called: only `auto` takes more than its probes.
        ask, space = None, session.space.deflation if own.trace_method == "auto" else None
        draws = session.generator("trace")
        for ask in trace_steps(session.curvature, **given, generator=draws, space=space):
            yield sampled(ask, own.trace_tolerance, partial(results, ask))
        assert ask is not None  # it yields at least once
        spread |= session.over_draws(ask(), measure)
        yield Draft(partial(results, ask), 1.0)


def read(result: Result) -> list[Reading]:
    """Return the trace."""
    return [number(result, "trace", "trace tr H", role="flatness", better="lower", drawn=True)]


MEASURE = Measure(
    "trace",
    "trace of the Hessian",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings, TraceSettings),
    passes=lambda session: 60.0 * session.product_price,
    first=lambda session: float(session.product_price),
    on_space=True,
    in_bfloat16=True,
    influence=lambda samples, result: samples.trace(result),
    about="tr H, the sum of all eigenvalues: P times the mean curvature over all directions, "
    "where λmax is that of one. Lower is flatter. The error is a standard error over random "
    "probes.",
)
